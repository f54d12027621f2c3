"""What was handed over: turns every accepted kind of source into file bytes, a loaded PIL image or an array.

Nothing of the caller's is changed: file positions are restored, PIL images that are not loaded are reread from their
file instead of being loaded (or drafted) in place.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from moderation_client._errors import EmptyImageError, ImageReadError, ImageTooLargeError
from moderation_client._image_file import sniff
from moderation_client._image_probe import probe_file

if TYPE_CHECKING:
    from moderation_client.images import ImageLimits, ImageSource

EXPECTED = "expected a path, bytes, a binary file object, a PIL image or a numpy array"


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A file's bytes."""

    data: bytes
    name: str


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Pixels that somebody else decoded: a PIL image or an array."""

    pixels: Image.Image | np.ndarray[Any, Any]
    name: str
    num_frames: int | None = 1
    """Frames of the file that the pixels are one of; None when nobody can tell any more."""


def read_source(source: ImageSource | Loaded, limits: ImageLimits) -> Encoded | Loaded:
    """Get at the bytes or pixels of a source. Raises ImageReadError, EmptyImageError, ImageTooLargeError."""
    if isinstance(source, Loaded):
        return source
    if isinstance(source, np.ndarray):
        return Loaded(pixels=source, name="array")
    if isinstance(source, Image.Image):
        return _read_pil(source, limits)
    if isinstance(source, bytes | bytearray | memoryview):
        return _read_buffer(source, limits)
    if isinstance(source, str | os.PathLike):
        return _read_path(source, limits)
    if callable(getattr(source, "read", None)):
        return _read_file(source, "file object", limits)
    raise ImageReadError(f"{EXPECTED}, got {type(source).__name__}", source=type(source).__name__)


def own(loaded: Loaded) -> Loaded:
    """The same with pixels of its own."""
    pixels = loaded.pixels.copy()
    if isinstance(pixels, Image.Image) and isinstance(loaded.pixels, Image.Image):
        pixels.format = loaded.pixels.format
    return replace(loaded, pixels=pixels)


def _read_buffer(source: bytes | bytearray | memoryview, limits: ImageLimits) -> Encoded:
    try:
        _check_size(source.nbytes if isinstance(source, memoryview) else len(source), "bytes", limits)
        return Encoded(data=bytes(source), name="bytes")
    except (ValueError, NotImplementedError) as error:  # a memoryview that was released, or of strange items
        raise ImageReadError(f"cannot be read: {error}", source="bytes") from error


def _read_path(source: str | os.PathLike[str], limits: ImageLimits) -> Encoded:
    name = os.fsdecode(source)
    try:
        with Path(name).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            _check_size(size or 1, name, limits)  # a pipe says 0: what can be read decides
            data = file.read(limits.max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise ImageReadError(f"cannot be read: {error}", source=name) from error
    _check_size(len(data), name, limits)
    return Encoded(data=data, name=name)


def _read_file(file: Any, name: str, limits: ImageLimits) -> Encoded:
    """Read a file object from its start and put its position back."""
    try:
        position = file.tell() if _seekable(file) else None
        if position is not None:
            file.seek(0)
        try:
            data = _read_all(file, limits.max_bytes + 1)
        finally:
            if position is not None:
                file.seek(position)
    except Exception as error:
        # A file-like object of the caller's may raise anything: it is still this image that cannot be judged.
        raise ImageReadError(f"cannot be read: {error or type(error).__name__}", source=name) from error
    _check_size(len(data), name, limits)
    return Encoded(data=data, name=name)


def _seekable(file: Any) -> bool:
    """Whether the position can be kept; file-likes that only have seek and tell count."""
    seekable = getattr(file, "seekable", None)
    return bool(seekable()) if callable(seekable) else hasattr(file, "seek") and hasattr(file, "tell")


def _read_all(file: Any, limit: int) -> bytes:
    """Read up to `limit` bytes, in as many reads as a raw stream needs."""
    parts: list[bytes] = []
    size = 0
    while size < limit:
        part = file.read(limit - size)
        if isinstance(part, str):
            raise TypeError("it is open as text; open it with mode 'rb'")
        if not part:
            break
        parts.append(bytes(part))
        size += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _read_pil(image: Image.Image, limits: ImageLimits) -> Encoded | Loaded:
    """Reread an image that is not loaded; take a loaded one as it is.

    A loaded animation holds one frame of many: its file is judged when that is still open, else the others are known
    to be missing.
    """
    loaded = _is_loaded(image)
    file = _file_of(image)
    num_frames = _frames_known(image)
    if not loaded and file is None:
        raise ImageReadError("its file is closed and its pixels were never loaded", source="PIL image")
    if file is not None and (not loaded or num_frames != 1 or image.format in {"GIF", "TIFF"}):
        taken = _read_file(file, "PIL image", limits)
        if not loaded or _num_frames(taken.data) > 1:
            return taken
        num_frames = num_frames or 1
    return Loaded(pixels=image, name="PIL image", num_frames=num_frames)


def _frames_known(image: Image.Image) -> int | None:
    """What the image itself has counted; asking for `n_frames` would make GIF and TIFF read the caller's file."""
    known = vars(image)
    count = known.get("n_frames") or known.get("_n_frames")
    if count is not None:
        return int(count)
    counts_late = image.format in {"GIF", "TIFF"} and "_n_frames" in known
    return None if counts_late and known.get("is_animated") is not False else 1


def frames_missing(num_frames: int | None) -> str | None:
    """Which frames a loaded image lacks, when it is one of many or may be."""
    if num_frames is None:
        return "other frames that its file may have (it was closed before they were counted)"
    return f"{num_frames - 1} of {num_frames} frames" if num_frames > 1 else None


def _is_loaded(image: Image.Image) -> bool:
    """Whether an image holds pixels; asking for `image.im` or `load()` would make it load them."""
    try:
        return bool(image._im.mode)  # type: ignore[union-attr]
    except (AttributeError, ValueError):  # None, or Pillow's stand-in for a closed image
        return False


def _file_of(image: Image.Image) -> Any:
    """Give the file that a PIL image still holds open, if any."""
    for name in ("_fp", "fp"):
        file: Any = getattr(image, name, None)
        try:
            if callable(file.read) and not getattr(file, "closed", False):
                return file
        except (AttributeError, ValueError):  # None, or Pillow's stand-in for a closed file
            continue
    return None


def _num_frames(data: bytes) -> int:
    """Count a file's frames; 1 for what is no file (some plugins put a frame's raw pixels in its place)."""
    format = sniff(data)
    if format in {"GIF", "TIFF"}:
        return probe_file(data, format, "PIL image").num_frames or 1
    return 2 if format else 1  # the others' images know their number


def _check_size(num_bytes: int, name: str, limits: ImageLimits) -> None:
    if num_bytes == 0:
        raise EmptyImageError("there are no bytes", source=name, value=0)
    if num_bytes > limits.max_bytes:
        raise ImageTooLargeError(
            f"more than {limits.max_bytes} bytes (max_bytes)",
            source=name,
            value=num_bytes,
            limit=limits.max_bytes,
        )
