"""A publisher that is killed at any moment leaves the old state or the new one, and the next one cleans up."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from export import commit, listing, operations
from export.commit import open_staging
from export.errors import LockedError
from export.lint import lint
from export.publish import publish
from export.repository import ModelFolder
from tests.small_export import quick_config, small_source

NUM_KILLS = 20


def publish_for_ever(repository: str, scratch: str, with_exchange: bool) -> None:
    """Publish, roll back, prune and configure until killed."""
    if not with_exchange:
        commit.exchange = lambda one, other: False  # a file system without an atomic swap
    for seed in itertools.count():
        try:
            publish(small_source(Path(scratch), seed=seed % 3), quick_config(Path(repository)))
            if seed % 2:
                operations.rollback(Path(repository))
            operations.prune(Path(repository), keep=2)
        except LockedError:
            time.sleep(0.01)


def check_whole(repository: Path) -> int:
    """The repository holds one complete state; its active version, 0 before the first."""
    if not (repository / "moderation").exists():
        return 0
    folder = ModelFolder(repository)
    assert listing.verify(repository) == []
    assert [str(each) for each in lint(repository) if each.severity == "error"] == []
    assert folder.state is not None
    return folder.state.active


@pytest.mark.parametrize("with_exchange", [True, False])
def test_kill_at_any_moment_leaves_old_or_new(tmp_path: Path, with_exchange: bool) -> None:
    """Where the file system cannot swap two folders at once, the next command completes the swap."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["export.publish", "export.operations", "tests.small_export"])
    repository, scratch = tmp_path / "repository", tmp_path / "scratch"
    rng = random.Random(1)
    for _ in range(NUM_KILLS if with_exchange else NUM_KILLS // 2):
        arguments = (str(repository), str(scratch), with_exchange)
        process = context.Process(target=publish_for_ever, args=arguments, daemon=True)
        process.start()
        time.sleep(rng.uniform(0.02, 0.5))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        process.close()
        if not with_exchange:
            with open_staging(repository):
                pass
        check_whole(repository)
    assert ModelFolder(repository).next_version > 4, "the publishers were killed before they published anything"
    with open_staging(repository) as staging:
        assert list(staging.path.glob("stage-*")) == []
    publish(small_source(scratch), quick_config(repository))
    assert check_whole(repository) > 0
