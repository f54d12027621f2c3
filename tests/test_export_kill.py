"""A publisher that is killed at any moment leaves the old state or the new one, and the next one cleans up."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import pytest

from benchmarks.publishing_kills import Seen, faults
from export import commit, listing, operations
from export.commit import open_staging
from export.lint import lint
from export.publish import publish
from export.repository import ModelFolder
from serve.unfinished import complete
from tests.small_export import quick_config, small_source

NUM_KILLS = 20
FILE_EVENTS = ("open", "os.", "shutil.", "ctypes.", "tempfile.", "fcntl.")
"""Python's audit events that come right before something happens to a file."""
SWAP_EVENTS = ("os.rename", "ctypes.dlsym")
"""Those right before a folder is moved or two are exchanged."""


def change_until_killed(
    repository: str, scratch: str, with_exchange: bool, num_swaps: int, num_events: int
) -> None:
    """Publish, roll back, prune; SIGKILL comes `num_events` file operations after the `num_swaps`-th swap began."""
    if not with_exchange:
        commit.exchange = lambda one, other: False  # a file system without an atomic swap
    source = small_source(Path(scratch), seed=num_events % 3)
    swaps = events = 0

    def count(event: str, _arguments: object) -> None:
        nonlocal swaps, events
        if event == "os.kill":
            return
        events += event.startswith(FILE_EVENTS) and swaps >= num_swaps
        swaps += event in SWAP_EVENTS
        if swaps >= num_swaps and events >= num_events:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    publish(source, quick_config(Path(repository)))
    if num_events % 2 and len(ModelFolder(Path(repository)).versions) > 1:
        operations.rollback(Path(repository))
    operations.prune(Path(repository), keep=2)


def check_whole(repository: Path) -> None:
    """What is there is one complete state: every file as published, nothing that a server would refuse."""
    there = {each.name for each in repository.iterdir()} if repository.is_dir() else set()
    if not there:
        return  # the state before the first publish
    assert "moderation" in there, "what calls the model is there without it"
    assert ModelFolder(repository).state is not None
    assert listing.verify(repository) == []
    assert [str(each) for each in lint(repository) if each.severity == "error"] == []


def run_publisher(repository: Path, scratch: Path, with_exchange: bool, *moment: int) -> int | None:
    """Run one in a process of its own; its exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.publishing_kills", "export.publish", "tests.small_export"])
    arguments = (str(repository), str(scratch), with_exchange, *moment)
    process = context.Process(target=change_until_killed, args=arguments, daemon=True)
    process.start()
    process.join()
    code = process.exitcode
    process.close()
    return code


def test_kill_during_the_first_publish_leaves_nothing_or_a_model(tmp_path: Path) -> None:
    """Between the two folders there is a model without the one that calls it, never the other way round."""
    found = set()
    for number in range(8):
        repository = tmp_path / f"repository-{number}"
        code = run_publisher(repository, tmp_path / "scratch", True, 1 + number // 2, number % 2)
        assert code in (-signal.SIGKILL, 0)
        check_whole(repository)
        found.add(tuple(sorted(each.name for each in repository.iterdir())))
    assert () in found
    assert ("moderation",) in found
    publish(small_source(tmp_path / "scratch"), quick_config(tmp_path / "repository-0"))
    assert (tmp_path / "repository-0" / "moderation_encoded").is_dir()


def test_journal_that_was_cut_short_does_not_stop_the_next_publisher(tmp_path: Path) -> None:
    """It was written before anything was moved; server and publisher pass over it, and nothing half written is left."""
    repository = tmp_path / "repository"
    publish(small_source(tmp_path / "scratch"), quick_config(repository))
    staging = tmp_path / ".repository.staging"
    for text in ("", '{"staged": "/a', "[]", '{"staged": 1, "target": 2, "aside": 3}'):
        (staging / "journal.json").write_text(text)
        (staging / "journal.json.part").write_text(text)
        complete(repository)
        assert operations.recover(repository) == [
            "removed a journal that was cut short: its swap had not begun"
        ]
        assert [each.name for each in staging.iterdir()] == ["lock"]
    check_whole(repository)


def test_journal_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A publisher that ends while it writes leaves no journal that somebody could believe."""

    def end(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", end)
    with pytest.raises(KeyboardInterrupt):
        commit.write_synced(tmp_path / "journal.json", "{}")
    assert not (tmp_path / "journal.json").exists()


@pytest.mark.parametrize("with_exchange", [True, False])
def test_kill_at_any_moment_leaves_old_or_new(tmp_path: Path, with_exchange: bool) -> None:
    """Where the file system cannot swap two folders at once, the next command completes the swap."""
    repository, scratch = tmp_path / "repository", tmp_path / "scratch"
    publish(small_source(scratch), quick_config(repository))
    rng = random.Random(int(with_exchange))
    codes = []
    for number in range(NUM_KILLS if with_exchange else NUM_KILLS // 2):
        # every second kill somewhere while the version is made, the others right at a swap or just after it
        moment = (rng.randint(1, 6), rng.randint(0, 3)) if number % 2 else (0, rng.randint(1, 350))
        codes.append(run_publisher(repository, scratch, with_exchange, *moment))
        if not with_exchange:
            with open_staging(repository):
                pass
        check_whole(repository)
    assert set(codes) <= {-signal.SIGKILL, 0}
    assert codes.count(-signal.SIGKILL) >= len(codes) // 2
    assert ModelFolder(repository).next_version > 3, "nothing was published between the kills"
    publish(small_source(scratch), quick_config(repository))
    check_whole(repository)
    assert not list((tmp_path / ".repository.staging").glob("stage-*"))


def test_benchmark_of_kills_sees_what_is_neither_old_nor_new(tmp_path: Path) -> None:
    """It would be worth nothing if it passed a version that appeared from nowhere, a damaged one, or an empty folder."""
    repository = tmp_path / "repository"
    for seed in range(2):
        publish(small_source(tmp_path / "scratch", seed=seed), quick_config(repository))
    before = Seen.of(repository)
    assert faults(repository, before, 3) == []
    publish(small_source(tmp_path / "scratch", seed=2), quick_config(repository))
    assert faults(repository, before, 3) == []
    assert "is no state before or after a step" in faults(repository, before, 4)[0]
    operations.rollback(repository)
    operations.prune(repository, keep=2)
    assert faults(repository, before, 3) == []
    (repository / "moderation" / "2" / "model.onnx").unlink()
    assert "model.onnx" in faults(repository, before, 3)[0]
    shutil.rmtree(repository / "moderation")
    assert faults(repository, before, 3) != []
