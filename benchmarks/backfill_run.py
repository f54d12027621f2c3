"""The backfill that is measured: its catalogue, its driver as a process of its own, what is killed, and what its result holds."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from benchmarks.corpus import photograph
from benchmarks.environment import ROOT
from benchmarks.ray_cluster import RayCluster
from moderation_client import ModerationClient

WAIT_S = 600.0
BROKEN = b"\xff\xd8\xff this is no picture"


class BackfillError(Exception):
    """The backfill ended in a way that it should not; the message has its last words."""


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """A table of paths: many ids, few files, the first of which is broken."""

    folder: Path
    num_images: int
    num_files: int

    @property
    def table(self) -> Path:
        """Parquet file to judge."""
        return self.folder / "catalogue.parquet"

    @property
    def num_broken(self) -> int:
        """Rows that point to the broken file."""
        return len(range(0, self.num_images, self.num_files))

    def write(self) -> None:
        """Make files and table."""
        self.folder.mkdir(parents=True)
        for index in range(self.num_files):
            content = photograph(index, 1080, 810) if index else BROKEN
            (self.folder / f"{index:04d}.jpg").write_bytes(content)
        names = [f"{index % self.num_files:04d}.jpg" for index in range(self.num_images)]
        pq.write_table(pa.table({"id": self.ids(), "path": names}), self.table)

    def ids(self) -> list[str]:
        """Id of every row."""
        return [f"image-{index:06d}" for index in range(self.num_images)]

    def paths(self) -> list[str]:
        """Files that can be judged."""
        return [str(self.folder / f"{index:04d}.jpg") for index in range(1, self.num_files)]


def stream_rate(stop: threading.Event, url: str, paths: list[str], duration_s: float) -> float:
    """Images a second of one client that streams the same pictures, as long as asked; to be called through a `Worker`.

    The first fifth of the time is not counted.
    """
    num_counted, began = 0, time.perf_counter()
    first = last = None
    with ModerationClient(url) as client:
        for _ in client.moderate_stream(itertools.cycle(paths)):
            last = time.perf_counter()
            if last - began > duration_s or stop.is_set():
                break
            if last - began > duration_s / 5:
                first = first or last
                num_counted += 1
    assert first is not None
    assert last is not None
    return num_counted / (last - first)


@dataclass(kw_only=True)
class Backfill:
    """`python -m bulk` on a cluster."""

    catalogue: Catalogue
    url: str
    cluster: RayCluster
    out: Path
    shard_size: int
    max_batch: int
    num_kills: Counter[str] = field(default_factory=Counter)
    total_s: float = 0.0
    """Time in which a driver ran, starts included."""
    _driver: subprocess.Popen[bytes] | None = None
    _started: float = 0.0

    def start(self) -> None:
        """Start the driver, for the first time or again."""
        command = [sys.executable, "-m", "bulk", str(self.catalogue.table), "--out", str(self.out)]
        command += ["--url", self.url, "--ray", self.cluster.address, "--workers", "2"]
        command += ["--shard-size", str(self.shard_size), "--max-batch", str(self.max_batch)]
        command += [
            "--max-in-flight",
            "1",
        ]  # of each worker: one an instance, so that no bulk request waits in the server
        log = self.out.with_suffix(".log")
        with log.open("ab") as output:
            self._driver = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
        self._started = time.monotonic()

    def num_parts(self) -> int:
        """Shards that are committed."""
        return len(list(self.out.glob("part-*.parquet")))

    def wait_for_parts(self, number: int) -> None:
        """Wait until so many more shards are committed. Raises BackfillError when the driver ends or nothing happens."""
        wanted = self.num_parts() + number
        self._wait(lambda: self.num_parts() >= wanted)

    def _wait(self, what: Callable[[], bool]) -> None:
        assert self._driver is not None
        deadline = time.monotonic() + WAIT_S
        while not what():
            if self._driver.poll() is not None or time.monotonic() > deadline:
                raise BackfillError(f"the backfill stopped early: {self._words()}")
            time.sleep(0.2)

    def _words(self) -> str:
        return self.out.with_suffix(".log").read_text(errors="replace")[-2000:]

    def rate_during(self, duration_s: float) -> float:
        """Images a second, by the moments at which shards were committed within a window."""
        began = time.time()
        time.sleep(duration_s)
        moments = sorted(
            moment for part in self.out.glob("part-*.parquet") if (moment := part.stat().st_mtime) >= began
        )
        if len(moments) < 3:
            raise BackfillError(f"only {len(moments)} shards in {duration_s:g} s: the window is too short")
        return self.shard_size * (len(moments) - 1) / (moments[-1] - moments[0])

    def survive(self) -> None:
        """Lose a worker twice and the driver once, go on, and end well."""
        self.kill_worker()
        self.kill_worker()
        self.kill_driver()
        self.start()
        self.finish()

    def kill_worker(self) -> None:
        """SIGKILL a process that judges, in the middle of its work."""
        self.wait_for_parts(3)
        self._wait(lambda: bool(self.cluster.actors()))
        victim: psutil.Process = self.cluster.actors()[0]
        victim.kill()
        self.num_kills["worker"] += 1

    def kill_driver(self) -> None:
        """SIGKILL the driver, in the middle of its work."""
        self.wait_for_parts(3)
        assert self._driver is not None
        self._driver.kill()
        self._driver.wait()
        self.total_s += time.monotonic() - self._started
        self.num_kills["driver"] += 1

    def finish(self) -> None:
        """Wait for the end. Raises BackfillError when it is not a good one."""
        assert self._driver is not None
        if self._driver.wait(timeout=3 * WAIT_S):
            raise BackfillError(f"the backfill failed: {self._words()}")
        self.total_s += time.monotonic() - self._started

    def close(self) -> None:
        """End the driver if it still runs."""
        if self._driver is not None and self._driver.poll() is None:
            self._driver.kill()
            self._driver.wait()

    def rows(self) -> tuple[list[str], int]:
        """Every row's id, and how many rows tell of an error."""
        found = pyarrow.dataset.dataset(self.out).to_table(columns=["id", "error"]).to_pydict()
        return found["id"], sum(error is not None for error in found["error"])
