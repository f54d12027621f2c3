"""What training minimises: per-label binary cross-entropy, weighted or focal, or softmax cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from moderation_client.contract import Task
from train.config import Loss
from train.sampling import Draw

FOCAL_GAMMA = 2.0
MOST_WEIGHT = 10.0
"""A label with five positives must not count a hundredfold: its noise would."""


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """Callable: logits and targets [N, num_labels], weight [N] -> mean loss."""

    task: Task
    loss: Loss
    smoothing: float
    positive_weight: Tensor
    """Factor of each label's positives, [num_labels]."""

    def __call__(self, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """Weighted mean over images, sum over labels."""
        logits = logits.float()
        if self.task == "multiclass":
            per_image = functional.cross_entropy(
                logits, targets, label_smoothing=self.smoothing, reduction="none"
            )
        else:
            per_image = self._per_label(logits, targets).sum(1)
        return (per_image * weight).sum() / weight.sum().clamp(min=1e-6)

    def _per_label(self, logits: Tensor, targets: Tensor) -> Tensor:
        smooth = targets * (1.0 - 2.0 * self.smoothing) + self.smoothing
        factor = self.positive_weight.to(logits) if self.loss == "weighted" else None
        loss = functional.binary_cross_entropy_with_logits(
            logits, smooth, pos_weight=factor, reduction="none"
        )
        if self.loss != "focal":
            return loss
        right = (logits.sigmoid() * targets + (1.0 - logits.sigmoid()) * (1.0 - targets)).detach()
        return (1.0 - right) ** FOCAL_GAMMA * loss


def positive_weight(targets: NDArray[np.float32]) -> Tensor:
    """Square root of negatives over positives, per label of targets [num_images, num_labels]."""
    positives = targets.sum(0)
    ratio = (len(targets) - positives) / np.maximum(positives, 1.0)
    return torch.from_numpy(np.clip(np.sqrt(ratio), 1.0, MOST_WEIGHT).astype(np.float32))


def draw_weights(targets: NDArray[np.float32], balance: float) -> NDArray[np.float64]:
    """Probability of drawing each image: as they come (0) up to every set of labels equally often (1)."""
    _, inverse, counts = np.unique(targets, axis=0, return_inverse=True, return_counts=True)
    weights = counts[inverse.reshape(-1)].astype(np.float64) ** -balance
    return np.asarray(weights / weights.sum())


def mix(images: Tensor, targets: Tensor, alpha: float, draw: Draw) -> tuple[Tensor, Tensor]:
    """MixUp (Zhang et al., 2018): blend each image [N, H, W, 3] and its targets with another's."""
    seed = int(torch.randint(2**31, (1,), generator=draw.generator))
    share = float(np.random.default_rng(seed).beta(alpha, alpha))
    share = max(share, 1.0 - share)
    order = torch.randperm(len(images), generator=draw.generator).to(images.device)
    return (
        share * images + (1.0 - share) * images[order],
        share * targets + (1.0 - share) * targets[order],
    )


def side_loss(scores: Tensor, kinds: Tensor) -> Tensor:
    """Loss of the side task on scores [N, num_kinds]; 0 with a gradient of 0 where no kind is known: DDP waits for each weight."""
    if not bool((kinds >= 0).any()):
        return scores.sum() * 0.0
    return functional.cross_entropy(scores, kinds, label_smoothing=0.1)
