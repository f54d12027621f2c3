"""What export needs to know of a model before it makes variants of it, whether it was trained here or comes as a foreign file.

A `Source` says how the model scores (its reference), how its FP32 graph is written, and on which real images the two are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moderation_client import ModelSpec, Policy

if TYPE_CHECKING:
    import onnx

Pixels = NDArray[np.uint8]
Scores = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Split:
    """Real images, decoded: one row of `pixels` for each view, several views can belong to one image."""

    pixels: Pixels
    """uint8 [num_views, H, W, 3]."""
    owners: NDArray[np.int64]
    """Image index of each view, ascending from 0; int64 [num_views]."""
    names: tuple[str, ...]
    """One name for each image, for the report."""
    targets: NDArray[np.bool_] | None = None
    """True labels, bool [num_images, num_labels]; None when nobody labelled them."""

    @property
    def num_images(self) -> int:
        """Images, not views."""
        return len(self.names)

    def per_image(self, scores: Scores) -> Scores:
        """Scores of views [num_views, L] -> scores of images [num_images, L]: the maximum over an image's views."""
        starts = np.flatnonzero(np.diff(self.owners, prepend=-1))
        return np.asarray(np.maximum.reduceat(scores, starts, axis=0))


@dataclass(frozen=True, kw_only=True)
class Images:
    """The three sets of real images that export works with; they share no image."""

    calibration: Pixels
    """Training images, uint8 [N, H, W, 3]: INT8 ranges are taken from these."""
    selection: Split
    """Held-out images by which settings are chosen."""
    test: Split
    """Held-out images by which the chosen variant is judged."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model that can be exported."""

    name: str
    """What reports call it."""
    spec: ModelSpec
    """Without version and files: those come with publishing."""
    policy: Policy | None
    """The recommended policy; None when there is none."""
    reference: Callable[[Pixels], Scores]
    """How the model scores where it comes from: uint8 [N, H, W, 3] -> float32 [N, num_labels]."""
    reference_name: str
    """`PyTorch` or what else the reference is."""
    graph: Callable[[Path], onnx.ModelProto]
    """Makes the FP32 graph in the contract's terms; the path is a folder for temporary files."""
    images: Images
    """What variants are calibrated and compared on."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """Where the model comes from, for the manifest."""
