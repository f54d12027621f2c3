"""Views: how one frame becomes one or more pictures of the model's size.

Tiles: a strip whose sides differ by more than TILE_ABOVE is cut into tiles two short sides long, one short side apart,
so that whatever is no longer than the strip is wide stands whole in one tile.
Backgrounds: a picture with transparent pixels is looked at over the spec's background and over the opposite colour
when they differ.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PIL import Image, ImageChops

from moderation_client._image_modes import premultiplied
from moderation_client.contract import ImageSpec

Array = np.ndarray[Any, Any]
Box = tuple[float, float, float, float]

TILE_ABOVE = 4.0
"""Side ratio from which a picture is tiled."""
DRAFT_GAP = 1.5
"""A JPEG is decoded at the smallest of the scales 1/8, 1/4, 1/2, 1 that still has this many pixels per pixel of the result."""
DRAFT_MAX_LEVELS = 72
DRAFT_MEAN_LEVELS = 24
"""Bound on the difference between a JPEG at reduced scale and in full, at any pixel and on average: reached by full-contrast
gratings as fine as the model's pixels, where two good filters disagree most. Photographs move by 4 levels at most, by less than 1 on average."""
REDUCING_GAP = 3.0
"""Pictures larger than this many times the result are first averaged in whole blocks; the result moves by a level at most."""
BACKGROUND_TOLERANCE = 8
"""Levels (of 255) by which two backgrounds must differ somewhere for the second to count as a view."""

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


def prepared(image: Image.Image, box: Box, spec: ImageSpec, orientation: int) -> tuple[Image.Image, float]:
    """Premultiply an RGBA picture once for all tiles of this box's size; give its scale too."""
    if image.mode != "RGBA":
        return image, 1.0
    factor = _reduction(box, _target(spec, orientation))
    return premultiplied(image, factor), 1 / factor


def tile_views(image: Image.Image, box: Box, spec: ImageSpec, orientation: int) -> list[Array]:
    """Look at one tile of an L, RGB or RGBa picture: uint8 [H, W, 3] each, the spec's background first."""
    if image.mode != "RGBa":
        return [_pixels(_fit(image, box, spec, orientation, spec.background))]
    *colour, alpha = _fit(image, box, spec, orientation, (0, 0, 0, 0)).split()
    shown = _over(colour, alpha, spec.background)
    if not any(alpha.histogram()[: 255 - BACKGROUND_TOLERANCE]):
        return [shown]
    return [shown, _over(colour, alpha, opposite(spec.background))]


def _reduction(box: Box, target: tuple[int, int]) -> int:
    """Give the blocks that `resize` would average first, so that it need not."""
    left, top, right, bottom = box
    return max(1, int(min((right - left) / target[0], (bottom - top) / target[1]) / REDUCING_GAP))


def opposite(background: tuple[int, int, int]) -> tuple[int, int, int]:
    """Give the colour furthest from a background: what is invisible on one stands out on the other."""
    red, green, blue = (0 if channel >= 128 else 255 for channel in background)
    return red, green, blue


def _over(colour: list[Image.Image], alpha: Image.Image, background: tuple[int, int, int]) -> Array:
    """Put premultiplied channels over a background."""
    shown = colour
    if any(background):  # over black, premultiplied channels are what is seen
        through = ImageChops.invert(alpha)
        under = {level: _share(through, level) for level in set(background)}
        shown = [ImageChops.add(top, under[level]) for top, level in zip(colour, background, strict=True)]
    return _pixels(Image.merge("RGB", shown))


def _share(through: Image.Image, level: int) -> Image.Image:
    """Give the light of one channel of a background that comes through."""
    return through if level == 255 else through.point([round(at * level / 255) for at in range(256)])


def _target(spec: ImageSpec, orientation: int) -> tuple[int, int]:
    """Width and height to resize to before the picture is turned."""
    return (spec.height, spec.width) if orientation >= 5 else (spec.width, spec.height)


def _fit(
    image: Image.Image, box: Box, spec: ImageSpec, orientation: int, fill: tuple[int, ...]
) -> Image.Image:
    """Resize a box of the picture into the model's frame and turn it: turning the small one costs nothing."""
    width, height = _target(spec, orientation)
    if spec.fit == "center_crop":
        box = _center_crop(box, width / height)
    if spec.fit == "letterbox":
        width, height = _shrink_to_fit(box, width, height)
    small = image.resize((width, height), _RESAMPLING[spec.resampling], box, reducing_gap=REDUCING_GAP)
    upright = turned(small, orientation)
    if upright.size == (spec.width, spec.height):
        return upright
    canvas = Image.new("RGBa" if upright.mode == "RGBa" else "RGB", (spec.width, spec.height), fill)
    whole = upright if upright.mode == canvas.mode else upright.convert("RGB")
    canvas.paste(whole, ((spec.width - upright.width) // 2, (spec.height - upright.height) // 2))
    return canvas


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """Apply an EXIF orientation; the image itself when there is nothing to turn."""
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _center_crop(box: Box, aspect: float) -> Box:
    """Give the largest centred part of a box with the model's aspect."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    new_width, new_height = min(width, height * aspect), min(height, width / aspect)
    left, top = left + (width - new_width) / 2, top + (height - new_height) / 2
    return left, top, left + new_width, top + new_height


def _shrink_to_fit(box: Box, width: int, height: int) -> tuple[int, int]:
    """Give the largest size with the box's aspect that fits."""
    wide, high = box[2] - box[0], box[3] - box[1]
    scale = min(width / wide, height / high)
    return min(width, max(1, round(wide * scale))), min(height, max(1, round(high * scale)))


def _pixels(image: Image.Image) -> Array:
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
