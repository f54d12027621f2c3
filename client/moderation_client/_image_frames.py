"""Frames: how many a file has, which of them are looked at, and what that may cost.

A short animation is looked at whole. A longer one is sampled evenly; since the last frame cannot be reached without
decoding all before it, every frame is compared in small with the sampled ones, samples that repeat each other give
their place to frames that show something else, and what then is still unseen is counted: it makes the verdict REVIEW.
"""

from __future__ import annotations

import contextlib
import functools
import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from moderation_client import _image_modes
from moderation_client._errors import TooManyFramesError
from moderation_client._image_file import Opened, check_size
from moderation_client._image_views import num_tiles
from moderation_client.images import ImageLimits

Array = np.ndarray[Any, Any]

SKETCH = 32
"""Side of the small picture by which frames are compared."""
SKETCH_TOLERANCE = 24
"""Levels by which some cell of it must differ for a frame to show something else."""
SKETCH_DETAIL = 8
"""Pixels a side that a cell is made from: what is finer than that the model hardly sees either."""
APART = {"TIFF", "HEIF"}
"""Formats whose pages stand by themselves: each can be reached alone, and each has a size of its own."""


@dataclass(frozen=True, kw_only=True)
class FramePlan:
    """Which frames to look at."""

    total: int
    """Frames that the file has."""
    indices: list[int]
    """Frames to look at, ascending."""
    left_out: str | None = None
    """What is not looked at, when it shows something else."""


def plan_frames(opened: Opened, limits: ImageLimits) -> FramePlan:
    """Choose the frames to look at. Raises TooManyFramesError before any is decoded."""
    total = _count_frames(opened, limits)
    width, height = opened.image.size
    wanted = max(1, min(limits.max_frames, limits.max_views // num_tiles(width, height)))
    affordable = max(1, limits.max_decoded_pixels // (width * height))
    if total <= min(wanted, affordable):
        return FramePlan(total=total, indices=list(range(total)))
    if opened.format in APART:
        indices = evenly(total, min(wanted, affordable))
        return FramePlan(total=total, indices=indices, left_out=f"{total - len(indices)} of {total} pages")
    reachable = min(total, max(1, affordable // 2))  # every frame is decoded twice: to compare, then to look
    sketches = [_sketch(opened, index, limits) for index in range(reachable)]
    most = max(map(len, sketches))  # of a frame with fewer pictures they count again
    indices, unseen = choose(
        np.stack([np.resize(each, (most, *each.shape[1:])) for each in sketches]), wanted
    )
    unseen += total - reachable
    return FramePlan(total=total, indices=indices, left_out=f"{unseen} of {total} frames" if unseen else None)


def _count_frames(opened: Opened, limits: ImageLimits) -> int:
    if opened.format == "TIFF":
        count = _count_pages(opened, limits.max_file_frames)
    elif opened.probe.num_frames is not None:
        count = opened.probe.num_frames
    else:
        count = int(getattr(opened.image, "n_frames", 1))
    if count > limits.max_file_frames:
        raise TooManyFramesError(
            f"more than {limits.max_file_frames} frames (max_file_frames)",
            source=opened.name,
            value=count,
            limit=limits.max_file_frames,
        )
    return max(count, 1)


def _count_pages(opened: Opened, limit: int) -> int:
    """Follow the chain of pages, as the decoder does (broken ones are common), no further than the limit."""
    count = 1
    with contextlib.suppress(EOFError):  # the end of the chain
        while count <= limit:
            opened.image.seek(count)
            count += 1
    opened.image.seek(0)
    return count


def _sketch(opened: Opened, index: int, limits: ImageLimits) -> Array:
    """Decode a frame and shrink every picture of it: uint8 [num_pictures, 4, SKETCH, SKETCH, 4]."""
    return np.stack([_cells(picture) for picture in load_frame(opened, index, limits)])


def _cells(picture: Image.Image) -> Array:
    """Mean, least and greatest premultiplied RGBA of each cell, and its mean over pixels that nobody can foresee.

    The mean alone is blind to a pattern around it, the first three to a pattern that changes its phase.
    """
    if picture.mode == "RGBA":
        small = _image_modes.premultiplied(picture, max(1, min(picture.size) // (SKETCH_DETAIL * SKETCH)))
    else:
        small = picture if picture.mode == "RGB" else picture.convert("RGB")
    wide, high = (_detail(side, min(small.size)) for side in small.size)
    cells = small.resize((SKETCH * wide, SKETCH * high), Image.Resampling.BOX, reducing_gap=1.0)
    pixels = np.asarray(cells.convert("RGBA") if cells.mode == "RGB" else cells)
    means = [_means(each) for each in (pixels, pixels & _mask(high, wide))]
    ends = [_per_cell(each, pixels, high, wide) for each in (np.minimum, np.maximum)]
    return np.stack([*means, *ends])


def _detail(side: int, short: int) -> int:
    """Pixels of a cell along a side: as many as the picture has, up to SKETCH_DETAIL for each short side in it."""
    return max(1, min(-(-side // SKETCH), SKETCH_DETAIL * -(-side // short)))


def _per_cell(take: np.ufunc, pixels: Array, high: int, wide: int) -> Array:
    """Reduce each cell, rows first, along axes that NumPy walks quickly."""
    rows = take.reduce(pixels.reshape(SKETCH, high, -1), axis=1)
    columns = np.ascontiguousarray(rows.reshape(SKETCH * SKETCH, wide, 4).transpose(1, 0, 2))
    cells: Array = take.reduce(columns, axis=0).reshape(SKETCH, SKETCH, 4)
    return cells


def _means(pixels: Array) -> Array:
    """Mean of each cell, by Pillow, which is much quicker than NumPy; CMYK is four channels that it leaves alone."""
    image = Image.frombuffer("CMYK", (pixels.shape[1], pixels.shape[0]), pixels, "raw", "CMYK", 0, 1)
    return np.asarray(image.resize((SKETCH, SKETCH), Image.Resampling.BOX))


@functools.lru_cache(maxsize=4)
def _mask(high: int, wide: int) -> Array:
    """255 or 0 for each pixel: uint8 [SKETCH * high, SKETCH * wide, 4]."""
    random = np.random.default_rng(_seed()).integers(0, 2, (SKETCH * high, SKETCH * wide, 1), np.uint8)
    return np.repeat(random * np.uint8(255), 4, axis=2)


@functools.cache
def _seed() -> int:
    """One for the life of the process: frames are only compared with each other."""
    return secrets.randbits(64)


def seek_frame(opened: Opened, index: int, limits: ImageLimits) -> tuple[int, int]:
    """Go to one frame and give its size. Raises ImageTooLargeError for this frame."""
    if opened.image.tell() != index:
        opened.image.seek(index)
    check_size(opened.image.size, opened.name, limits)
    return opened.image.size


def load_frame(opened: Opened, index: int, limits: ImageLimits) -> tuple[Image.Image, ...]:
    """Decode one frame into its 8-bit pictures. Raises what the decoder raises, and ImageTooLargeError for this frame."""
    seek_frame(opened, index, limits)
    opened.image.load()
    return _image_modes.to_8bit(opened.image, opened.name)


def choose(sketches: Array, wanted: int) -> tuple[list[int], int]:
    """Choose up to `wanted` of [num_frames, ...] sketches; also count those that differ from all chosen."""
    nearest = np.full(len(sketches), np.iinfo(np.int16).max, np.int16)
    chosen: list[int] = []
    for index in evenly(len(sketches), wanted):
        if nearest[index] > SKETCH_TOLERANCE:
            chosen.append(index)
            nearest = np.minimum(nearest, _distances(sketches, index))
    while len(chosen) < wanted and nearest.max() > SKETCH_TOLERANCE:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, _distances(sketches, chosen[-1]))
    return sorted(chosen), int((nearest > SKETCH_TOLERANCE).sum())


def _distances(sketches: Array, index: int) -> Array:
    """Largest difference in any cell, from one frame to each."""
    one = sketches[index].astype(np.int16)
    distances: Array = np.array([np.abs(sketch - one).max() for sketch in sketches], np.int16)
    return distances


def evenly(total: int, count: int) -> list[int]:
    """`count` of `total` indices, evenly spread, first and last among them."""
    if count >= total:
        return list(range(total))
    if count == 1:
        return [0]
    return [round(at * (total - 1) / (count - 1)) for at in range(count)]
