"""From scores to a verdict inside the server: the client's types and policy, and the client's rule that nothing fails open."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from moderation_client import (
    Decision,
    ModerationError,
    Outcome,
    PolicyError,
    ServerFailedError,
    Timing,
    Verdict,
    VerdictError,
)
from moderation_client.images import DecodedImage

if TYPE_CHECKING:
    from encoded_versions import ServedVersion

FAILED_SCORE = 2.0
"""Score of every label of a picture that could not be judged.

Above 1, so it is no probability, and at or above every threshold: a caller who looks at nothing but `scores` flags the
picture. Zero would read as harmless, and so would NaN, because every comparison with it is false."""


@dataclass(kw_only=True)
class Job:
    """One picture on its way to a verdict."""

    id: str | int
    encoded: bytes
    image: DecodedImage | None = None
    error: ModerationError | None = None
    scores: list[Any] = field(default_factory=list)
    """float32 [num_labels] of each view."""
    timing: dict[str, float] = field(default_factory=dict)
    verdict: Verdict = field(init=False)
    started: float = field(default_factory=time.perf_counter)

    @contextlib.contextmanager
    def stopwatch(self, name: str) -> Iterator[None]:
        """Measure a step, in milliseconds."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timing[name] = (time.perf_counter() - start) * 1e3


def judge(job: Job, version: ServedVersion | None, on_error: Decision) -> None:
    """Set the job's verdict: the worst view's decision, or, where scores are missing or unusable, an error."""
    timing = Timing(**job.timing, total_ms=(time.perf_counter() - job.started) * 1e3, attempts=1)
    if job.error is None and (
        version is None or job.image is None or len(job.scores) != len(job.image.pixels)
    ):
        job.error = ServerFailedError("not every view of the image was scored")
    if job.error is None:
        try:
            job.verdict = _decided(job, version, timing)
            return
        except PolicyError as error:  # scores that are no probabilities
            job.error = error
    job.verdict = Verdict(
        id=job.id,
        decision=on_error,
        reason="the image could not be judged",
        error=VerdictError.of(job.error),
        image=job.image.info if job.image is not None else None,
        views=job.image.views if job.image is not None else None,
        timing=timing,
    )


def _decided(job: Job, version: ServedVersion, timing: Timing) -> Verdict:
    assert job.image is not None
    outcomes: list[Outcome] = [version.policy.decide(scores.tolist()) for scores in job.scores]
    worst = max(range(len(outcomes)), key=lambda index: (outcomes[index].decision, outcomes[index].margin))
    outcome = outcomes[worst]
    scores = job.scores[worst].tolist()
    incomplete = job.image.incomplete
    return Verdict(
        id=job.id,
        decision=max(outcome.decision, Decision.REVIEW) if incomplete else outcome.decision,
        label=outcome.label,
        score=outcome.score,
        threshold=outcome.threshold,
        scores=dict(zip(version.spec.labels, scores, strict=True)),
        reason=incomplete,
        model_name=version.spec.name,
        model_version=str(version.number),
        policy_name=version.policy.name,
        policy_version=version.policy.version,
        image=job.image.info,
        views=replace(job.image.views, worst=worst),
        timing=timing,
    )
