"""How much load a server carries within an SLO: `python benchmarks/throughput.py --slo-p99-ms 200`, open loop, Poisson arrivals.

Requests arrive when they are due, as from a platform's users; latency counts from then. Three questions: the highest rate whose
p99 is within the SLO (found by bisection), the curve around it, and with --overload what is left at twice and three times as much.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from benchmarks import throughput_page
from benchmarks.arrivals import OpenJob, OpenReport, run_open
from benchmarks.corpus import CorpusError, load_files
from benchmarks.counters import TargetError
from benchmarks.ending import finish
from benchmarks.environment import capture_environment
from benchmarks.load import Schedule, run_closed
from benchmarks.payloads import Input, Payloads
from benchmarks.results import Bar, Point, Result, make_result
from benchmarks.senders import Route
from benchmarks.serving import Settings, VariantError
from benchmarks.stats import Interval, median_interval
from benchmarks.subject import Subject, SubjectConfig, end_cleanly_on_sigterm, fail, open_subject
from benchmarks.worker import Interrupted, Worker, WorkerError

NUM_CALLERS = 16
"""Closed-loop callers that give the first idea of the capacity."""
HIGHEST = 3.0
"""Times the capacity that --overload judges."""


@dataclass(frozen=True, kw_only=True)
class ThroughputConfig(SubjectConfig):
    """Find the highest rate within an SLO, and what happens above it."""

    slo_p99_ms: float = 200.0
    """What 99 of 100 requests must stay within, counted from when they were due."""
    rates: tuple[float, ...] = ()
    """Offer these rates (requests/s) instead of searching."""
    overload: bool = False
    """Also offer 1, 2 and 3 times the rate found, and judge what is left."""
    input: Input = "pixels"
    """`pixels` or `encoded` (model moderation_encoded)."""
    duration_s: float = 6.0
    """Length of each measured window."""
    warmup_s: float = 1.0
    """Arrivals before each window that are not counted."""
    num_steps: int = 6
    """Bisection steps of the search."""
    num_rounds: int = 5
    """Interleaved rounds of --overload."""
    distribution: Literal["poisson", "constant"] = "poisson"
    """Arrivals: independent users, or evenly spaced."""
    deadline_ms: float | None = None
    """gRPC deadline of each request; by default ten times the SLO."""
    max_queue_size: int | None = None
    """With --serve: requests that may wait; by default the repository's own setting."""
    queue_timeout_ms: float | None = None
    """With --serve: how long one may wait; by default the repository's own setting."""
    images: Path | None = None
    """Folder with pictures to send; by default photographs are made."""
    num_images: int = 32
    """Different pictures to cycle through."""
    seed: int = 0
    """Of the arrival times."""
    out: Path | None = None
    """Where to write, without ending; by default runs/benchmarks/<date>_<commit>_<machine>_throughput."""

    def __post_init__(self) -> None:
        """Check the values. Raises ValueError that names the option."""
        super().__post_init__()
        for name in ("slo_p99_ms", "duration_s", "num_steps", "num_rounds", "num_images"):
            if getattr(self, name) <= 0:
                raise ValueError(f"--{name.replace('_', '-')} must be above 0, got {getattr(self, name)}")
        if any(rate <= 0 for rate in self.rates):
            raise ValueError(f"--rates must be above 0, got {self.rates}")
        if not self.serve and (self.max_queue_size or self.queue_timeout_ms):
            raise ValueError(
                "--max-queue-size and --queue-timeout-ms need --serve: a running server keeps its own"
            )

    @property
    def settings(self) -> Settings | None:
        """Queue limits of the server that is started."""
        if self.max_queue_size is None and self.queue_timeout_ms is None:
            return None
        timeout_us = None if self.queue_timeout_ms is None else int(self.queue_timeout_ms * 1000)
        return Settings(max_queue_size=self.max_queue_size, queue_timeout_us=timeout_us)


@dataclass(kw_only=True)
class Session:
    """One run: offers rates and keeps what came of them."""

    config: ThroughputConfig
    subject: Subject
    payloads: Payloads
    load: Worker
    reports: list[tuple[str, float, OpenReport]] = field(default_factory=list)
    """Phase, multiple of the capacity, report."""

    def offer(self, rate_per_s: float, phase: str, multiple: float = 0.0) -> OpenReport:
        """Offer one rate. Raises Interrupted after Ctrl-C, with the part kept."""
        job = self.payloads.job(self.config.input, 1, 1)
        deadline_ms = self.config.deadline_ms or 10 * self.config.slo_p99_ms
        try:
            report = self.load.call(
                run_open,
                OpenJob(
                    url=self.subject.address.url,
                    messages=job.requests,
                    rate_per_s=rate_per_s,
                    duration_s=self.config.duration_s,
                    warmup_s=self.config.warmup_s,
                    slo_ms=self.config.slo_p99_ms,
                    timeout_s=deadline_ms / 1000,
                    distribution=self.config.distribution,
                    seed=self.config.seed + len(self.reports),
                    statistics=job.statistics,
                    server_pids=job.server_pids,
                ),
            )
        except Interrupted as stopped:
            self.reports.append((phase, multiple, stopped.partial))
            raise
        self.reports.append((phase, multiple, report))
        return report

    def capacity(self) -> float:
        """Closed-loop throughput: where the search begins."""
        job = self.payloads.job(self.config.input, 1, NUM_CALLERS)
        report = self.load.call(run_closed, job)
        return max(report.images_per_s, 1.0)

    def search(self) -> float:
        """Bisect for the highest rate whose run meets the SLO; 0 when none did."""
        high = 1.1 * self.capacity()
        low, best = 0.0, 0.0
        for _ in range(self.config.num_steps):
            middle = (low + high) / 2 if low else 0.7 * high
            report = self.offer(middle, "search")
            if report.meets_slo() and not report.faults:
                low, best = middle, max(best, middle)
            else:
                high = middle
        return best

    def overload(self, capacity_per_s: float) -> None:
        """Offer 1, 2 and 3 times the capacity in interleaved rounds."""
        for _ in range(self.config.num_rounds):
            for multiple in (1.0, 2.0, HIGHEST):
                self.offer(multiple * capacity_per_s, "overload", multiple)

    def run(self) -> bool:
        """Do everything that was asked for; True when Ctrl-C cut it short."""
        try:
            for rate in self.config.rates:
                self.offer(rate, "given")
            best = max(self.config.rates) if self.config.rates else self.search()
            if self.config.overload and best:
                self.overload(best)
        except (KeyboardInterrupt, Interrupted):
            return True
        return False

    def points(self) -> list[Point]:
        """Everything that was offered."""
        return [
            report.point({"phase": phase, "multiple": multiple, "input": self.config.input})
            for phase, multiple, report in self.reports
        ]


def overload_bars(session: Session) -> list[Bar]:
    """Judge what is left at three times the capacity, by the rounds in which the generator kept up; without one both bars are missed."""
    trusted = [(phase, times, each) for phase, times, each in session.reports if not each.faults]
    asked = any(times == HIGHEST for _, times, _ in session.reports)
    peak = max((each.goodput_per_s for _, _, each in trusted), default=0.0)
    if not asked or not peak:
        return []
    rounds = [each for phase, times, each in trusted if phase == "overload" and times == HIGHEST]
    slo_ms = session.config.slo_p99_ms
    kept = median_interval([each.goodput_per_s / peak for each in rounds] or [0.0])
    tail = median_interval([percentile_or_slo(each) for each in rounds] or [1000 * slo_ms])
    of = f"{len(rounds)} valid rounds" if rounds else "no valid round: the generator did not keep up"
    return [
        _bar(f"goodput at 3 x capacity ÷ peak goodput ({of})", kept, 0.9, "at_least"),
        _bar(f"p99 of answered requests at 3 x capacity, ms ({of})", tail, 2 * slo_ms, "at_most"),
    ]


def _bar(name: str, found: Interval, limit: float, sense: Literal["at_least", "at_most"]) -> Bar:
    return Bar(name=name, measured=found.value, low=found.low, high=found.high, limit=limit, sense=sense)


def percentile_or_slo(report: OpenReport) -> float:
    """p99 of the answered requests; endless (a thousand SLOs) when nothing was answered."""
    return report.point({}).summary().p99 if report.latency_ms else 1000 * report.slo_ms


def measure(config: ThroughputConfig) -> Result:
    """Run everything that was asked for. Raises TargetError, VariantError, CorpusError or WorkerError."""
    started_at = datetime.datetime.now(datetime.timezone.utc)
    files = load_files(config.images, num_images=config.num_images)
    with (
        open_subject(config, encoded=config.input == "encoded", settings=config.settings) as subject,
        Worker() as load,
    ):
        environment = capture_environment(server=subject.server, model=subject.model)
        route = Route(via="wire", url=subject.address.url)
        schedule = Schedule(warmup_s=1.0, window_s=1.0)
        payloads = Payloads(subject=subject, route=route, files=files, schedule=schedule)
        session = Session(config=config, subject=subject, payloads=payloads, load=load)
        interrupted = session.run()
    return make_result(
        "throughput",
        config,
        session.points(),
        bars=overload_bars(session),
        environment=environment,
        started_at=started_at,
        interrupted=interrupted,
    )


def main(config: ThroughputConfig) -> int:
    """Measure, print, write; 1 when a bar is missed, 130 after Ctrl-C."""
    try:
        result = measure(config)
    except (TargetError, VariantError, CorpusError, WorkerError) as error:
        fail(error)
    except KeyboardInterrupt:
        fail("interrupted before anything was measured")
    return finish(result, config.out, text=throughput_page.text, page=throughput_page.page)


if __name__ == "__main__":
    end_cleanly_on_sigterm()
    raise SystemExit(main(tyro.cli(ThroughputConfig)))
