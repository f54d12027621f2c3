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
    num_sent: int
    """Requests of the window that left, late or not."""
    errors: dict[str, int]
    num_due: int
    """In the part of the window that was run."""
    duration_s: float
    """Of that part: less than was asked after Ctrl-C."""
    offered_per_s: float
    slo_ms: float
    generator_cpu_s: float
    server_cpu_s: float | None
    statistics: Statistics | None
    interrupted: bool = False

    @property
    def unanswered(self) -> int:
        """Requests that left, and were neither answered nor refused when the generator gave up on them."""
        return max(0, self.num_sent - len(self.latency_ms) - sum(self.errors.values()))

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
        if self.errors or self.unanswered or not self.latency_ms:
            return False
        return percentile(self.latency_ms, 99) <= self.slo_ms

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
                "num_unanswered": self.unanswered,
                "num_errors": sum(self.errors.values()) + self.unanswered,
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
        sent = _send_all(stop, job, unary(channel), times, outcome)
        _wait_for_answers(outcome, job.timeout_s + 1.0)
        after = target.statistics() if target else None
    if target is not None:
        target.close()
    return OpenReport(
        latency_ms=list(outcome.latency_ms),
        lateness_ms=sent.lateness_ms,
        num_sent=sent.num_sent,
        errors=dict(outcome.errors),
        num_due=sum(job.warmup_s <= moment < job.warmup_s + sent.duration_s for moment in times),
        duration_s=max(sent.duration_s, 1e-9),
        offered_per_s=job.rate_per_s,
        slo_ms=job.slo_ms,
        generator_cpu_s=sent.generator_cpu_s,
        server_cpu_s=sent.server_cpu_s if job.server_pids else None,
        statistics=after - before if after is not None and before is not None else None,
        interrupted=stop.is_set(),
    )


@dataclass(kw_only=True)
class _Sending:
    """What the sender did in the window: the warm-up before it and the wait for the last answers are not counted."""

    lateness_ms: list[float] = field(default_factory=list)
    num_sent: int = 0
    begun: bool = False
    duration_s: float = 0.0
    generator_cpu_s: float = 0.0
    server_cpu_s: float = 0.0

    def begin(self, job: OpenJob) -> None:
        """Start counting, after the last request of the warm-up."""
        self.begun = True
        self.add_cpu(job, -1)

    def add_cpu(self, job: OpenJob, sign: int) -> None:
        """Read the CPU time of both sides: with -1 at the window's begin, with 1 at its end."""
        self.generator_cpu_s += sign * sum(os.times()[:2])
        self.server_cpu_s += sign * machine.cpu_s(job.server_pids)


def _send_all(
    stop: threading.Event, job: OpenJob, call: Any, times: list[float], outcome: _Outcome
) -> _Sending:
    """Send each request when it is due, until the window is over or `stop` is set."""
    sending = _Sending()
    start = time.perf_counter() + 0.05
    window_at, over_at = start + job.warmup_s, start + job.warmup_s + job.duration_s
    for index, moment in enumerate(times):
        if moment < job.warmup_s:
            if not _wait_until_due(stop, start + moment):
                return sending
            call.future(job.messages[index % len(job.messages)], timeout=job.timeout_s)
            continue
        if not sending.begun:
            sending.begin(job)
        if not _wait_until_due(stop, start + moment):
            break
        _send_counted(job, call, index, start + moment, over_at, sending, outcome)
    stop.wait(max(0.0, over_at - time.perf_counter()))
    sending.duration_s = max(0.0, min(time.perf_counter() - window_at, job.duration_s))
    if sending.begun:
        sending.add_cpu(job, 1)
    return sending


def _send_counted(
    job: OpenJob, call: Any, index: int, due: float, over_at: float, sending: _Sending, outcome: _Outcome
) -> None:
    """Send a request of the window; its lateness counts when it left not long after the window's end."""
    sent = time.perf_counter()
    future = call.future(job.messages[index % len(job.messages)], timeout=job.timeout_s)
    sending.num_sent += 1
    with outcome.lock:
        outcome.num_open += 1
    future.add_done_callback(lambda done: outcome.took(due, done))
    if sent <= over_at + 1.0:
        sending.lateness_ms.append((sent - due) * 1000)


def _wait_until_due(stop: threading.Event, due: float) -> bool:
    """Sleep until a moment; False when `stop` was set meanwhile."""
    wait_s = due - time.perf_counter()
    if wait_s > 0:
        time.sleep(wait_s)
    return not stop.is_set()


def _wait_for_answers(outcome: _Outcome, limit_s: float) -> None:
    """Requests that are due in the window count whenever they are answered."""
    deadline = time.perf_counter() + limit_s
    while outcome.num_open > 0 and time.perf_counter() < deadline:
        time.sleep(0.01)
