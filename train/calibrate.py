"""Calibration: per label a slope and an offset of the logit, so that a score of 0.7 means 7 of 10.

Platt's method with his smoothed targets (Platt, 1999), which keeps slopes finite where few examples separate perfectly, fitted on
image-level logits of a split that nothing else uses; the result sits inside the served graph. A slope is always positive, so the
order of scores, and the maximum over an image's views, stay as they were. For `multiclass`: one temperature (Guo et al., 2017).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar

from train.model import ModerationModel

MIN_POSITIVES = 5
"""With fewer examples of either kind a label keeps its plain score."""
PRIOR = 1.0
"""Weight of log(slope)^2: an unsharp pull towards 1, worth about one example."""


def calibrate(
    model: ModerationModel, logits: NDArray[np.float32], targets: NDArray[np.float32]
) -> list[dict[str, float]]:
    """Set `model`'s scale and bias from logits and targets [num_images, num_labels]; give what was fitted, per label."""
    if model.task == "multiclass":
        scale = np.full(logits.shape[1], _temperature(logits, targets))
        bias = np.zeros(logits.shape[1])
    else:
        fitted = [_platt(logits[:, label], targets[:, label]) for label in range(logits.shape[1])]
        scale, bias = (np.array(values) for values in zip(*fitted, strict=True))
    with torch.no_grad():
        model.scale.copy_(torch.from_numpy(scale))
        model.bias.copy_(torch.from_numpy(bias))
    return [
        {"scale": float(a), "bias": float(b), "num_images": len(targets), "num_positives": int(n)}
        for a, b, n in zip(scale, bias, targets.sum(0), strict=True)
    ]


def _platt(logit: NDArray[np.float32], target: NDArray[np.float32]) -> tuple[float, float]:
    """Slope and offset of one label."""
    positives, negatives = float(target.sum()), float((1.0 - target).sum())
    if min(positives, negatives) < MIN_POSITIVES:
        return 1.0, 0.0
    smooth = np.where(target > 0.5, (positives + 1.0) / (positives + 2.0), 1.0 / (negatives + 2.0))
    values = logit.astype(np.float64)

    def loss(parameters: NDArray[np.float64]) -> float:
        z = np.exp(parameters[0]) * values + parameters[1]
        return float((np.logaddexp(0.0, z) - smooth * z).sum() + PRIOR * parameters[0] ** 2)

    found = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-5, "fatol": 1e-6})
    return float(np.exp(found.x[0])), float(found.x[1])


def _temperature(logits: NDArray[np.float32], targets: NDArray[np.float32]) -> float:
    """Factor on all logits of a softmax that gives the true classes the highest likelihood."""
    values, truth = logits.astype(np.float64), targets.argmax(1)

    def loss(log_factor: float) -> float:
        z = np.exp(log_factor) * values
        return float((np.logaddexp.reduce(z, axis=1) - z[np.arange(len(z)), truth]).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-4.0, 4.0), method="bounded").x))
