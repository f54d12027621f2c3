"""How much of the in-process speed the server keeps: both measured in interleaved rounds of one run, never from two runs.

A round runs every in-process mode and then the server under load, a few seconds each, so that a noisy neighbour or a
throttled CPU moves both sides of the ratio. The ratio is to the best in-process mode of the whole run.
"""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks.environment import cpu_quota
from benchmarks.in_process import Mode, Reading, modes, run_mode
from benchmarks.load import Job, LoadReport, run_closed
from benchmarks.results import Bar, Point
from benchmarks.stats import Ratio, median_interval, percentile, ratio
from benchmarks.worker import Interrupted, Worker

ADDED_LIMIT_MS = 2.0
TINY = 1e-9
"""A round in which the server answered nothing is a ratio of nearly nothing, not an error."""


@dataclass(frozen=True, kw_only=True)
class CeilingReport:
    """Readings of all rounds."""

    in_process: dict[str, list[Reading]]
    served: list[LoadReport]
    num_callers: int

    @property
    def best(self) -> str:
        """Mode with the highest median throughput."""
        return max(
            self.in_process,
            key=lambda name: statistics.median(each.images_per_s for each in self.in_process[name]),
        )

    @property
    def ratio(self) -> Ratio:
        """Served throughput over in-process throughput in its best mode."""
        served = [max(each.images_per_s, TINY) for each in self.served]
        return ratio(served, [each.images_per_s for each in self.in_process[self.best]])

    @property
    def mean_batch(self) -> float | None:
        """Images per execution while the server was under load, over all rounds."""
        known = [each.statistics for each in self.served if each.statistics is not None]
        executions = sum(each.num_executions for each in known)
        return sum(each.num_images for each in known) / executions if executions else None

    def points(self) -> list[Point]:
        """One point a mode and one for the server, a sample a round."""
        found = [
            Point(
                settings={"kind": "in process", "mode": name},
                samples={
                    "images_per_s": [each.images_per_s for each in readings],
                    "latency_ms": [value for each in readings for value in each.latency_ms],
                },
                values={"num_rounds": len(readings)},
            )
            for name, readings in self.in_process.items()
        ]
        rates = [each.images_per_s for each in self.served]
        latencies = [value for each in self.served for value in each.latency_ms]
        served = Point(
            settings={"kind": "served", "mode": "served", "callers": self.num_callers},
            samples={"images_per_s": rates, "latency_ms": latencies},
            values={"num_rounds": len(rates), "mean_batch": self.mean_batch},
        )
        return [*found, served]


def measure_ceiling(
    path: Path,
    job: Job,
    *,
    load: Worker,
    num_rounds: int,
    slice_s: float,
    only: tuple[Mode, ...] | None = None,
) -> CeilingReport:
    """Run `num_rounds` of in-process modes and served load. Raises Interrupted with what there was on Ctrl-C."""
    chosen = only or modes(max(1, int(cpu_quota())))
    in_process: dict[str, list[Reading]] = {mode.name: [] for mode in chosen}
    report = CeilingReport(in_process=in_process, served=[], num_callers=job.concurrency)
    try:
        with Worker() as reference:
            for index in tqdm(range(num_rounds), desc="in process and served", disable=None):
                order = chosen if index % 2 == 0 else tuple(reversed(chosen))
                readings = {mode.name: reference.call(run_mode, path, mode, slice_s) for mode in order}
                served = load.call(run_closed, job)
                for name, reading in readings.items():
                    report.in_process[name].append(reading)
                report.served.append(served)
    except (Interrupted, KeyboardInterrupt):
        raise Interrupted(report) from None
    return report


def added_latency_bar(report: CeilingReport) -> Bar:
    """Judge what a lone caller waits beyond the same inference in process, by the medians of the rounds."""
    served = [percentile(each.latency_ms, 50) for each in report.served]
    alone = [percentile(each.latency_ms, 50) for each in report.in_process[report.best]]
    added = median_interval([ours - theirs for ours, theirs in zip(served, alone, strict=True)])
    return Bar(
        name="added latency of a lone caller over the same inference in process, p50 ms",
        measured=added.value,
        low=added.low,
        high=added.high,
        limit=ADDED_LIMIT_MS,
        sense="at_most",
    )


def ceiling_bars(
    report: CeilingReport, *, limit: float, goal: float | None = None, one_instance: bool = False
) -> list[Bar]:
    """Judge what a server must reach: throughput near the ceiling.

    Batches must really form where there is one instance; several that take requests as they come may do without.
    """
    found, num_callers = report.ratio.interval, report.num_callers
    caution = report.ratio.caution
    who = f"{num_callers} caller{'' if num_callers == 1 else 's'}"
    ratio_bar = Bar(
        name=f"images/s served, {who} ÷ in-process ONNX Runtime ({report.best}), same file{caution}",
        measured=found.value,
        low=found.low,
        high=found.high,
        limit=limit,
        sense="at_least",
        ratio=True,
    )
    bars = [ratio_bar] + ([dataclasses.replace(ratio_bar, limit=goal, goal=True)] if goal else [])
    if num_callers == 1:
        return [*bars, added_latency_bar(report)]
    if one_instance and report.mean_batch is not None:
        name = f"mean executed batch, {num_callers} single-image callers on one instance"
        bars.append(Bar(name=name, measured=report.mean_batch, limit=1.5, sense="at_least"))
    return bars
