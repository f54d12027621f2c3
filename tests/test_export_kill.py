"""A publisher that is killed at any moment leaves the old state or the new one, and the next one cleans up."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path

import pytest

from export import commit, listing, operations
from export.commit import open_staging
from export.lint import lint
from export.publish import publish
from export.repository import ModelFolder
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
    if (repository / "moderation").exists():
        assert ModelFolder(repository).state is not None
        assert listing.verify(repository) == []
        assert [str(each) for each in lint(repository) if each.severity == "error"] == []


@pytest.mark.parametrize("with_exchange", [True, False])
def test_kill_at_any_moment_leaves_old_or_new(tmp_path: Path, with_exchange: bool) -> None:
    """Where the file system cannot swap two folders at once, the next command completes the swap."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["export.publish", "export.operations", "tests.small_export"])
    repository, scratch = tmp_path / "repository", tmp_path / "scratch"
    publish(small_source(scratch), quick_config(repository))
    rng = random.Random(int(with_exchange))
    codes = []
    for number in range(NUM_KILLS if with_exchange else NUM_KILLS // 2):
        # every second kill somewhere while the version is made, the others right at a swap or just after it
        moment = (rng.randint(1, 6), rng.randint(0, 3)) if number % 2 else (0, rng.randint(1, 350))
        arguments = (str(repository), str(scratch), with_exchange, *moment)
        process = context.Process(target=change_until_killed, args=arguments, daemon=True)
        process.start()
        process.join()
        codes.append(process.exitcode)
        process.close()
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
