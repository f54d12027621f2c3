"""Colour modes: every mode Pillow or an array can have becomes 8-bit L, RGB or RGBA without losing what is visible.

16 bits are scaled, never clipped: Pillow's own conversion clips at 255 and shows a white page, which has been a way
past moderation in several packages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from moderation_client._errors import BadArrayError, CorruptImageError

Array = np.ndarray[Any, Any]
ARRAY_EXPECTED = "expected HxW, HxWx1, HxWx3 or HxWx4 of uint8, uint16 or float 0..1"
NARROW = 1 / 16
"""Deep grey of which nearly everything lies in a smaller part of the range than this is looked at stretched as well."""
BINS = 256
MAX_LOOKS = 8
"""How often the numbers are gone through for that: one look finds most ranges, each far number costs two, and no file may ask for more."""
UNSEEN = 64
"""Alpha below which a pixel can hardly be seen ..."""
HIDDEN_LEVELS = 32
"""... levels by which its colour must differ from the usual one of such pixels ..."""
HIDDEN_AREA = 0.01
"""... and the share of the picture on which it does, for it to count as hidden content."""
CHUNK = 1 << 20
"""Numbers converted at a time."""
FLOAT32_SPAN = 1e30
"""Ranges above are converted in double precision: differences and factors would leave float32."""


def to_8bit(image: Image.Image, name: str) -> tuple[Image.Image, ...]:
    """Give the picture as L, RGB or RGBA; RGBA only when some pixel is not opaque. The image itself is not changed.

    Another picture is added where the same numbers show something else to another program: what is painted under
    invisible pixels, to one that drops alpha; and deep grey that keeps nearly everything in a small part of its range, to
    one that stretches or clips instead of scaling.
    """
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        return _from_deep(np.asarray(image), image.info.get("transparency"))
    if has_alpha(image):
        straight = image.convert("LA") if mode == "La" else image
        return _from_alpha(straight if straight.mode == "RGBA" else straight.convert("RGBA"))
    if mode in {"L", "RGB"}:
        return (image,)
    if mode == "LAB":
        return (_from_lab(image, name),)
    return (image.convert("L" if mode == "1" else "RGB"),)


def has_alpha(image: Image.Image) -> bool:
    """Whether the picture can have transparent pixels."""
    return image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info


def _from_alpha(image: Image.Image) -> tuple[Image.Image, ...]:
    """Drop an alpha that is opaque everywhere; drop it in a second picture where it hides something."""
    alpha = image.getchannel("A")
    if not any(alpha.histogram()[:255]):
        return (image.convert("RGB"),)
    return (image, image.convert("RGB")) if _hides(image, alpha) else (image,)


def _hides(image: Image.Image, alpha: Image.Image) -> bool:
    """Whether pixels that can hardly be seen have more than one colour, on more than the edge of what can."""
    unseen = alpha.point([255] * UNSEEN + [0] * (256 - UNSEEN))
    colours = np.reshape(image.histogram(unseen), (4, 256))[:3]
    odd = 0
    for counts in colours:
        usual = int(counts.argmax())
        alike = counts[max(0, usual - HIDDEN_LEVELS) : usual + HIDDEN_LEVELS + 1]
        odd = max(odd, int(counts.sum() - alike.sum()))
    return odd > HIDDEN_AREA * image.width * image.height


def premultiplied(image: Image.Image, factor: int) -> Image.Image:
    """Multiply RGBA's colour by its alpha and average blocks of factor x factor pixels.

    Done some rows at a time: two full-size copies are the largest cost of a large transparent picture.
    """
    if factor == 1:
        return image.convert("RGBa")
    width, height = image.size
    small = Image.new("RGBa", (-(-width // factor), -(-height // factor)))
    rows = factor * max(1, CHUNK // (width * factor))
    for top in range(0, height, rows):
        box = (0, top, width, min(height, top + rows))
        strip = image.resize(
            (width, box[3] - top), Image.Resampling.NEAREST, box
        )  # crop() has limits of its own
        small.paste(strip.convert("RGBa").reduce(factor), (0, top // factor))
    return small


def _from_deep(array: Array, transparent: object) -> tuple[Image.Image, ...]:
    """Bring 16-bit, 32-bit and float grey to 8 bits, with the one transparent value that 16-bit grey may have."""
    pictures = [_scale_rows(array, *edges) for edges in _ways(array)]
    if not isinstance(transparent, int):
        return tuple(pictures)
    alpha = Image.fromarray(np.where(array == transparent, np.uint8(0), np.uint8(255)))
    return tuple(
        way for grey in pictures for way in _from_alpha(Image.merge("LA", (grey, alpha)).convert("RGBA"))
    )


def _ways(array: Array) -> list[tuple[float, float]]:
    """Find the ranges to show: what the numbers speak of, the one nearly all of them lie in, and what is left by clipping.

    A few pixels of a far number must not turn all others into one shade.
    """
    low, high = _depth(array, *_range(array))
    ways = [(low, high)]
    bulk = _bulk(array, low, high)
    if bulk and bulk[1] - bulk[0] < NARROW * (high - low):
        start = 0.0 if low == 0.0 and bulk[1] <= NARROW * high else bulk[0]
        ways.append((start, bulk[1] if array.dtype.kind == "f" else max(bulk[1], start + 255)))
    shown = any(start == 0.0 and 128 <= stop < 512 for start, stop in ways)
    if not shown and _shows_when_clipped(array, max(255.0, NARROW * high)):
        ways.append((0.0, 255.0))
    return ways


def _bulk(array: Array, low: float, high: float) -> tuple[float, float] | None:
    """Find the range of all pixels but a hundredth at either end, to a sixteenth of it; None where they have one shade."""
    spare = [HIDDEN_AREA * array.size] * 2
    for _ in range(MAX_LOOKS):
        counts, lowest, highest = np.zeros(BINS, np.int64), math.inf, -math.inf
        for part in _parts(array):
            inside = part[(part >= low) & (part <= high)]
            if inside.size:
                lowest, highest = min(lowest, float(inside.min())), max(highest, float(inside.max()))
            bins = ((inside - low) * (BINS / (high - low))).astype(np.int64)
            counts += np.bincount(np.minimum(bins, BINS - 1), minlength=BINS)
        if lowest >= highest:
            return None
        first = int(np.searchsorted(np.cumsum(counts), spare[0], "right"))
        last = BINS - 1 - int(np.searchsorted(np.cumsum(counts[::-1]), spare[1], "right"))
        if last < first:  # too few numbers to leave any out
            break
        spare[0] -= float(counts[:first].sum())
        spare[1] -= float(counts[last + 1 :].sum())
        width = (high - low) / BINS
        low, high = max(low + first * width, lowest), min(low + (last + 1) * width, highest)
        if not low < low + (high - low) / BINS < high:  # no finer steps in double precision
            return None
        if last - first >= BINS * NARROW:
            break
    return low, high


def _shows_when_clipped(array: Array, dark: float) -> bool:
    """Whether numbers up to `dark`, which scaling shows black, have more than one shade to a program that cuts off at 0 and 255."""
    counts = np.zeros(256, np.int64)
    for part in _parts(array):
        counts += np.bincount(np.clip(part[part <= dark], 0, 255).astype(np.uint8), minlength=256)
    usual = int(counts.argmax())
    alike = counts[max(0, usual - HIDDEN_LEVELS) : usual + HIDDEN_LEVELS + 1]
    return int(counts.sum() - alike.sum()) > HIDDEN_AREA * array.size


def _parts(array: Array) -> Iterator[Array]:
    """Give some rows at a time, in double precision: unsigned differences would wrap."""
    rows = max(1, CHUNK // max(1, array[0].size))
    for start in range(0, len(array), rows):
        yield array[start : start + rows].astype(np.float64)


def _range(array: Array) -> tuple[float, float]:
    """Find the lowest and highest number that is one."""
    if array.dtype.kind != "f":
        return float(array.min()), float(array.max())
    low, high = math.inf, -math.inf
    for row in array:
        numbers = row[np.isfinite(row)]
        if numbers.size:
            low, high = min(low, float(numbers.min())), max(high, float(numbers.max()))
    return (low, high) if low <= high else (0.0, 0.0)


def _depth(array: Array, low: float, high: float) -> tuple[float, float]:
    """Find the range that the numbers speak of: 16 bits, 0..1, 0..255, or else their own."""
    if low < 0 or high > 65535:
        return low, high
    if array.dtype.kind == "u":
        return 0.0, 65535.0
    if array.dtype.kind == "f" and high <= 1:
        return 0.0, 1.0
    return 0.0, 255.0 if high <= 255 else 65535.0


def _scale_rows(array: Array, low: float, high: float) -> Image.Image:
    """Scale a range to 0..255, rounded, some rows at a time: the numbers in between take four times the memory."""
    out = np.empty(array.shape, np.uint8)
    rows = max(1, CHUNK // max(1, out[0].size))
    exact: Any = np.float64 if high - low > FLOAT32_SPAN else np.float32
    for start in range(0, len(array), rows):
        part = array[start : start + rows].astype(exact)
        part = np.clip(np.nan_to_num(part, nan=low), low, high) - exact(low)
        out[start : start + rows] = np.rint(part * exact(255 / max(high - low, 1e-9)))
    return Image.fromarray(out)


def _from_lab(image: Image.Image, name: str) -> Image.Image:
    try:
        from PIL import ImageCms  # noqa: PLC0415 - littlecms is only needed for this rare mode
    except ImportError as error:
        raise CorruptImageError("LAB colours need a Pillow built with littlecms", source=name) from error
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None  # only in-place conversion returns None
    return converted


def check_array(array: Array) -> None:
    """Check the shape and dtype of a caller's array. Raises BadArrayError."""
    shape = array.shape
    if array.ndim not in {2, 3} or (array.ndim == 3 and shape[2] not in {1, 3, 4}) or array.size == 0:
        raise BadArrayError(f"{ARRAY_EXPECTED}, got shape {shape}", source="array")
    if (
        array.dtype != np.uint8
        and array.dtype.kind != "f"
        and (array.dtype.kind, array.dtype.itemsize) != ("u", 2)
    ):
        raise BadArrayError(f"{ARRAY_EXPECTED}, got dtype {array.dtype}", source="array")


def from_array(array: Array) -> tuple[Image.Image, ...]:
    """Give a checked array as L, RGB or RGBA. Raises BadArrayError for values out of range."""
    array = np.asarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array)
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0.0 and high <= 1.0):  # not: NaN compares false
            worst = low if low < 0.0 else high
            raise BadArrayError(
                f"{ARRAY_EXPECTED}, got {low:g}..{high:g}", source="array", value=worst, limit=1.0
            )
        image = _scale_rows(array, 0.0, 1.0)
    elif array.dtype != np.uint8 and array.ndim == 2:
        return _from_deep(array, None)
    elif array.dtype != np.uint8:
        image = _scale_rows(array, 0.0, 65535.0)
    else:
        image = Image.fromarray(np.ascontiguousarray(array))
    return _from_alpha(image) if image.mode == "RGBA" else (image,)
