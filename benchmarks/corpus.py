"""The pictures that benchmarks send: the user's own folder, or photographs made from the two that scikit-learn brings.

Generated ones are deterministic: crops of real photographs, resized and saved as baseline JPEG of quality 83, which for
1080 x 810 gives files of 110 to 250 KB, the size of a picture in a chat.
"""

from __future__ import annotations

import functools
import io
from pathlib import Path

import numpy as np
from PIL import Image

JPEG_QUALITY = 83
LABELS = ("weapon", "substance", "gambling")
"""Scores that a network with random weights pretends to give."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic")


class CorpusError(Exception):
    """There are no pictures to send; the message says where they were looked for."""


def load_files(folder: Path | None, *, num_images: int, width: int = 1080, height: int = 810) -> list[bytes]:
    """`num_images` encoded pictures: the first of `folder` (recursively, by name), or generated photographs.

    Raises CorpusError when the folder is not there or holds no pictures.
    """
    if folder is None:
        return [photograph(index, width, height) for index in range(num_images)]
    if not folder.is_dir():
        raise CorpusError(f"--images {folder}: no such folder")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise CorpusError(f"--images {folder}: no pictures there; looked for {', '.join(SUFFIXES)}")
    return [path.read_bytes() for path in paths[:num_images]]


def photograph(index: int, width: int, height: int, *, quality: int = JPEG_QUALITY) -> bytes:
    """JPEG file number `index`, a crop of a real photograph at `width` x `height`; the same bytes every time."""
    rng = np.random.default_rng(index)
    source = _sources()[index % 2]
    share = rng.uniform(0.55, 0.95)
    crop_width, crop_height = int(source.width * share), int(source.height * share)
    left = int(rng.integers(0, source.width - crop_width + 1))
    top = int(rng.integers(0, source.height - crop_height + 1))
    crop = source.crop((left, top, left + crop_width, top + crop_height))
    picture = crop.resize((width, height), Image.Resampling.LANCZOS)
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    buffer = io.BytesIO()
    _with_grain(picture, rng).save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def _with_grain(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Add sensor noise: an enlarged picture has no detail and would decode cheaper than a camera's."""
    pixels = np.asarray(picture, dtype=np.int16)
    noise = rng.normal(0.0, 3.0, size=(*pixels.shape[:2], 1)).astype(np.int16)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


@functools.cache
def _sources() -> tuple[Image.Image, ...]:
    from sklearn.datasets import load_sample_images  # noqa: PLC0415  a second to import, not needed with --images

    return tuple(Image.fromarray(pixels) for pixels in load_sample_images().images)
