"""Whether anything grows: memory, descriptors and shared memory of server and client under mixed traffic with broken images.

    python benchmarks/soak.py                                 twenty minutes
    python benchmarks/soak.py --duration-s 360 --settle-s 120

Growth is the slope of Theil and Sen (Sen, 1968) over what was read after `settle_s`, with its 95 % interval.
"""

from __future__ import annotations

import contextlib
import datetime
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import tyro

from benchmarks import soak_page
from benchmarks.corpus import load_files
from benchmarks.environment import capture_environment
from benchmarks.machine import own_bytes, tree
from benchmarks.results import Bar, Point, Scalar, file_stem, make_result, write_result
from benchmarks.soak_traffic import TrafficJob, run_traffic
from benchmarks.target import Address, Target
from benchmarks.worker import Worker
from moderation_client.contract import ENCODED_MODEL_NAME, MODEL_NAME
from serve.config import ServerConfig
from serve.server import TritonServer
from serve.workspace import SHARED_MEMORY

PAGES = Path("runs/benchmarks")
READ_EVERY_S = 2.0
WHOSE = ("server", "client")


@dataclass(frozen=True, kw_only=True)
class SoakConfig:
    """How long, and how much."""

    repository: Path = Path("model_repository")
    """Published model with the one that takes files beside it."""
    duration_s: float = 1200.0
    settle_s: float = 300.0
    """What is read before counts for nothing: pools and caches fill."""
    rate_per_s: float = 8.0
    """Calls a second."""
    num_images: int = 4
    """In each call; one in twenty is broken."""
    num_files: int = 64
    """Different pictures."""
    out: Path = Path("benchmarks/results")
    """Folder for the JSON; the page goes to runs/benchmarks."""

    def __post_init__(self) -> None:
        """Check the values. Raises ValueError."""
        if not 0 < self.settle_s < self.duration_s:
            raise ValueError(f"settle_s must lie within the {self.duration_s:g} s, got {self.settle_s:g}")


class Reader:
    """Reads memory, descriptors and shared memory of both sides until closed."""

    def __init__(self, server: TritonServer, client_pid: int) -> None:
        self.samples: dict[str, list[float]] = {"read_s": [], "shared_mb": [], "shared_regions": []}
        self.samples |= {f"{whose}_{what}": [] for whose in WHOSE for what in ("mb", "descriptors")}
        self._server, self._client_pid = server, client_pid
        self._end, self._began = threading.Event(), time.monotonic()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(READ_EVERY_S):
            self._read()

    def _read(self) -> None:
        pids = {"server": tuple(self._server.pids()), "client": tree(self._client_pid)}
        self.samples["read_s"].append(time.monotonic() - self._began)
        for whose in WHOSE:
            self.samples[f"{whose}_mb"].append(own_bytes(pids[whose]) / 2**20)
            self.samples[f"{whose}_descriptors"].append(float(_descriptors(pids[whose])))
        regions = list(SHARED_MEMORY.glob(f"{self._server.shm_prefix}*"))
        self.samples["shared_regions"].append(float(len(regions)))
        # blocks, not length: a region is made large and used in part
        self.samples["shared_mb"].append(sum(each.stat().st_blocks for each in regions) * 512 / 2**20)


def _descriptors(pids: tuple[int, ...]) -> int:
    total = 0
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total += psutil.Process(pid).num_fds()
    return total


def measure(server: TritonServer, config: SoakConfig) -> Point:
    """Send, read, and count how the images ended."""
    files = load_files(None, num_images=config.num_files)
    job = TrafficJob(
        url=server.grpc_url,
        files=files,
        rate_per_s=config.rate_per_s,
        num_images=config.num_images,
        duration_s=config.duration_s,
    )
    with Worker() as worker:
        reader = Reader(server, worker.pid)
        try:
            outcomes = worker.call(run_traffic, job)
        finally:
            reader.close()
    values: dict[str, Scalar] = {f"images {key}": count for key, count in sorted(outcomes.items())}
    return Point(settings={"phase": "soak"}, samples=reader.samples, values=values)


def bars_of(point: Point, config: SoakConfig, num_left: int) -> list[Bar]:
    """What must hold."""
    wrong = sum(
        int(str(count))
        for key, count in point.values.items()
        if key not in ("images judged", "images refused")
    )
    found = [Bar(name="images failed or wrong", measured=wrong, limit=0, sense="at_most")]
    for key, limit in soak_page.LIMITS.items():
        growth = soak_page.growth(point, key, config.settle_s)
        name = f"growth of {soak_page.NAMES[key]} a minute"
        found.append(
            Bar(
                name=name,
                measured=growth.value,
                low=growth.low,
                high=growth.high,
                limit=limit,
                sense="at_most",
            )
        )
    found.append(Bar(name="shared regions left at the end", measured=num_left, limit=0, sense="at_most"))
    return found


def main() -> int:
    """Run the benchmark; exit status 1 when a bar is missed."""
    config = tyro.cli(SoakConfig, description=__doc__)
    began = datetime.datetime.now(datetime.timezone.utc)
    served = ServerConfig(
        repository=config.repository,
        load_models=(MODEL_NAME, ENCODED_MODEL_NAME),
        http_port=0,
        grpc_port=0,
        metrics_port=0,
    )
    with TritonServer(served) as server:
        prefix = server.shm_prefix
        with Target(Address(url=server.grpc_url, headers=server.admin_headers)) as target:
            environment = capture_environment(server=target.server, model=target.model)
        point = measure(server, config)
    num_left = len(list(SHARED_MEMORY.glob(f"{prefix}*")))
    bars = bars_of(point, config, num_left)
    result = make_result("soak", config, [point], bars=bars, environment=environment, started_at=began)
    print(soak_page.text(result))
    print(write_result(result, config.out))
    print(soak_page.page(result).write(PAGES / f"{file_stem(result)}.html"))
    return 1 if result.missed else 0


if __name__ == "__main__":
    sys.exit(main())
