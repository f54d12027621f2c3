"""The closed-loop load generator: so many callers, each sending its next request when the last one is answered.

It runs in a process of its own (`benchmarks.worker`), warms up, and measures in windows until three in a row agree, so that a
figure is of the steady state or says that it is not. Latencies are of the requests that began in the windows, waited for to the end, so that a slow
one is not lost at the border. A closed loop cannot show what happens when requests arrive faster than they are answered; `benchmarks.arrivals` does that.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.counters import Statistics
from benchmarks.rates import answers_per_s
from benchmarks.results import Point, Scalar
from benchmarks.senders import Connection, Route, Send
from benchmarks.target import Address, Target

ERROR_PAUSE_S = 0.01
"""A caller that was refused waits this long, or it would do nothing but be refused."""
MAX_MESSAGES = 64
"""Prepared requests cycled through: enough that no cache answers, few enough to stay in memory."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long to measure."""

    warmup_s: float = 2.0
    """Load that is not counted."""
    window_s: float = 2.0
    """Length of one window."""
    num_windows: int = 3
    """Windows that must agree, and that are reported."""
    max_windows: int = 8
    """Give up waiting for agreement after so many."""
    tolerance: float = 0.1
    """Agreement: throughput and p50 of each window within this share of their mean."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One point to measure."""

    route: Route
    requests: Sequence[Any]
    """Prepared requests: serialised messages, lists of images, or HTTP bodies."""
    images_per_request: int
    concurrency: int
    schedule: Schedule = field(default_factory=Schedule)
    statistics: Address | None = None
    """Where the server's statistics are read; None when there are none."""
    server_pids: tuple[int, ...] = ()
    """Processes whose CPU time and memory are read."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """State of all counters at one moment."""

    at_s: float
    generator_cpu_s: float
    server_cpu_s: float
    statistics: Statistics | None


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What the generator saw of the requests that began during the windows that count."""

    latency_ms: list[float]
    ended_s: list[float]
    num_images: int
    duration_s: float
    images_per_s: float
    """Between the ends of lumps of answers: `num_images / duration_s` would be a multiple of the batch."""
    errors: dict[str, int]
    steady: bool
    generator_cpu_s: float
    server_cpu_s: float | None
    server_memory_bytes: int | None
    statistics: Statistics | None
    gpu: machine.GpuReading | None

    def point(self, settings: dict[str, Scalar]) -> Point:
        """Turn it into a point of a result."""
        notes = [] if self.steady else ["not steady: windows differ by more than the tolerance"]
        notes += [f"{count} x {kind}" for kind, count in self.errors.items()]
        return Point(
            settings=settings,
            samples={"latency_ms": self.latency_ms, "ended_s": self.ended_s},
            values={
                "duration_s": self.duration_s,
                "num_images": self.num_images,
                "images_per_s": self.images_per_s,
                "num_errors": sum(self.errors.values()),
                "generator_cpu_s": self.generator_cpu_s,
                "server_cpu_s": self.server_cpu_s,
                "server_memory_bytes": self.server_memory_bytes,
                **server_values(self.statistics),
                **gpu_values(self.gpu),
            },
            valid=bool(self.latency_ms),
            notes=tuple(notes),
        )


def server_values(found: Statistics | None) -> dict[str, Scalar]:
    """Mean split of a request inside the server, and the batches that formed."""
    if found is None:
        return {}
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    split: dict[str, Scalar] = {f"server_{part}_ms": found.mean_ms(part) for part in parts}
    return {**split, "mean_batch": found.mean_batch, "num_executions": found.num_executions}


def gpu_values(found: machine.GpuReading | None) -> dict[str, Scalar]:
    """Name the GPU's readings, where there is one."""
    if found is None:
        return {}
    return {
        "gpu_utilisation_percent": found.utilisation_percent,
        "gpu_power_w": found.power_w,
        "gpu_memory_bytes": found.memory_bytes,
    }


Record = tuple[float, float, str | None]
"""When it ended, how long it took (both in seconds), and the kind of error."""


def run_closed(stop: threading.Event, job: Job) -> LoadReport:
    """Measure one point; stops early, with what there is, when `stop` is set."""
    connection = Connection(job.route)
    target = Target(job.statistics) if job.statistics else None
    finished = threading.Event()
    records: list[list[Record]] = [[] for _ in range(job.concurrency)]
    callers = [
        threading.Thread(
            target=_call_repeatedly,
            args=(connection.sender(), job, index, finished, records[index]),
            daemon=True,
        )
        for index in range(job.concurrency)
    ]
    try:
        with machine.GpuWatch() as gpu:
            for caller in callers:
                caller.start()
            readings = _measure(stop, job, target, records)
    finally:
        finished.set()
        for caller in callers:
            caller.join(job.route.timeout_s)
        connection.close()
        if target is not None:
            target.close()
    return _report(job, readings, [record for each in records for record in each], gpu)


def _call_repeatedly(
    send: Send, job: Job, index: int, finished: threading.Event, records: list[Record]
) -> None:
    """Do what one caller does, until told that it is over."""
    turn = index
    while not finished.is_set():
        request = job.requests[turn % len(job.requests)]
        started = time.perf_counter()
        error = send(request)
        ended = time.perf_counter()
        records.append((ended, ended - started, error))
        turn += job.concurrency
        if error is not None:
            finished.wait(ERROR_PAUSE_S)


def _read(job: Job, target: Target | None) -> Reading:
    return Reading(
        at_s=time.perf_counter(),
        generator_cpu_s=sum(os.times()[:2]),
        server_cpu_s=machine.cpu_s(job.server_pids),
        statistics=target.statistics() if target else None,
    )


def _measure(
    stop: threading.Event, job: Job, target: Target | None, records: list[list[Record]]
) -> list[Reading]:
    """Read all counters at the border of every window, until enough windows agree."""
    schedule = job.schedule
    stop.wait(schedule.warmup_s)
    readings = [_read(job, target)]
    while len(readings) <= schedule.max_windows and not stop.is_set():
        stop.wait(schedule.window_s)
        readings.append(_read(job, target))
        if len(readings) > schedule.num_windows and is_steady(readings, records, schedule):
            break
    return readings[-(schedule.num_windows + 1) :]


def is_steady(readings: list[Reading], records: list[list[Record]], schedule: Schedule) -> bool:
    """Whether throughput and p50 of the last windows agree, as perf_analyzer judges it."""
    borders = [reading.at_s for reading in readings[-(schedule.num_windows + 1) :]]
    answered = np.array([(ended, took) for each in records for ended, took, error in list(each) if not error])
    if not answered.size:
        return False
    rates, medians = [], []
    for start, end in itertools.pairwise(borders):
        inside = answered[(answered[:, 0] >= start) & (answered[:, 0] < end), 1]
        if not inside.size:
            return False
        rates.append(answers_per_s(answered[:, 0].tolist(), start, end))
        medians.append(float(np.median(inside)))
    return all(_agree(values, schedule.tolerance) for values in (rates, medians))


def _agree(values: list[float], tolerance: float) -> bool:
    mean = sum(values) / len(values)
    return all(abs(value - mean) <= tolerance * mean for value in values)


def _counted(records: list[Record], start: float, end: float) -> list[Record]:
    """Requests that began in the window, however long they took, and those that it did not see begin nor end."""
    began = [(ended - took, ended) for ended, took, _ in records]
    return sorted(
        record
        for record, (from_s, to_s) in zip(records, began, strict=True)
        if start <= from_s < end or (from_s < start and to_s >= end)
    )


def _report(job: Job, readings: list[Reading], records: list[Record], gpu: machine.GpuWatch) -> LoadReport:
    first, last = readings[0], readings[-1]
    counted = _counted(records, first.at_s, last.at_s)
    good = [record for record in counted if record[2] is None]
    answered = [ended for ended, _, error in records if error is None]
    statistics = last.statistics - first.statistics if last.statistics and first.statistics else None
    return LoadReport(
        latency_ms=[took * 1000 for _, took, _ in good],
        ended_s=[ended - first.at_s for ended, _, _ in good],
        num_images=len(good) * job.images_per_request,
        duration_s=max(last.at_s - first.at_s, 1e-9),
        images_per_s=answers_per_s(answered, first.at_s, last.at_s) * job.images_per_request,
        errors=dict(Counter(kind for _, _, kind in counted if kind is not None)),
        steady=is_steady(readings, [records], job.schedule),
        generator_cpu_s=last.generator_cpu_s - first.generator_cpu_s,
        server_cpu_s=last.server_cpu_s - first.server_cpu_s if job.server_pids else None,
        server_memory_bytes=machine.memory_bytes(job.server_pids) if job.server_pids else None,
        statistics=statistics,
        gpu=gpu.mean(first.at_s, last.at_s),
    )
