"""Records what one replica's counters say at each load: `python benchmarks/autoscaling_record.py REPOSITORY`.

One instance with one thread gets Poisson arrivals at shares of its capacity, below and above it. The counters that the autoscaler's
metrics are made of are read every second; `autoscaling.py` simulates the autoscaler on them.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from benchmarks.arrivals import OpenJob, run_open
from benchmarks.counters import Statistics, TargetError
from benchmarks.results import Point, make_result, write_result
from benchmarks.serving import Settings, VariantError, serving
from benchmarks.target import Address, Target, pixel_message

SHARES = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0, 1.25, 1.6, 2.0)
PROBE_S = 4.0


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """Record one replica's counters at loads below and above its capacity."""

    repository: tyro.conf.Positional[Path]
    """Model repository, as `python -m export` writes it."""
    seconds: float = 10.0
    """Time at each load."""
    probe_per_s: float = 200.0
    """More images a second than the replica can answer, but not so many that refusing them costs it much."""
    out: Path = Path("benchmarks/results")
    """Folder of the result."""


def offer(address: Address, message: bytes, rate_per_s: float, duration_s: float) -> list[Statistics]:
    """Offer a rate and read the counters every second; the differences, the first second left out."""
    readings: list[Statistics] = []
    ended = threading.Event()

    def read() -> None:
        with Target(address) as target:
            while not ended.is_set():
                readings.append(target.statistics())
                ended.wait(1.0)

    reader = threading.Thread(target=read)
    reader.start()
    job = OpenJob(
        url=address.url, messages=[message], rate_per_s=rate_per_s, duration_s=duration_s, slo_ms=1000.0
    )
    run_open(threading.Event(), job)
    ended.set()
    reader.join()
    whole = readings[: int(duration_s) + 1]  # what follows only drains the queue
    return [after - before for before, after in itertools.pairwise(whole[1:])]


def point(share: float, rate_per_s: float, seconds: list[Statistics]) -> Point:
    """The seconds as a point of the result."""
    return Point(
        settings={"share_of_capacity": share, "offered_per_s": rate_per_s},
        samples={
            "num_requests": [each.num_requests for each in seconds],
            "num_executions": [each.num_executions for each in seconds],
            "queue_s": [each.queue_ns / 1e9 for each in seconds],
            "compute_s": [each.compute_infer_ns / 1e9 for each in seconds],
        },
    )


def record(config: RecordConfig) -> list[Point]:
    """Find the capacity, then offer each share of it. Raises VariantError or TargetError."""
    # One instance, so that a busy share is one number; under independent arrivals it hardly ever stalls (`export.serving.MIN_INSTANCES`).
    settings = Settings(num_instances=1, num_threads=1, max_queue_size=256, queue_timeout_us=2_000_000)
    with serving(config.repository, settings) as running:
        with Target(running.address) as target:
            image = target.spec.image
        pixels = np.random.default_rng(0).integers(0, 256, (1, image.height, image.width, 3), dtype=np.uint8)
        message = pixel_message(pixels)
        most = offer(running.address, message, config.probe_per_s, PROBE_S)
        capacity = float(np.median([each.num_requests for each in most]))
        print(f"one instance with one thread answers {capacity:.0f} images/s when more come")
        points = []
        for share in SHARES:
            time.sleep(2.5)  # what still waits from before expires
            seconds = offer(running.address, message, share * capacity, config.seconds)
            points.append(point(share, share * capacity, seconds))
            waited_s = sum(points[-1].samples["queue_s"]) / max(1, sum(points[-1].samples["num_requests"]))
            print(f"  {share:4.2f} of it: {1000 * waited_s:8.2f} ms in the queue")
    return points


def main() -> int:
    """Run the command; its exit status."""
    config = tyro.cli(RecordConfig, description=__doc__)
    try:
        points = record(config)
    except (VariantError, TargetError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(write_result(make_result("autoscaling-record", config, points), config.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
