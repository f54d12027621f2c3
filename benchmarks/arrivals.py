"""The open-loop load generator: requests leave when they are due, whether or not earlier ones were answered.

Latency is counted from the moment a request was *due*, not from when it got out, so that a stall of server or generator is charged
to every request it held up (no "coordinated omission", Tene 2013). The generator reports its own lateness; a run in which it, and
not the server, was the bottleneck is marked invalid.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import grpc
import numpy as np

from benchmarks import machine
from benchmarks.counters import Statistics
from benchmarks.load import server_values
from benchmarks.results import Point, Scalar
from benchmarks.senders import EXPIRED, QUEUE_FULL, error_kind, unary
from benchmarks.stats import percentile
from benchmarks.target import UNLIMITED, Address, Target

LATENESS_SHARE = 0.1
"""The generator may be late by this share of the SLO at its own 99th percentile."""
SENT_SHARE = 0.98
"""Of the requests that were due, this share must have left within the window."""


@dataclass(frozen=True, kw_only=True)
class OpenJob:
    """One rate to offer."""

    url: str
    messages: Sequence[bytes]
    rate_per_s: float
    duration_s: float
    slo_ms: float
    warmup_s: float = 1.0
    """Arrivals before the window that are not counted."""
    timeout_s: float = 10.0
    """gRPC deadline of each request, counted from when it leaves."""
    distribution: Literal["poisson", "constant"] = "poisson"
    seed: int = 0
    statistics: Address | None = None
    server_pids: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OpenReport:
    """What became of the requests that were due in the window."""

    latency_ms: list[float]
    """Of those that were answered, from due to answered."""
    lateness_ms: list[float]
    """Of all, from due to sent: the generator's own fault."""
    errors: dict[str, int]
    num_due: int
    duration_s: float
    offered_per_s: float
    slo_ms: float
    generator_cpu_s: float
    server_cpu_s: float | None
    statistics: Statistics | None
    interrupted: bool = False

    @property
    def goodput_per_s(self) -> float:
        """Answers within the SLO, a second."""
        return sum(value <= self.slo_ms for value in self.latency_ms) / self.duration_s

    @property
    def faults(self) -> list[str]:
        """Why the run cannot be trusted; empty when it can."""
        found = []
        late = percentile(self.lateness_ms, 99) if self.lateness_ms else 0.0
        if late > max(LATENESS_SHARE * self.slo_ms, 2.0):
            found.append(f"the generator was late by {late:.1f} ms at p99: it was the bottleneck")
        if len(self.lateness_ms) < SENT_SHARE * self.num_due and not self.interrupted:
            found.append(f"only {len(self.lateness_ms)} of {self.num_due} requests left in time")
        return found

    def meets_slo(self) -> bool:
        """Whether every request was answered and 99 of 100 within the SLO."""
        return not self.errors and bool(self.latency_ms) and percentile(self.latency_ms, 99) <= self.slo_ms

    def point(self, settings: dict[str, Scalar]) -> Point:
        """Turn it into a point of a result."""
        return Point(
            settings={**settings, "offered_per_s": self.offered_per_s},
            samples={"latency_ms": self.latency_ms, "lateness_ms": self.lateness_ms},
            values={
                "duration_s": self.duration_s,
                "num_due": self.num_due,
                "goodput_per_s": self.goodput_per_s,
                "answered_per_s": len(self.latency_ms) / self.duration_s,
                "num_queue_full": self.errors.get(QUEUE_FULL, 0),
                "num_expired": self.errors.get(EXPIRED, 0) + self.errors.get("deadline_exceeded", 0),
                "num_errors": sum(self.errors.values()),
                "generator_cpu_s": self.generator_cpu_s,
                "server_cpu_s": self.server_cpu_s,
                **server_values(self.statistics),
            },
            valid=not self.faults,
            notes=tuple(self.faults),
        )


@dataclass(kw_only=True)
class _Outcome:
    """Where the answers of the counted requests gather; callbacks run on gRPC's thread."""

    latency_ms: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    num_open: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def took(self, due: float, future: Any) -> None:
        """Record one answer."""
        now = time.perf_counter()
        error = future.exception()
        with self.lock:
            self.num_open -= 1
            if error is None:
                self.latency_ms.append((now - due) * 1000)
            else:
                kind = error_kind(error) if isinstance(error, grpc.RpcError) else type(error).__name__
                self.errors[kind] += 1


def due_times(job: OpenJob) -> list[float]:
    """Moments at which requests are due, in seconds from the start, warm-up included."""
    total_s = job.warmup_s + job.duration_s
    if job.distribution == "constant":
        return [float(each) for each in np.arange(0.0, total_s, 1 / job.rate_per_s)]
    rng = np.random.default_rng(job.seed)
    gaps = rng.exponential(1 / job.rate_per_s, size=int(total_s * job.rate_per_s * 1.5) + 50)
    times = np.cumsum(gaps)
    return [float(each) for each in times[times < total_s]]


def run_open(stop: threading.Event, job: OpenJob) -> OpenReport:
    """Offer one rate; to be called through a `Worker`."""
    times = due_times(job)
    outcome = _Outcome()
    target = Target(job.statistics) if job.statistics else None
    with grpc.insecure_channel(job.url, options=UNLIMITED) as channel:
        grpc.channel_ready_future(channel).result(timeout=job.timeout_s)
        before = target.statistics() if target else None
        cpu_before, server_before = sum(os.times()[:2]), machine.cpu_s(job.server_pids)
        lateness = _send_all(stop, job, unary(channel), times, outcome)
        _wait_for_answers(outcome, job.timeout_s + 1.0)
        after = target.statistics() if target else None
    if target is not None:
        target.close()
    due = [moment for moment in times if moment >= job.warmup_s]
    return OpenReport(
        latency_ms=outcome.latency_ms,
        lateness_ms=lateness,
        errors=dict(outcome.errors),
        num_due=len(due),
        duration_s=job.duration_s,
        offered_per_s=job.rate_per_s,
        slo_ms=job.slo_ms,
        generator_cpu_s=sum(os.times()[:2]) - cpu_before,
        server_cpu_s=machine.cpu_s(job.server_pids) - server_before if job.server_pids else None,
        statistics=after - before if after is not None and before is not None else None,
        interrupted=stop.is_set(),
    )


def _send_all(
    stop: threading.Event, job: OpenJob, call: Any, times: list[float], outcome: _Outcome
) -> list[float]:
    """Send each request when it is due; the lateness of the counted ones, in milliseconds."""
    lateness = []
    start = time.perf_counter() + 0.05
    for index, moment in enumerate(times):
        due = start + moment
        wait_s = due - time.perf_counter()
        if wait_s > 0:
            time.sleep(wait_s)
        if stop.is_set():
            break
        sent = time.perf_counter()
        future = call.future(job.messages[index % len(job.messages)], timeout=job.timeout_s)
        if moment >= job.warmup_s:
            with outcome.lock:
                outcome.num_open += 1
            future.add_done_callback(lambda done, due=due: outcome.took(due, done))
            if sent - start <= times[-1] + 1.0:
                lateness.append((sent - due) * 1000)
    return lateness


def _wait_for_answers(outcome: _Outcome, limit_s: float) -> None:
    """Requests that are due in the window count whenever they are answered."""
    deadline = time.perf_counter() + limit_s
    while outcome.num_open > 0 and time.perf_counter() < deadline:
        time.sleep(0.01)
