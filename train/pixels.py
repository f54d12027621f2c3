"""How labelled files become arrays, always through the client's decoder, so that training cannot see another picture than serving.

Evaluation takes every view. Training takes one picture with its transparency: black and white views are the two ends of
every background, so colour times opacity and opacity itself follow from them, and any background can be put underneath later.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from moderation_client import InvalidImageError
from moderation_client.contract import ImageSpec
from moderation_client.images import decode
from train.data import Example
from train.errors import DataError

Pixels = NDArray[np.uint8]
NO_KIND = -100
"""Kind of an image that the side task leaves out; torch's cross-entropy ignores it."""


def all_views(example: Example, spec: ImageSpec) -> Pixels:
    """Decode what the service would look at: uint8 [num_views, H, W, 3]. Raises DataError with the decoder's reason."""
    try:
        return decode(example.image if example.content is not None else str(example.path), spec).pixels
    except InvalidImageError as error:
        raise DataError(f"{example.path} cannot be used: {error}") from error


def layered(example: Example, side: int) -> Pixels:
    """Decode the first frame with its transparency: uint8 [4, side, side], colour times opacity, and opacity."""
    views = all_views(example, ImageSpec(height=side, width=side))
    white, black = views[0], views[min(1, len(views) - 1)]
    if len(views) == 1 or (white < black).any():  # opaque, or the second view is another frame
        return np.concatenate([white.transpose(2, 0, 1), np.full((1, side, side), 255, np.uint8)])
    red, green, blue = (white - black).transpose(2, 0, 1)
    opacity = 255 - np.maximum(np.maximum(red, green), blue)  # ten times as fast as `max` over the last axis
    return np.concatenate([black.transpose(2, 0, 1), opacity[None]])


class TrainingImages(Dataset[tuple[Tensor, Tensor, float, int]]):
    """Training images uint8 [4, side, side], targets float32 [num_labels], weight, kind; in memory when they fit."""

    def __init__(
        self,
        examples: Sequence[Example],
        targets: NDArray[np.float32],
        *,
        side: int,
        cache_bytes: float,
        kinds: Sequence[int] = (),
    ) -> None:
        self.examples = list(examples)
        self.kinds = list(kinds) or [NO_KIND] * len(self.examples)
        self.targets = torch.from_numpy(targets)
        self.side = side
        fits = len(self.examples) * 4 * side * side <= cache_bytes
        self.cache = torch.from_numpy(self._decode_all()) if fits else None

    @property
    def in_memory(self) -> bool:
        """Whether all were decoded."""
        return self.cache is not None

    def _decode_all(self) -> Pixels:
        pixels = np.empty((len(self.examples), 4, self.side, self.side), np.uint8)
        with ThreadPoolExecutor(2) as pool:  # Pillow lets go of the interpreter while it decodes
            decoded = pool.map(partial(layered, side=self.side), self.examples)
            for index, each in enumerate(
                tqdm(decoded, "decode train", len(pixels), unit=" images", leave=False)
            ):
                pixels[index] = each
        return pixels

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, float, int]:
        pixels = (
            self.cache[index]
            if self.cache is not None
            else torch.from_numpy(layered(self.examples[index], self.side))
        )
        return pixels, self.targets[index], self.examples[index].weight, self.kinds[index]


class EvaluationImages(Dataset[tuple[Pixels, Tensor]]):
    """Every view of every image, uint8 [num_views, H, W, 3], with targets float32 [num_labels]; decoded once if `keep`."""

    def __init__(
        self,
        examples: Sequence[Example],
        targets: NDArray[np.float32],
        *,
        spec: ImageSpec,
        keep: bool = False,
    ) -> None:
        self.examples = list(examples)
        self.targets = torch.from_numpy(targets)
        self.spec = spec
        self.kept: dict[int, Pixels] = {}
        self.keep = keep

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Pixels, Tensor]:
        views = self.kept.get(index)
        if views is None:
            views = all_views(self.examples[index], self.spec)
            if self.keep:
                self.kept[index] = views
        return views, self.targets[index]


def collate_views(batch: Sequence[tuple[Pixels, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Stack views of several images: uint8 [sum of views, H, W, 3], views per image int64 [N], targets [N, num_labels]."""
    views = torch.from_numpy(np.concatenate([pixels for pixels, _ in batch]))
    counts = torch.tensor([len(pixels) for pixels, _ in batch])
    return views, counts, torch.stack([target for _, target in batch])


def worst_view(values: Tensor, counts: Tensor) -> Tensor:
    """Maximum over the views of each image: [sum of views, num_labels] -> [N, num_labels]."""
    pieces = torch.split(values, counts.tolist())
    return torch.stack([each.amax(0) for each in pieces])
