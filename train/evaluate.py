"""What a model is worth on a split: ranking, calibration and decisions, each with an interval over resampled groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moderation_client.policy import Decision, Policy
from train import metrics, reliability
from train.metrics import Floats, interval


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A split with its scores: everything evaluation needs, nothing of images or networks."""

    labels: tuple[str, ...]
    scores: NDArray[np.float32]
    """Calibrated, [num_images, num_labels]."""
    raw: NDArray[np.float32]
    """Before calibration, [num_images, num_labels]."""
    truth: NDArray[np.float32]
    """0 or 1, [num_images, num_labels]."""
    groups: tuple[str, ...]
    harmful: NDArray[np.bool_]
    """Which labels are policy labels, [num_labels]: all but a `neutral` class."""

    @property
    def unsafe(self) -> NDArray[np.float32]:
        """Whether an image shows any policy label, 0 or 1, [num_images]."""
        return np.asarray(self.truth[:, self.harmful].max(1) > 0.5, dtype=np.float32)

    @property
    def worst(self) -> NDArray[np.float32]:
        """Largest score of a policy label, [num_images]."""
        return np.asarray(np.max(self.scores[:, self.harmful], axis=1), dtype=np.float32)


def evaluate(scored: Scored, policy: Policy, prevalence: float) -> dict[str, Any]:
    """Everything that is reported of one split, JSON-ready; intervals are 95 % over 1,000 resamples of groups."""
    weights = metrics.resampled(scored.groups)
    columns = np.flatnonzero(scored.harmful)
    scores, truth = scored.scores[:, columns], scored.truth[:, columns]
    return {
        "num_images": len(scores),
        "num_groups": len(set(scored.groups)),
        "num_harmless": int((scored.unsafe == 0).sum()),
        "auroc": interval(metrics.auroc(scored.worst, scored.unsafe, weights)),
        "macro_ap": interval(metrics.macro(metrics.average_precision, scores, truth, weights)),
        "macro_auroc": interval(metrics.macro(metrics.auroc, scores, truth, weights)),
        "labels": {scored.labels[column]: _label(scored, column, policy, weights) for column in columns},
        "decisions": decisions(scored, policy, weights, prevalence),
    }


def _label(scored: Scored, column: int, policy: Policy, weights: Floats) -> dict[str, Any]:
    scores, truth = scored.scores[:, column], scored.truth[:, column]
    threshold = policy.thresholds[scored.labels[column]]
    found = {
        "num_positives": int(truth.sum()),
        "num_positive_groups": len({scored.groups[index] for index in np.flatnonzero(truth > 0.5)}),
        "ap": interval(metrics.average_precision(scores, truth, weights)),
        "auroc": interval(metrics.auroc(scores, truth, weights)),
        "recall_at_1_percent_fpr": interval(metrics.recall_at(0.01)(scores, truth, weights)),
        "recall_at_5_percent_fpr": interval(metrics.recall_at(0.05)(scores, truth, weights)),
        "calibration": {
            "before": reliability.calibration_error(scored.raw[:, column], truth, scored.groups),
            "after": reliability.calibration_error(scores, truth, scored.groups),
        },
    }
    for name in ("review", "block"):
        edge = getattr(threshold, name)
        found[f"at_{name}"] = None if edge is None else _at(scores >= edge, truth, weights, scored.groups)
    return found


def _at(
    flagged: NDArray[np.bool_], truth: NDArray[np.float32], weights: Floats, groups: Sequence[str]
) -> dict[str, Any]:
    """Precision and recall of what is at or above a threshold."""
    return {
        "precision": share(truth > 0.5, flagged, weights, groups),
        "recall": share(flagged, truth > 0.5, weights, groups),
        "num_flagged": int(flagged.sum()),
    }


def share(
    what: NDArray[np.bool_], of: NDArray[np.bool_], weights: Floats, groups: Sequence[str]
) -> dict[str, float | None]:
    """Share of the images `of` that are also `what`, with its interval: exact over groups where resampling gives no width."""
    total = weights @ of
    values = np.divide(weights @ (what & of), total, out=np.full(len(weights), np.nan), where=total > 0.0)
    found = interval(values)
    if found["value"] is None or found["low"] != found["high"]:
        return found
    return metrics.exact(found["value"], len({groups[index] for index in np.flatnonzero(of)}))


def decide(scores: NDArray[np.float32], policy: Policy) -> NDArray[np.int64]:
    """Decision of each image, [num_images]: 0 allow, 1 review, 2 block."""
    return np.array([int(policy.decide(row).decision) for row in np.clip(scores, 0.0, 1.0)], np.int64)


def decisions(scored: Scored, policy: Policy, weights: Floats, prevalence: float) -> dict[str, Any]:
    """Who is decided how: harmful images missed, harmless ones blocked, the review share, and what that means in the world."""
    decided = decide(scored.scores, policy)
    unsafe = scored.unsafe > 0.5
    rates: dict[str, Mapping[str, float | None]] = {}
    for word, kind in (("harmful", unsafe), ("harmless", ~unsafe)):
        for decision in Decision:
            rates[f"{word}_{decision}"] = share(decided == decision, kind, weights, scored.groups)
    return {
        "confusion": {
            word: {str(decision): int((decided[kind] == decision).sum()) for decision in Decision}
            for word, kind in (("harmful", unsafe), ("harmless", ~unsafe))
        },
        "review_share": share(
            decided == Decision.REVIEW, np.ones(len(decided), bool), weights, scored.groups
        ),
        **rates,
        "in_the_world": _in_the_world(rates, prevalence),
    }


def _in_the_world(
    rates: Mapping[str, Mapping[str, float | None]], prevalence: float
) -> dict[str, float | None]:
    """Precision and reviews per million at the stated prevalence; the split's own share of positives is not the world's.

    The precision of what never happens is None.
    """

    def mixed(decision: str) -> tuple[float, float]:
        harmful, harmless = (rates[f"{word}_{decision}"]["value"] or 0.0 for word in ("harmful", "harmless"))
        return prevalence * harmful, (1.0 - prevalence) * harmless

    blocked, reviewed, allowed = mixed("block"), mixed("review"), mixed("allow")
    return {
        "prevalence": prevalence,
        "block_precision": blocked[0] / sum(blocked) if sum(blocked) else None,
        "review_precision": reviewed[0] / sum(reviewed) if sum(reviewed) else None,
        "reviews_per_million": 1e6 * sum(reviewed),
        "missed_per_million": 1e6 * allowed[0],
        "false_blocks_per_million": 1e6 * blocked[1],
    }


def paired_difference(
    metric: metrics.Metric, ours: Scored, other_scores: NDArray[np.float32]
) -> dict[str, float | None]:
    """Macro metric of ours minus that of other scores for the same images, over the same resamples."""
    weights = metrics.resampled(ours.groups)
    columns = np.flatnonzero(ours.harmful)
    truth = ours.truth[:, columns]
    return interval(
        metrics.macro(metric, ours.scores[:, columns], truth, weights)
        - metrics.macro(metric, other_scores[:, columns], truth, weights)
    )


def slices(scored: Scored, names: Sequence[str], smallest: int = 20) -> list[dict[str, Any]]:
    """Unsafe-vs-harmless AUROC of each value of a column, worst first; values with too few images stand last, with the reason."""
    found = [
        _slice(scored, name, np.array([each == name for each in names]), smallest)
        for name in sorted(set(names))
    ]
    return sorted(found, key=lambda each: (each["auroc"]["value"] is None, each["auroc"]["value"] or 0.0))


def _slice(scored: Scored, name: str, chosen: NDArray[np.bool_], smallest: int) -> dict[str, Any]:
    """One value of a column; `left_out` says why it has no figure."""
    num, positives = int(chosen.sum()), int(scored.unsafe[chosen].sum())
    row: dict[str, Any] = {"name": name, "num_images": num, "num_positives": positives}
    if num < smallest:
        return {**row, "auroc": metrics.UNDEFINED, "left_out": f"fewer than {smallest} images"}
    if positives in {0, num}:
        kind = "harmful" if positives else "harmless"
        return {**row, "auroc": metrics.UNDEFINED, "left_out": f"all its images are {kind}"}
    groups = [group for group, here in zip(scored.groups, chosen, strict=True) if here]
    weights = metrics.resampled(groups, num=300)
    return {**row, "auroc": interval(metrics.auroc(scored.worst[chosen], scored.unsafe[chosen], weights))}
