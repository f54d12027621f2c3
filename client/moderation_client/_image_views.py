"""Views: how one frame becomes one or more pictures of the model's size.

Tiles: a strip whose sides differ by more than TILE_ABOVE is cut into tiles two short sides long, one short side apart,
so that whatever is no longer than the strip is wide stands whole in one tile.
Backgrounds: a picture with transparent pixels is looked at over the spec's background and over the opposite colour
when they differ, and a third time with its alpha dropped when something is painted under invisible pixels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PIL import Image, ImageChops

from moderation_client.contract import ImageSpec

Array = np.ndarray[Any, Any]
Box = tuple[float, float, float, float]

TILE_ABOVE = 4.0
"""Side ratio from which a picture is tiled."""
DRAFT_GAP = 1.5
"""A JPEG is decoded at the smallest of the scales 1/8, 1/4, 1/2, 1 that still has this many pixels per pixel of the result."""
REDUCING_GAP = 3.0
"""Pictures larger than this many times the result are first averaged in whole blocks; the result moves by a level at most."""
BACKGROUND_TOLERANCE = 8
"""Levels (of 255) by which two backgrounds must differ somewhere for the second to count as a view."""
HIDDEN_TOLERANCE = 32
"""Levels by which what is under invisible pixels must differ from one colour ..."""
HIDDEN_AREA = 0.01
"""... on this share of the picture to count as hidden content."""

_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def num_tiles(width: int, height: int) -> int:
    """Count the tiles of a picture of this size."""
    short, long = sorted((width, height))
    return 1 if long <= TILE_ABOVE * short else math.ceil(long / short) - 1


def tiles(width: int, height: int) -> list[Box]:
    """Give the boxes of the tiles in the picture's own pixels; the whole frame where it is not a strip."""
    count = num_tiles(width, height)
    if count == 1:
        return [(0.0, 0.0, float(width), float(height))]
    short, long = sorted((width, height))
    starts = [(long - 2 * short) * at / (count - 1) for at in range(count)]
    if width > height:
        return [(start, 0.0, start + 2 * short, float(height)) for start in starts]
    return [(0.0, start, float(width), start + 2 * short) for start in starts]


def scaled(box: Box, scale: float) -> Box:
    """Move a box into a picture decoded at a scale."""
    left, top, right, bottom = box
    return left * scale, top * scale, right * scale, bottom * scale


def draft_size(size: tuple[int, int], spec: ImageSpec, orientation: int) -> tuple[int, int]:
    """Give the size at which each tile still has DRAFT_GAP times the model's pixels in each direction."""
    left, top, right, bottom = tiles(*size)[0]
    target = _target(spec, orientation)
    return (
        math.ceil(target[0] * DRAFT_GAP * size[0] / (right - left)),
        math.ceil(target[1] * DRAFT_GAP * size[1] / (bottom - top)),
    )


def tile_views(image: Image.Image, box: Box, spec: ImageSpec, orientation: int) -> list[Array]:
    """Look at one tile of an L, RGB or RGBA picture: uint8 [H, W, 3] each, the spec's background first."""
    if image.mode != "RGBA":
        return [_pixels(_fit(image, box, spec, orientation, spec.background))]
    premultiplied = _fit(image.convert("RGBa"), box, spec, orientation, (0, 0, 0, 0))
    *colour, alpha = premultiplied.split()
    over = [_over(colour, alpha, background) for background in (spec.background, opposite(spec.background))]
    if not any(alpha.histogram()[: 255 - BACKGROUND_TOLERANCE]):
        return over[:1]
    opaque = _pixels(_fit(image.convert("RGB"), box, spec, orientation, spec.background))
    return [*over, opaque] if _hides(opaque, np.asarray(premultiplied)) else over


def opposite(background: tuple[int, int, int]) -> tuple[int, int, int]:
    """Give the colour furthest from a background: what is invisible on one stands out on the other."""
    red, green, blue = (0 if channel >= 128 else 255 for channel in background)
    return red, green, blue


def _over(colour: list[Image.Image], alpha: Image.Image, background: tuple[int, int, int]) -> Array:
    """Put premultiplied channels over a background."""
    through = ImageChops.invert(alpha)
    under = [through.point([round(at * level / 255) for at in range(256)]) for level in background]
    return _pixels(
        Image.merge("RGB", [ImageChops.add(top, low) for top, low in zip(colour, under, strict=True)])
    )


def _hides(opaque: Array, premultiplied: Array) -> bool:
    """Whether the pixels that alpha hides show more than one colour; every second row and column will do."""
    colour, alpha = (
        premultiplied[::2, ::2, :3].astype(np.float32),
        premultiplied[::2, ::2, 3].astype(np.float32),
    )
    taken = opaque[::2, ::2] - colour  # what alpha takes away
    weight = 1 - alpha / 255
    shown = np.zeros(weight.shape, bool)
    for channel in range(3):
        one_colour = taken[:, :, channel].sum() / max(float(weight.sum()), 1e-6)
        shown |= np.abs(taken[:, :, channel] - one_colour * weight) > HIDDEN_TOLERANCE
    return bool(shown.mean() > HIDDEN_AREA)


def _target(spec: ImageSpec, orientation: int) -> tuple[int, int]:
    """Width and height to resize to before the picture is turned."""
    return (spec.height, spec.width) if orientation >= 5 else (spec.width, spec.height)


def _fit(
    image: Image.Image, box: Box, spec: ImageSpec, orientation: int, fill: tuple[int, ...]
) -> Image.Image:
    """Resize a box of the picture into the model's frame, then turn it: turning the small one costs nothing."""
    width, height = _target(spec, orientation)
    if spec.fit == "letterbox":
        fitted = _letterbox(image, box, (width, height), spec, fill)
    else:
        box = _center_crop(box, width / height) if spec.fit == "center_crop" else box
        fitted = _resize(image, (width, height), box, spec)
    turn = _TURNS.get(orientation)
    return fitted.transpose(turn) if turn is not None else fitted


def _resize(image: Image.Image, size: tuple[int, int], box: Box, spec: ImageSpec) -> Image.Image:
    return image.resize(size, _RESAMPLING[spec.resampling], box, reducing_gap=REDUCING_GAP)


def _center_crop(box: Box, aspect: float) -> Box:
    """Largest centred part of a box with the model's aspect."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    new_width, new_height = min(width, height * aspect), min(height, width / aspect)
    left, top = left + (width - new_width) / 2, top + (height - new_height) / 2
    return left, top, left + new_width, top + new_height


def _letterbox(
    image: Image.Image, box: Box, size: tuple[int, int], spec: ImageSpec, fill: tuple[int, ...]
) -> Image.Image:
    width, height = box[2] - box[0], box[3] - box[1]
    scale = min(size[0] / width, size[1] / height)
    inner = (min(size[0], max(1, round(width * scale))), min(size[1], max(1, round(height * scale))))
    resized = _resize(image, inner, box, spec)
    canvas = Image.new("RGB", size, fill) if resized.mode != "RGBa" else Image.new("RGBa", size)
    canvas.paste(
        resized if resized.mode == canvas.mode else resized.convert("RGB"),
        ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2),
    )
    return canvas


def _pixels(image: Image.Image) -> Array:
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
