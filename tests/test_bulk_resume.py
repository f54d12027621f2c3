"""Kills: whatever dies, and whenever, the same command again gives exactly one row an input."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.environment import ROOT
from benchmarks.ray_cluster import RayCluster, ray_cluster
from bulk.run import run_bulk
from moderation_client.testing import FakeServer
from tests.bulk_sources import bulk_config, folder, pictures, rows_of

NUM = 120
PATIENCE_S = 120.0


def start(*words: str) -> subprocess.Popen[bytes]:
    """Start `python -m bulk` as a person would."""
    return subprocess.Popen(
        [sys.executable, "-m", "bulk", *words, "--nice", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONWARNINGS": "default"},
    )


def parts(out: Path) -> list[Path]:
    """Committed results."""
    return sorted(out.glob("part-*.parquet"))


def wait_for(what: Callable[[], object], driver: subprocess.Popen[bytes]) -> None:
    """Wait until something holds; fail when the driver ends before."""
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert driver.poll() is None, driver.communicate()[0].decode()
        assert time.monotonic() < deadline, "hang"
        time.sleep(0.02)


def check_exactly_once(out: Path, files: dict[str, bytes]) -> None:
    """Each input has one row, and nothing half-written is left beside."""
    assert sorted(row["id"] for row in rows_of(out)) == sorted(files)
    assert not list(out.glob("_*.part"))


def test_killed_driver_leaves_whole_shards(server: FakeServer, tmp_path: Path) -> None:
    """SIGKILL at random moments, three times; the next run goes on, and what was committed is not done again."""
    files = pictures(NUM)
    source, out = folder(tmp_path / "in", files), tmp_path / "out"
    words = [str(source), "--out", str(out), "--url", server.url, "--shard-size", "5"]
    server.model.latency_s = 0.1
    rng = random.Random(4)
    for _ in range(3):
        driver = start(*words)
        begun = len(parts(out))
        wait_for(lambda begun=begun: len(parts(out)) > begun, driver)  # type: ignore[misc]
        time.sleep(rng.uniform(0.0, 0.3))
        driver.kill()
        driver.communicate()
    kept = {part: part.stat().st_mtime_ns for part in parts(out)}
    assert 3 <= len(kept) < NUM // 5
    server.model.latency_s = 0.0
    run_bulk(bulk_config(source, out, server.url, shard_size=5))
    check_exactly_once(out, files)
    assert kept == {part: part.stat().st_mtime_ns for part in kept}


DYING = """
import os, signal, sys
from pathlib import Path
from bulk.__main__ import main
replace = Path.replace
def die(path, target):
    if Path(target).name == "part-0000002.parquet":
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(path, target)
Path.replace = die
main(sys.argv[1:])
"""


def test_kill_between_writing_and_renaming(server: FakeServer, tmp_path: Path) -> None:
    """A part is there whole or not at all: dying right before the rename leaves only a file that no reader takes for a result."""
    files = pictures(20)
    source, out = folder(tmp_path / "in", files), tmp_path / "out"
    words = [str(source), "--out", str(out), "--url", server.url, "--shard-size", "5", "--workers", "1"]
    done = subprocess.run([sys.executable, "-c", DYING, *words], cwd=ROOT, timeout=PATIENCE_S, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(parts(out)) == 2
    assert list(out.glob("_*.part"))
    run_bulk(bulk_config(source, out, server.url, shard_size=5))
    check_exactly_once(out, files)


def kill_an_actor(cluster: RayCluster, out: Path, driver: subprocess.Popen[bytes]) -> None:
    """SIGKILL one process that judges, after it has had time to begin."""
    begun = len(parts(out))
    wait_for(lambda: len(parts(out)) > begun + 1 and cluster.actors(), driver)
    cluster.actors()[0].kill()


def test_ray_cluster_survives_kills(server: FakeServer, tmp_path: Path) -> None:
    """Two nodes; a worker is killed, then the driver; afterwards every input has its one row."""
    pytest.importorskip("ray", reason="package ray is missing")
    files = pictures(NUM)
    source, out = folder(tmp_path / "in", files), tmp_path / "out"
    words = [str(source), "--out", str(out), "--url", server.url, "--shard-size", "3", "--worker-cpus", "0.5"]
    server.model.latency_s = 0.3
    with ray_cluster(2) as cluster:
        words += ["--ray", cluster.address]
        driver = start(*words)
        kill_an_actor(cluster, out, driver)
        begun = len(parts(out))
        wait_for(lambda: len(parts(out)) > begun, driver)
        driver.kill()
        driver.communicate()
        assert len(parts(out)) < NUM // 3
        server.model.latency_s = 0.0
        driver = start(*words)
        told = driver.communicate(timeout=PATIENCE_S)[0].decode()
        assert driver.returncode == 0, told
    check_exactly_once(out, files)
    assert f"images     {NUM} (" in told
