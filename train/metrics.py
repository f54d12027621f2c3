"""How good scores are, with intervals: AUROC and average precision, and their spread over resampled groups.

Everything takes weights [num_resamples, num_images], so one sort serves a whole bootstrap. Resampling draws groups, not images: the
variants of one object rise and fall together, and intervals that ignore it are too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

Floats = NDArray[np.float64]
Metric = Callable[[NDArray[np.float32], NDArray[np.float32], Floats], Floats]
NUM_RESAMPLES = 1000
LEVEL = 0.95
UNDEFINED: dict[str, float | None] = {"value": None, "low": None, "high": None}


def _sums(scores: NDArray[np.float32], target: NDArray[np.float32], weights: Floats) -> tuple[Floats, Floats]:
    """Weight of positives and of negatives at each distinct score, highest first: [num_resamples, num_distinct] each."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    positive = weights[:, order] * target[order]
    negative = weights[:, order] * (1.0 - target[order])
    return np.add.reduceat(positive, starts, axis=1), np.add.reduceat(negative, starts, axis=1)


def auroc(scores: NDArray[np.float32], target: NDArray[np.float32], weights: Floats) -> Floats:
    """Area under the ROC curve for each row of weights; ties count half; NaN without both kinds."""
    positive, negative = _sums(scores, target, weights)
    total = positive.sum(1) * negative.sum(1)
    below = negative.sum(1, keepdims=True) - negative.cumsum(1) + 0.5 * negative
    return _ratio((positive * below).sum(1), total)


def average_precision(scores: NDArray[np.float32], target: NDArray[np.float32], weights: Floats) -> Floats:
    """Area under the precision-recall steps for each row of weights, as in scikit-learn; NaN without positives."""
    positive, negative = _sums(scores, target, weights)
    hits = positive.cumsum(1)
    precision = _ratio(hits, hits + negative.cumsum(1), empty=0.0)
    return _ratio((positive * precision).sum(1), positive.sum(1))


def recall_at(rate: float) -> Metric:
    """Make a metric: the largest recall at a false-positive rate of at most `rate`."""

    def recall(scores: NDArray[np.float32], target: NDArray[np.float32], weights: Floats) -> Floats:
        positive, negative = _sums(scores, target, weights)
        allowed = negative.cumsum(1) <= rate * negative.sum(1, keepdims=True) + 1e-9
        return _ratio((positive * allowed).sum(1), positive.sum(1))

    return recall


def _ratio(above: Floats, below: Floats, empty: float = np.nan) -> Floats:
    return np.divide(above, below, out=np.full_like(above, empty), where=below > 0.0)


def macro(
    metric: Metric, scores: NDArray[np.float32], targets: NDArray[np.float32], weights: Floats
) -> Floats:
    """Mean of a metric over the labels that have both kinds: scores and targets [num_images, num_labels].

    A resample that lost all positives of a label is NaN, which intervals leave out: its mean would be over fewer labels.
    """
    with np.errstate(invalid="ignore"):
        values = [metric(scores[:, label], targets[:, label], weights) for label in range(scores.shape[1])]
    known = [value for value in values if not np.isnan(value[0])]
    return np.mean(known, axis=0) if known else np.full(len(weights), np.nan)


def resampled(groups: Sequence[str], *, num: int = NUM_RESAMPLES, seed: int = 0) -> Floats:
    """Weights [1 + num, num_images]: first row all ones, then how often each image's group was drawn."""
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    num_groups = int(index.max()) + 1 if len(index) else 0
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(num_groups, np.full(num_groups, 1.0 / max(num_groups, 1)), size=num)
    return np.concatenate([np.ones((1, len(index))), drawn[:, index].astype(np.float64)])


def interval(values: Floats) -> dict[str, float | None]:
    """Point (the first value) and percentile interval of the others; None where it is not defined."""
    drawn = values[1:][~np.isnan(values[1:])]
    if np.isnan(values[0]) or not len(drawn):
        return dict(UNDEFINED)
    low, high = np.quantile(drawn, [(1.0 - LEVEL) / 2.0, (1.0 + LEVEL) / 2.0])
    return {"value": float(values[0]), "low": float(low), "high": float(high)}


def exact(value: float, num: int) -> dict[str, float | None]:
    """A share of `num` independent groups with its two-sided interval (Clopper and Pearson, 1934).

    For shares that no resample changes: 0 of 40 is not known to be 0. A share that is no whole number of groups counts as it is.
    """
    tail, hits = (1.0 - LEVEL) / 2.0, value * num
    low = 0.0 if hits <= 0.0 else float(beta.ppf(tail, hits, num - hits + 1.0))
    high = 1.0 if hits >= num else float(beta.ppf(1.0 - tail, hits + 1.0, num - hits))
    return {"value": value, "low": low, "high": high}
