"""Scores of whole images outside the training loop: every view in float32, the worst one counts, as in service."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.data import DataLoader
from tqdm import tqdm

from moderation_client.contract import ImageSpec
from train.data import Example
from train.errors import TrainError
from train.model import ModerationModel
from train.pixels import EvaluationImages, collate_views, worst_view

BATCH_IMAGES = 16


def image_logits(
    model: ModerationModel,
    examples: Sequence[Example],
    spec: ImageSpec,
    *,
    images: EvaluationImages | None = None,
    title: str = "score",
    precision: torch.dtype = torch.float32,
) -> NDArray[np.float32]:
    """Logits before calibration, float32 [num_images, num_labels], maximum over the views of an image.

    `images` reuses decoded views. Raises TrainError for a network that gives NaN. A positive slope of calibration keeps the order, so maximum and calibration commute.
    """
    empty = np.zeros((len(examples), model.head.out_features), np.float32)
    images = images or EvaluationImages(examples, empty, spec=spec)
    device = model.mean.device
    body = folded(model.eval().body)
    found = [empty[:0]]
    loader = DataLoader(images, batch_size=BATCH_IMAGES, collate_fn=collate_views)
    with torch.inference_mode(), torch.autocast(device.type, precision, enabled=precision != torch.float32):
        for views, counts, _ in tqdm(loader, title, unit=" batches", leave=False):
            logits = model.head(body(model.normalise(views.to(device)))).float().cpu()
            found.append(worst_view(logits, counts).numpy())
    scored: NDArray[np.float32] = np.concatenate(found)
    broken = np.flatnonzero(~np.isfinite(scored).all(1))
    if len(broken):
        raise TrainError(
            f"{title}: {len(broken)} of {len(scored)} images have scores that are no numbers (first: {examples[broken[0]].path})"
        )
    return scored


def folded(body: nn.Module) -> nn.Module:
    """Copy of a backbone in evaluation mode whose normalisation is inside its convolutions: same features, a third faster."""
    body = copy.deepcopy(body).eval()
    for layers in [module for module in body.modules() if isinstance(module, nn.Sequential)]:
        for index, (first, second) in enumerate(itertools.pairwise(list(layers))):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                layers[index] = fuse_conv_bn_eval(first, second)
                layers[index + 1] = nn.Identity()
    return body


def probabilities(model: ModerationModel, logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Calibrated scores of image logits, float32 [num_images, num_labels]."""
    with torch.inference_mode():
        scores: NDArray[np.float32] = (
            model.scores(torch.from_numpy(logits).to(model.mean.device)).cpu().numpy()
        )
    return scores
