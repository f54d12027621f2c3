"""Whether scores mean what they say: calibration error without the bias of small samples, and a test of calibration.

Plain ECE of a perfectly calibrated model is above zero, and the smaller the split the more; what pure chance gives is simulated from
the scores themselves and taken off. The same simulation gives the p-value of "these scores are calibrated".

Groups are drawn, not images: one draw decides all variants of a thing, each against its own score. Variants share their truth, so as
many draws as images would make chance look smaller than it is: on calibrated scores whose groups of up to six share their truth, such a test
objects in three of ten cases where it should in one of twenty (tests/test_train_metrics.py). With one image a group both are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 10
NUM_SIMULATIONS = 500


def _bins(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Bin of each image; bins hold equally many images, since most scores of a moderation model are near 0."""
    ranks = scores.argsort(kind="stable").argsort(kind="stable")
    return np.asarray(ranks * NUM_BINS // max(len(scores), 1), np.int64)


def _error(
    scores: NDArray[np.float64], truth: NDArray[np.float64], bins: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Expected calibration error for each row of truth [num, num_images]: mean distance of share and score over bins."""
    onehot = np.eye(NUM_BINS)[bins]
    return np.asarray(np.abs((truth - scores) @ onehot).sum(1) / len(scores))


def calibration_error(
    scores: NDArray[np.float32],
    truth: NDArray[np.float32],
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """ECE, ECE less what chance alone gives, and the p-value of being calibrated (small: it is not), for one label.

    `groups` names the thing that each image shows; without it every image counts as one.
    """
    if not len(scores):
        return {"ece": None, "ece_debiased": None, "p_value": None}
    values = np.clip(scores.astype(np.float64), 0.0, 1.0)
    bins = _bins(values)
    found = float(_error(values, truth.astype(np.float64)[None], bins)[0])
    rng = np.random.default_rng(seed)
    _, index = np.unique(range(len(values)) if groups is None else groups, return_inverse=True)
    draws = rng.random((NUM_SIMULATIONS, int(index.max()) + 1))[:, index]
    simulated = (draws < values).astype(np.float64)
    chance = _error(values, simulated, bins)
    p_value = (1.0 + float((chance >= found).sum())) / (NUM_SIMULATIONS + 1.0)
    return {"ece": found, "ece_debiased": max(0.0, found - float(chance.mean())), "p_value": p_value}


def curve(scores: NDArray[np.float32], truth: NDArray[np.float32]) -> list[tuple[float, float, int]]:
    """Points of a reliability diagram: mean score, share of positives and number of images of each bin."""
    bins = _bins(scores.astype(np.float64))
    points = []
    for each in np.unique(bins):
        chosen = bins == each
        points.append((float(scores[chosen].mean()), float(truth[chosen].mean()), int(chosen.sum())))
    return points
