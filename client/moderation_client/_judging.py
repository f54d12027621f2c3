"""From scores to a verdict: every view is decided by the policy of the version that answered, and the worst one wins.

This is where "never fails open" is kept: an image without a complete, valid set of scores gets an error and the decision for
errors, and an incomplete look is at least REVIEW.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moderation_client._errors import ModerationError
from moderation_client.policy import Decision, Outcome, Policy
from moderation_client.results import ImageInfo, Timing, Verdict, VerdictError, Views

if TYPE_CHECKING:
    from moderation_client.contract import ModelSpec


@dataclass(frozen=True)
class JudgedView:
    """One view's outcome, and all that the verdict must say if this view decides."""

    index: int
    outcome: Outcome
    scores: list[float]
    spec: ModelSpec
    version: str
    policy: Policy


def judge_view(index: int, scores: list[float], spec: ModelSpec, version: str, policy: Policy) -> JudgedView:
    """Decide for one view from its `scores`, one a label."""
    return JudgedView(index, policy.decide(scores), scores, spec, version, policy)


def worst_of(views: list[JudgedView]) -> JudgedView:
    """View with the strictest decision, by the larger margin among equals."""
    return max(views, key=lambda view: (view.outcome.decision, view.outcome.margin))


def verdict_of(
    image_id: str | int,
    views: list[JudgedView],
    *,
    incomplete: str | None,
    info: ImageInfo | None,
    looked: Views | None,
    timing: Timing,
) -> Verdict:
    """Verdict for an image all of whose views were judged."""
    worst = worst_of(views) if len(views) > 1 else views[0]
    outcome = worst.outcome
    return Verdict(
        id=image_id,
        decision=max(outcome.decision, Decision.REVIEW) if incomplete else outcome.decision,
        label=outcome.label,
        score=outcome.score,
        threshold=outcome.threshold,
        scores=dict(zip(worst.spec.labels, worst.scores, strict=True)),
        reason=incomplete,
        model_name=worst.spec.name,
        model_version=worst.version,
        policy_name=worst.policy.name,
        policy_version=worst.policy.version,
        image=info,
        views=Views(total=looked.total, looked_at=looked.looked_at, worst=worst.index) if looked else None,
        timing=timing,
    )


def error_verdict(
    image_id: str | int,
    error: ModerationError,
    decision: Decision,
    *,
    info: ImageInfo | None = None,
    looked: Views | None = None,
    timing: Timing | None = None,
) -> Verdict:
    """Verdict for an image that could not be judged; `decision` is REVIEW or BLOCK."""
    assert decision is not Decision.ALLOW
    return Verdict(
        id=image_id,
        decision=decision,
        reason="the image could not be judged",
        error=VerdictError.of(error),
        image=info,
        views=looked,
        timing=timing or Timing(),
    )
