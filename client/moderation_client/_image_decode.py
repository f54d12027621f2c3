"""The order of steps of `decode`: read, open, check, choose frames and tiles, convert, resize, stack."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from moderation_client import _image_frames, _image_modes, _image_views
from moderation_client._image_file import check_size, open_image, typed_errors
from moderation_client._image_source import Encoded, Loaded, read_source
from moderation_client.contract import ImageSpec
from moderation_client.images import DecodedImage, ImageLimits, ImageSource
from moderation_client.results import ImageInfo, Views

Array = np.ndarray[Any, Any]
ORIENTATION_TAG = 0x0112


def decode_source(source: ImageSource, spec: ImageSpec, limits: ImageLimits) -> DecodedImage:
    """Decode any source; see `images.decode`."""
    taken = read_source(source, limits)
    return (
        _decode_loaded(taken, spec, limits)
        if isinstance(taken, Loaded)
        else _decode_file(taken, spec, limits)
    )


def _decode_loaded(taken: Loaded, spec: ImageSpec, limits: ImageLimits) -> DecodedImage:
    pixels = taken.pixels
    with typed_errors(b"", "pixels", taken.name):
        if isinstance(pixels, np.ndarray):
            image, mode, format, orientation = _image_modes.from_array(pixels), str(pixels.dtype), None, 1
            check_size(image.size, taken.name, limits)
        else:
            check_size(pixels.size, taken.name, limits)
            image, mode, format = _image_modes.to_8bit(pixels, taken.name), pixels.mode, pixels.format
            orientation = _orientation(pixels)
        frame = _frame(image, image.size, 1.0, spec, orientation, limits)
    info = _info(format, image.size, mode, orientation)
    return _stack([frame], 1, info, limits, None)


def _decode_file(taken: Encoded, spec: ImageSpec, limits: ImageLimits) -> DecodedImage:
    image = open_image(taken.data, taken.name, limits)
    size, mode, format = image.size, image.mode, str(image.format)
    with typed_errors(taken.data, format, taken.name):
        total = _image_frames.count_frames(image, taken.data, taken.name, limits)
        num_tiles = len(_image_views.tiles(*size))
        wanted = max(1, min(limits.max_frames, limits.max_views // num_tiles))
        reachable = max(1, min(total, limits.max_decoded_pixels // (size[0] * size[1])))
        orientation = 1
        frames = []
        for frame in _frames(image, _image_frames.evenly(reachable, wanted), taken.name, limits, spec):
            orientation = frame[3]
            frames.append(_frame(*frame[:3], spec, orientation, limits))
    reason = None
    if len(frames) < total:
        reason = f"{len(frames)} of {total} frames were looked at"
    return _stack(frames, total, _info(format, size, mode, orientation), limits, reason)


def _frames(
    image: ImageFile.ImageFile, indices: list[int], name: str, limits: ImageLimits, spec: ImageSpec
) -> Iterator[tuple[Image.Image, tuple[int, int], float, int]]:
    """Decode the chosen frames in order: 8-bit picture, its full size, the scale it was decoded at, its orientation."""
    for index in indices:
        if index:
            image.seek(index)
        size, scale = image.size, 1.0
        check_size(size, name, limits)
        if image.format == "JPEG":
            box = _image_views.tiles(*size)[0]
            drafted = image.draft(None, _image_views.draft_size(size, box, spec, _orientation(image)))
            scale = drafted[1][2] / size[0] if drafted else 1.0
        image.load()
        yield _image_modes.to_8bit(image, name), size, scale, _orientation(image)


def _frame(
    image: Image.Image,
    size: tuple[int, int],
    scale: float,
    spec: ImageSpec,
    orientation: int,
    limits: ImageLimits,
) -> list[list[Array]]:
    """Look at one frame: per tile, its views over each background."""
    boxes = _image_views.tiles(*size)
    chosen = _image_frames.evenly(len(boxes), min(len(boxes), limits.max_views))
    return [
        _image_views.frame_views(image, _image_views.scaled(boxes[index], scale), spec, orientation)
        for index in chosen
    ]


def _stack(
    frames: list[list[list[Array]]],
    total_frames: int,
    info: ImageInfo,
    limits: ImageLimits,
    reason: str | None,
) -> DecodedImage:
    """Choose views up to the cap, the main background of every tile first, and say what was left out."""
    per_tile = [backgrounds for frame in frames for backgrounds in frame]
    depth = max(len(backgrounds) for backgrounds in per_tile)
    ordered = [backgrounds[at] for at in range(depth) for backgrounds in per_tile if at < len(backgrounds)]
    num_tiles = len(_image_views.tiles(info.width, info.height))
    total = (
        len(ordered) + (num_tiles - len(frames[0])) * len(frames) + (total_frames - len(frames)) * num_tiles
    )
    chosen = ordered[: limits.max_views]
    if reason is None and len(chosen) < total:
        reason = f"{len(chosen)} of {total} views were looked at"
    pixels = np.ascontiguousarray(np.stack(chosen))
    return DecodedImage(
        pixels=pixels, info=info, views=Views(total=total, looked_at=len(chosen)), incomplete=reason
    )


def _info(format: str | None, size: tuple[int, int], mode: str, orientation: int) -> ImageInfo:
    return ImageInfo(format=format, width=size[0], height=size[1], mode=mode, exif_turned=orientation != 1)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; a block that cannot be read turns nothing."""
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001 - the EXIF parser raises whatever broken bytes make it trip over
        return 1
    return value if isinstance(value, int) and 2 <= value <= 8 else 1
