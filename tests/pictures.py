"""Pictures and files that the decoder's tests are made of."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

Pixels = np.ndarray[Any, Any]


def scene(width: int = 160, height: int = 120, seed: int = 0) -> Pixels:
    """Make a smooth colourful picture: uint8 [height, width, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(picture: Pixels | Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """Encode an array or image as a file's bytes."""
    image = (
        picture.copy() if isinstance(picture, Image.Image) else Image.fromarray(picture)
    )  # save() leaves traces
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def difference(one: Pixels, other: Pixels) -> int:
    """Give the largest difference in levels."""
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def flat(colour: Any, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Image.Image:
    """Make a picture of one colour."""
    return Image.new(mode, size, colour)


def frames_file(frames: list[Image.Image], format: str, **options: Any) -> bytes:
    """Encode an animation."""
    return encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
