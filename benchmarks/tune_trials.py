"""What a search for settings measures of a candidate, and how it is kept so that an interrupted search can go on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.load import LoadReport, Schedule, run_closed
from benchmarks.payloads import Payloads
from benchmarks.senders import Route
from benchmarks.serving import Running, Settings
from benchmarks.stats import percentile
from benchmarks.subject import inspect
from benchmarks.worker import Worker

Goal = Literal["throughput", "latency"]
Figures = dict[str, float]
NOTHING_MS = 1e9
"""Latency of a candidate that answered nothing."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """The load that every candidate is put under."""

    worker: Worker
    files: list[bytes]
    num_callers: int
    slice_s: float

    def measure(self, running: Running) -> Figures:
        """Measure a server that runs. Raises TargetError or WorkerError."""
        subject = inspect(running.address, running.pids, "started here")
        schedule = Schedule(warmup_s=1.0, window_s=self.slice_s / 3, max_windows=3)
        route = Route(via="wire", url=running.address.url)
        payloads = Payloads(subject=subject, route=route, files=self.files, schedule=schedule)
        return figures_of(self.worker.call(run_closed, payloads.job("pixels", 1, self.num_callers)))


def figures_of(report: LoadReport) -> Figures:
    """What candidates are ranked by."""
    known = bool(report.latency_ms)
    mean_batch = report.statistics.mean_batch if report.statistics else None
    return {
        "images_per_s": report.images_per_s,
        "p50_ms": percentile(report.latency_ms, 50) if known else NOTHING_MS,
        "p99_ms": percentile(report.latency_ms, 99) if known else NOTHING_MS,
        "mean_batch": mean_batch or 0.0,
    }


def median_figures(rounds: list[Figures]) -> Figures:
    """Median of each figure over the rounds."""
    return {name: percentile([each[name] for each in rounds], 50) for name in rounds[0]}


@dataclass(kw_only=True)
class Trials:
    """What the search measured, by settings; kept in a file until the search is through."""

    path: Path
    stamp: str
    """Of model, configuration, cores and options: measurements of something else are not taken up."""
    known: dict[str, Figures] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Candidates that did not start, with the reason; tried again when the search is taken up."""

    @classmethod
    def open(cls, path: Path, stamp: str) -> Trials:
        """Read what an interrupted search left, if it was of the same thing."""
        try:
            payload = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            payload = {}
        return cls(
            path=path, stamp=stamp, known=payload.get("known", {}) if payload.get("stamp") == stamp else {}
        )

    def add(self, settings: Settings, figures: Figures) -> None:
        """Remember, at once on disk."""
        self.known[str(settings)] = figures
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps({"stamp": self.stamp, "known": self.known}), encoding="utf-8")
        part.replace(self.path)

    def close(self) -> None:
        """Forget: the next search measures anew."""
        self.path.unlink(missing_ok=True)
