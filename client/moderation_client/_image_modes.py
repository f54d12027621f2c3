"""Colour modes: every mode Pillow or an array can have becomes 8-bit L, RGB or RGBA without losing what is visible.

16 bits are scaled, never clipped: Pillow's own conversion clips at 255 and shows a white page, which has been a way
past moderation in several packages.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from moderation_client._errors import BadArrayError, CorruptImageError

Array = np.ndarray[Any, Any]
ARRAY_EXPECTED = "expected HxW, HxWx1, HxWx3 or HxWx4 of uint8, uint16 or float 0..1"


def to_8bit(image: Image.Image, name: str) -> Image.Image:
    """Give the picture as L, RGB or RGBA; RGBA only when some pixel is not opaque. The image itself is not changed."""
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        return _scaled(image)
    if has_alpha(image):
        return _drop_opaque_alpha(
            image.convert("RGBA") if mode != "La" else image.convert("LA").convert("RGBA")
        )
    if mode in {"L", "RGB"}:
        return image
    if mode == "1":
        return image.convert("L")
    if mode == "LAB":
        return _from_lab(image, name)
    return image.convert("RGB")


def has_alpha(image: Image.Image) -> bool:
    """Whether the picture can have transparent pixels."""
    return image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info


def _drop_opaque_alpha(image: Image.Image) -> Image.Image:
    lowest, _ = image.getchannel("A").getextrema()
    return image.convert("RGB") if lowest == 255 else image


def _scaled(image: Image.Image) -> Image.Image:
    """Bring 16-bit, 32-bit and float grey to 8 bits."""
    array = np.asarray(image)
    grey = Image.fromarray(_deep_to_8bit(array))
    key = image.info.get("transparency")
    if not isinstance(key, int):
        return grey
    alpha = np.where(array == key, np.uint8(0), np.uint8(255))
    return _drop_opaque_alpha(Image.merge("LA", (grey, Image.fromarray(alpha))).convert("RGBA"))


def _deep_to_8bit(array: Array) -> Array:
    """Scale by the depth the numbers speak of: 16 bits, 0..1, 0..255, or else their own range."""
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return _scale_16bit(array)
    values = np.nan_to_num(array.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low >= 0 and array.dtype.kind == "f" and high <= 1:
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    elif low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    scaled: Array = np.rint((values - low) * np.float32(255 / max(high - low, 1e-12))).astype(np.uint8)
    return scaled


def _scale_16bit(array: Array) -> Array:
    """Round value / 257 without leaving 16 bits."""
    native = array.astype(np.uint16, copy=False)
    rounded: Array = ((native - (native >> 8) + 128) >> 8).astype(np.uint8)
    return rounded


def _from_lab(image: Image.Image, name: str) -> Image.Image:
    try:
        from PIL import ImageCms  # noqa: PLC0415 - littlecms is only needed for this rare mode
    except ImportError as error:
        raise CorruptImageError("LAB colours need a Pillow built with littlecms", source=name) from error
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None  # only in-place conversion returns None
    return converted


def from_array(array: Array) -> Image.Image:
    """Check a caller's array and give it as L, RGB or RGBA. Raises BadArrayError."""
    shape = array.shape
    if array.ndim == 3 and shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in {2, 3} or (array.ndim == 3 and shape[2] not in {3, 4}) or array.size == 0:
        raise BadArrayError(f"{ARRAY_EXPECTED}, got shape {shape}", source="array")
    image = Image.fromarray(np.ascontiguousarray(_array_to_8bit(array)))
    return _drop_opaque_alpha(image) if image.mode == "RGBA" else image


def _array_to_8bit(array: Array) -> Array:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return _scale_16bit(array)
    if array.dtype.kind != "f":
        raise BadArrayError(f"{ARRAY_EXPECTED}, got dtype {array.dtype}", source="array")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0.0 and high <= 1.0):  # also true of NaN
        worst = high if not high <= 1.0 else low
        raise BadArrayError(
            f"{ARRAY_EXPECTED}, got values {low:g}..{high:g}", source="array", value=worst, limit=1.0
        )
    scaled: Array = np.rint(array.astype(np.float32) * np.float32(255)).astype(np.uint8)
    return scaled
