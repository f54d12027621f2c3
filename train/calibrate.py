"""Calibration: per label a slope and an offset of the logit, so that a score of 0.7 means 7 of 10.

Platt's method (1999) or a temperature alone (Guo et al., 2017: no offset), whichever has the smaller log loss on held-out groups by
cross-validation; both with Platt's smoothed targets, which keep slopes finite where few examples separate perfectly. They are fitted
on image-level logits of a split that nothing else uses, and sit inside the served graph. A slope is always positive, so the order
of scores, and the maximum over an image's views, stay as they were. For `multiclass`: one temperature.

A label with examples of a few groups only, a dozen drawings of two things, says nothing of its own slope: it takes the one temperature
that is best for all labels without an offset together.

Isotonic regression is not tried: its steps tie scores that were apart, so thresholds between them can no longer be chosen, and a few
dozen positives a label give it a handful of steps.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar

from train.model import ModerationModel

MIN_GROUPS = 5
"""With examples of either kind from fewer groups a label takes the shared temperature."""
NUM_FOLDS = 5
PRIOR = 1.0
"""Weight of log(slope)^2: an unsharp pull towards 1, worth about one example."""


def calibrate(
    model: ModerationModel,
    logits: NDArray[np.float32],
    targets: NDArray[np.float32],
    groups: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Set `model`'s scale and bias from logits and targets [num_images, num_labels]; give what was fitted, per label.

    `groups` keeps variants of one thing on one side when the two methods are compared.
    """
    methods = ["temperature"] * logits.shape[1]
    if model.task == "multiclass":
        scale = np.full(logits.shape[1], _temperature(logits, targets))
        bias = np.zeros(logits.shape[1])
    else:
        names = np.arange(len(logits)).astype(str) if groups is None else np.asarray(groups)
        methods = [_method(logits[:, label], targets[:, label], names) for label in range(logits.shape[1])]
        shared = _shared(logits, targets, names, methods)
        fitted = [
            shared if method == "shared" else _fit(logits[:, label], targets[:, label], method)
            for label, method in enumerate(methods)
        ]
        scale, bias = (np.array(values) for values in zip(*fitted, strict=True))
    with torch.no_grad():
        model.scale.copy_(torch.from_numpy(scale))
        model.bias.copy_(torch.from_numpy(bias))
    return [
        {"method": method, "scale": a, "bias": b, "num_images": len(targets), "num_positives": int(n)}
        for method, a, b, n in zip(methods, scale.tolist(), bias.tolist(), targets.sum(0), strict=True)
    ]


def _enough(target: NDArray[np.float32], groups: NDArray[np.str_]) -> bool:
    """Whether positives and negatives come from `MIN_GROUPS` groups each."""
    return min(len(set(groups[target > 0.5])), len(set(groups[target < 0.5]))) >= MIN_GROUPS


def _shared(
    logits: NDArray[np.float32],
    targets: NDArray[np.float32],
    groups: NDArray[np.str_],
    methods: Sequence[str],
) -> tuple[float, float]:
    """Slope of all labels that need no offset together, an offset of 0; the plain score where even they are too few."""
    labels = [label for label, method in enumerate(methods) if method != "platt"]
    together = np.repeat(groups, len(labels))
    if not labels or not _enough(targets[:, labels].ravel(), together):
        return 1.0, 0.0
    return _fit(logits[:, labels].ravel(), targets[:, labels].ravel(), "temperature")


def _method(logit: NDArray[np.float32], target: NDArray[np.float32], groups: NDArray[np.str_]) -> str:
    """How one label is calibrated: `shared` with too few groups, else the method with the smaller log loss on held-out folds."""
    if not _enough(target, groups):
        return "shared"
    fold = np.array([zlib.crc32(group.encode()) % NUM_FOLDS for group in groups])
    losses = {"temperature": 0.0, "platt": 0.0}  # a tie goes to the simpler one
    for held_out in (fold == number for number in range(NUM_FOLDS)):
        for method in losses:
            slope, offset = _fit(logit[~held_out], target[~held_out], method)
            z = slope * logit[held_out].astype(np.float64) + offset
            losses[method] += float((np.logaddexp(0.0, z) - target[held_out] * z).sum())
    return min(losses, key=lambda method: losses[method])


def _fit(
    logit: NDArray[np.float32], target: NDArray[np.float32], method: str = "platt"
) -> tuple[float, float]:
    """Slope and offset of one label."""
    positives, negatives = float(target.sum()), float((1.0 - target).sum())
    smooth = np.where(target > 0.5, (positives + 1.0) / (positives + 2.0), 1.0 / (negatives + 2.0))
    values = logit.astype(np.float64)

    def loss(parameters: NDArray[np.float64]) -> float:
        z = np.exp(parameters[0]) * values + parameters[1:].sum()  # an offset of 0 where there is none
        return float((np.logaddexp(0.0, z) - smooth * z).sum() + PRIOR * parameters[0] ** 2)

    start = np.zeros(2 if method == "platt" else 1)
    found = minimize(loss, start, method="Nelder-Mead", options={"xatol": 1e-5, "fatol": 1e-6})
    return float(np.exp(found.x[0])), float(found.x[1:].sum())


def _temperature(logits: NDArray[np.float32], targets: NDArray[np.float32]) -> float:
    """Factor on all logits of a softmax that gives the true classes the highest likelihood."""
    values, truth = logits.astype(np.float64), targets.argmax(1)

    def loss(log_factor: float) -> float:
        z = np.exp(log_factor) * values
        return float((np.logaddexp.reduce(z, axis=1) - z[np.arange(len(z)), truth]).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-4.0, 4.0), method="bounded").x))
