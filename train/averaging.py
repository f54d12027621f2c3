"""Weight averaging with the network before fine-tuning (WiSE-FT, Wortsman et al., 2022, https://arxiv.org/abs/2109.01903).

Fine-tuning gains on what it was shown and loses on what it was not; a point between the two sets of weights keeps most of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train import metrics
from train.data import Example
from train.model import ModerationModel
from train.pixels import EvaluationImages
from train.scoring import image_logits


def snapshot(model: ModerationModel) -> dict[str, Tensor]:
    """Copy of all weights."""
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def load_mixture(
    model: ModerationModel, start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float
) -> None:
    """Set the weights to `share` of `end` and the rest of `start`; counters are `end`'s."""
    mixed = {
        key: torch.lerp(start[key], value, share) if value.is_floating_point() else value
        for key, value in end.items()
    }
    model.load_state_dict(mixed)


def choose_share(
    model: ModerationModel,
    start: Mapping[str, Tensor],
    shares: Sequence[float],
    images: EvaluationImages,
    examples: Sequence[Example],
    truth: NDArray[np.float32],
    precision: torch.dtype = torch.float32,
) -> tuple[float, dict[str, float]]:
    """Leave `model` at the share with the highest macro AP on the early-stop split; ties go to less fine-tuning."""
    end = snapshot(model)
    found: dict[float, float] = {}
    ones = np.ones((1, len(examples)))
    for share in sorted(shares):
        load_mixture(model, start, end, share)
        logits = image_logits(
            model, examples, images.spec, images=images, title=f"average {share:g}", precision=precision
        )
        found[share] = float(metrics.macro(metrics.average_precision, logits, truth, ones)[0])
    best = max(sorted(found), key=lambda share: round(found[share], 4))
    load_mixture(model, start, end, best)
    return best, {f"{share:g}": value for share, value in found.items()}
