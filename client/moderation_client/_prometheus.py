"""Prometheus, if asked for and installed: what is decided, how scores are distributed, and what training saw, for drift.

Scores are counted in the bins of the contract, one counter a label, bin and version; the counts of the training record stand
beside them as gauges. The drift itself is computed where all clients are seen: in Prometheus (`deploy/prometheus/rules.yaml`).
"""

from __future__ import annotations

import bisect
import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moderation_client._errors import MissingDependencyError, ModerationError
from moderation_client._telemetry import Telemetry, Trace
from moderation_client.contract import SCORE_EDGES, ModelSpec
from moderation_client.policy import Decision
from moderation_client.results import Verdict

BINS = tuple(f"{edge:g}" for edge in SCORE_EDGES)
DURATION_BUCKETS_S = (0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, kw_only=True)
class Meters:
    """The series of one process."""

    verdicts: Any
    decisions: Any
    scores: Any
    reference: Any
    durations: Any


@functools.cache
def process_meters() -> Meters:
    """Register the series, once a process. Raises MissingDependencyError with the pip line."""
    try:
        from prometheus_client import Counter, Gauge, Histogram  # noqa: PLC0415  an extra
    except ImportError as error:
        raise MissingDependencyError(
            'metrics=True needs prometheus-client: pip install "moderation-client[prometheus]"'
        ) from error
    return Meters(
        verdicts=Counter(
            "moderation_verdicts",
            "Verdicts; `label` led to the decision, `error` says why an image could not be judged",
            ("decision", "label", "error", "model_version", "policy_version"),
        ),
        decisions=Counter("moderation_decisions", "Decisions about images that were judged", ("decision",)),
        scores=Counter(
            "moderation_scores",
            "Scores of judged images by bin; `bin` is its upper edge",
            ("label", "bin", "model_version"),
        ),
        reference=Gauge(
            "moderation_reference_scores",
            "Scores of the held-out images of the training record by bin",
            ("label", "bin", "model_version"),
            multiprocess_mode="max",
        ),
        durations=Histogram(
            "moderation_request_duration_seconds",
            "Inference requests, retries included",
            ("error",),
            buckets=DURATION_BUCKETS_S,
        ),
    )


class PrometheusTelemetry(Telemetry):
    """Counts beside what `inner` does. Neither ids nor file names are recorded: they can be personal data."""

    def __init__(self, inner: Telemetry) -> None:
        """Register the series. Raises MissingDependencyError."""
        self._inner = inner
        self._meters = process_meters()
        for decision in Decision:  # from 0 on, so that a share that rises from nothing is a change
            self._meters.decisions.labels(str(decision))

    def context(self) -> Any:
        """Trace context of the calling code."""
        return self._inner.context()

    def request(self, context: Any, model: str, batch_size: int) -> Trace:
        """Begin a request."""
        return _TimedTrace(self._inner.request(context, model, batch_size), self._meters.durations)

    def verdict(self, verdict: Verdict) -> None:
        """Count the decision, and each label's score."""
        self._inner.verdict(verdict)
        version = verdict.model_version or ""
        error = verdict.error.code if verdict.error else ""
        self._meters.verdicts.labels(
            str(verdict.decision), verdict.label or "", error, version, verdict.policy_version or ""
        ).inc()
        if verdict.error is None:
            self._meters.decisions.labels(str(verdict.decision)).inc()
            for label, score in verdict.scores.items():
                place = min(bisect.bisect_left(SCORE_EDGES, score), len(BINS) - 1)
                self._meters.scores.labels(label, BINS[place], version).inc()

    def model(self, spec: ModelSpec) -> None:
        """Show what the training record says, and begin every bin at 0, so that a first score is an increase."""
        self._inner.model(spec)
        for label, counts in spec.score_counts.items() if spec.version is not None else ():
            for name, count in zip(BINS, counts, strict=True):
                self._meters.reference.labels(label, name, str(spec.version)).set(count)
                self._meters.scores.labels(label, name, str(spec.version))


class _TimedTrace(Trace):
    """One request, timed; spans are the inner one's business."""

    def __init__(self, inner: Trace, durations: Any) -> None:
        self._inner = inner
        self._durations = durations
        self._started = time.monotonic()
        self.headers: Mapping[str, str] = inner.headers

    def end(self, attempts: int, error: ModerationError | None, version: str | None = None) -> None:
        """Record the duration."""
        self._inner.end(attempts, error, version)
        kind = type(error).__name__ if error is not None else ""
        self._durations.labels(kind).observe(time.monotonic() - self._started)
