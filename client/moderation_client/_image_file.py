"""Opening a file's bytes: which format it is, with exactly one Pillow plugin, inside the limits, and with typed errors.

`Image.open` is not used: it warns about large pictures through the process-wide warning filters, imports every plugin
when none fits, and turns multi-picture JPEGs into another class. The plugin's class is called directly instead.
"""

from __future__ import annotations

import functools
import importlib
import struct
import threading
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageFile

from moderation_client._errors import (
    CorruptImageError,
    ImageTooLargeError,
    InvalidImageError,
    TruncatedImageError,
    UnsupportedFormatError,
)
from moderation_client._image_probe import Probe, probe_file

if TYPE_CHECKING:
    from moderation_client.images import ImageLimits

PLUGINS = {
    "JPEG": ("PIL.JpegImagePlugin", "JpegImageFile"),
    "PNG": ("PIL.PngImagePlugin", "PngImageFile"),
    "WEBP": ("PIL.WebPImagePlugin", "WebPImageFile"),
    "GIF": ("PIL.GifImagePlugin", "GifImageFile"),
    "BMP": ("PIL.BmpImagePlugin", "BmpImageFile"),
    "TIFF": ("PIL.TiffImagePlugin", "TiffImageFile"),
    "AVIF": ("PIL.AvifImagePlugin", "AvifImageFile"),
    "HEIF": ("pillow_heif", "HeifImageFile"),
}
TIFF_MAGIC = (b"II\x2a\x00", b"MM\x00\x2a", b"II\x00\x2a", b"MM\x2a\x00", b"II\x2b\x00", b"MM\x00\x2b")
AVIF_BRANDS = {b"avif", b"avis"}
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}


def sniff(data: bytes) -> str | None:
    """Name the format by its first bytes, None when it is none of ours."""
    for magic, name in (
        (b"\xff\xd8\xff", "JPEG"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"GIF8", "GIF"),
        (b"BM", "BMP"),
    ):
        if data.startswith(magic):
            return name
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith(TIFF_MAGIC):
        return "TIFF"
    if data[4:8] == b"ftyp":
        size = min(max(16, struct.unpack(">I", data[:4])[0]), 4096)
        brands = {data[8:12], *(data[at : at + 4] for at in range(16, min(size, len(data)), 4))}
        if brands & AVIF_BRANDS:
            return "AVIF"
        if brands & HEIF_BRANDS:
            return "HEIF"
    return None


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A file whose header has been read and whose pixels have not."""

    image: ImageFile.ImageFile
    probe: Probe
    format: str
    name: str


def open_image(data: bytes, name: str, limits: ImageLimits) -> Opened:
    """Open a file without decoding pixels. Raises UnsupportedFormatError, ImageTooLargeError and what `typed_errors` raises."""
    format = sniff(data)
    if format is None:
        raise UnsupportedFormatError(
            f"not an image of a known format ({', '.join(limits.formats)})", source=name
        )
    if format not in limits.formats:
        raise UnsupportedFormatError(
            f"{format} is not allowed here ({', '.join(limits.formats)})", source=name
        )
    plugin = _plugin(format, name)
    probe = probe_file(data, format, name)
    if probe.size is not None:
        check_size(probe.size, name, limits)
    with typed_errors(format, name, complete=probe.complete):
        if ImageFile.LOAD_TRUNCATED_IMAGES and not probe.complete:
            raise TruncatedImageError(f"{format}: the file ends before the picture does", source=name)
        image = plugin(BytesIO(data))
    check_size(image.size, name, limits)
    return Opened(image=image, probe=probe, format=format, name=name)


def _plugin(format: str, name: str) -> Any:
    """Import one format's decoder, and no other's."""
    module, attribute = PLUGINS[format]
    try:
        plugin = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        hint = '; pip install "moderation-client[heif]"' if format == "HEIF" else ""
        raise UnsupportedFormatError(
            f"this installation cannot decode {format}{hint}", source=name
        ) from error
    return plugin


def check_size(size: tuple[int, int], name: str, limits: ImageLimits) -> None:
    """Refuse a picture, frame or page that is too large or too elongated, by its header."""
    width, height = size
    if width < 1 or height < 1:
        raise CorruptImageError(f"has no pixels ({width}x{height})", source=name, value=0)
    if width * height > limits.max_pixels:
        raise ImageTooLargeError(
            f"{width}x{height} is more than {limits.max_pixels} pixels (max_pixels)",
            source=name,
            value=width * height,
            limit=limits.max_pixels,
        )
    ratio = max(size) / min(size)
    if ratio > limits.max_side_ratio:
        raise ImageTooLargeError(
            f"{width}x{height} has a side ratio above {limits.max_side_ratio:g} (max_side_ratio)",
            source=name,
            value=ratio,
            limit=limits.max_side_ratio,
        )


@contextmanager
def typed_errors(format: str, name: str, *, complete: bool = True) -> Iterator[None]:
    """Turn whatever a decoder raises into ours, and keep its warnings to itself."""
    _quieten()
    _thread.depth = getattr(_thread, "depth", 0) + 1
    try:
        yield
    except InvalidImageError:
        raise
    except (MemoryError, Image.DecompressionBombError) as error:
        raise ImageTooLargeError(f"{format} needs more memory than it may: {error}", source=name) from error
    except Exception as error:
        # Pillow's parsers raise whatever broken bytes make them trip over.
        kind: type[InvalidImageError] = CorruptImageError
        if "too large" in str(error) or "Too much memory" in str(error):
            kind = ImageTooLargeError
        elif not complete or isinstance(error, EOFError) or "truncated" in str(error).lower():
            kind = TruncatedImageError
        raise kind(f"{format}: {error or type(error).__name__}", source=name) from error
    finally:
        _thread.depth -= 1


_thread = threading.local()


class _QuietWarnings(types.ModuleType):
    """Stands in for the `warnings` module inside Pillow: the same, except silent in a thread that is inside `decode`.

    `warnings.catch_warnings` swaps process-wide state and is not safe in threads, and a user's `-W error` would turn a
    remark on a broken EXIF block into a crash. Other uses of Pillow in the process behave as before.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(warnings, name)

    @staticmethod
    def warn(message: Any, category: Any = None, stacklevel: int = 1, source: Any = None) -> None:
        """Warn as usual unless this thread is decoding."""
        if not getattr(_thread, "depth", 0):
            warnings.warn(message, category, stacklevel + 1, source)


@functools.cache
def _quieten() -> None:
    """Give Pillow's modules that warn while decoding the quiet `warnings`, once."""
    for name in ("Image", "JpegImagePlugin", "PngImagePlugin", "TiffImagePlugin"):
        module: Any = importlib.import_module(f"PIL.{name}")
        module.warnings = _QuietWarnings("warnings")
