"""The order of steps of `decode`: read, probe, open, choose frames, decode, tile, resize, stack."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from moderation_client import _image_modes, _image_views
from moderation_client._image_file import Opened, check_size, open_image, typed_errors
from moderation_client._image_frames import APART, FramePlan, evenly, load_frame, plan_frames, seek_frame
from moderation_client._image_source import Encoded, frames_missing, read_source
from moderation_client.contract import ImageSpec
from moderation_client.images import DecodedImage, ImageLimits, ImageSource
from moderation_client.results import ImageInfo, Views

Array = np.ndarray[Any, Any]
ORIENTATION_TAG = 0x0112


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one frame shows."""

    tiles: list[list[Array]]
    """Per tile looked at, its views: uint8 [H, W, 3], the main one first."""
    num_tiles: int
    """Tiles that the frame has."""
    orientation: int
    """EXIF orientation that was applied."""


def decode_source(source: ImageSource, spec: ImageSpec, limits: ImageLimits) -> DecodedImage:
    """Decode any source; see `images.decode`."""
    taken = read_source(source, limits)
    if isinstance(taken, Encoded):
        opened = open_image(taken.data, taken.name, limits)
        with typed_errors(opened.format, taken.name, complete=opened.probe.complete):
            return _decode_file(opened, spec, limits)
    with typed_errors("pixels", taken.name):
        if isinstance(taken.pixels, np.ndarray):
            return _decode_array(taken.pixels, spec, limits)
        return _decode_loaded(taken.pixels, taken.num_frames, spec, limits)


def _decode_array(array: Array, spec: ImageSpec, limits: ImageLimits) -> DecodedImage:
    _image_modes.check_array(array)
    height, width = array.shape[:2]
    check_size((width, height), "array", limits)
    look = _look(_image_modes.from_array(array), (width, height), spec, limits)
    info = ImageInfo(format=None, width=width, height=height, mode=str(array.dtype))
    return _assemble([look], FramePlan(total=1, indices=[0]), info, limits)


def _decode_loaded(
    image: Image.Image, num_frames: int | None, spec: ImageSpec, limits: ImageLimits
) -> DecodedImage:
    """Use a loaded image's pixels as they are."""
    check_size(image.size, "PIL image", limits)
    pictures = _image_modes.to_8bit(image, "PIL image")
    look = _look(pictures, image.size, spec, limits, orientation=orientation_of(image.info))
    info = _info(image.format, image.size, image.mode, look.orientation)
    plan = FramePlan(total=num_frames or 1, indices=[0], left_out=frames_missing(num_frames))
    return _assemble([look], plan, info, limits)


def _decode_file(opened: Opened, spec: ImageSpec, limits: ImageLimits) -> DecodedImage:
    image = opened.image
    size, mode, turned = image.size, image.mode, _tiff_orientation(image)
    if turned >= 5:
        size = size[1], size[0]  # Pillow has swapped them already
    if opened.format == "JPEG":
        plan, looks = FramePlan(total=1, indices=[0]), [_look_at_jpeg(opened, spec, limits)]
    else:
        plan = plan_frames(opened, limits)
        looks = _look_at_frames(opened, plan, spec, limits)
        if len(looks) < len(plan.indices):
            plan = replace(plan, left_out=f"{plan.total - len(looks)} of {plan.total} pages")
    info = _info(opened.format, size, mode, max(turned, looks[0].orientation))
    return _assemble(looks, plan, info, limits)


def _look_at_jpeg(opened: Opened, spec: ImageSpec, limits: ImageLimits) -> Look:
    """Decode a JPEG at the smallest scale that serves the model's size."""
    image, size = opened.image, opened.image.size
    orientation = orientation_of(image.info)
    drafted = image.draft(None, _image_views.draft_size(size, spec, orientation))
    scale = drafted[1][2] / size[0] if drafted else 1.0
    return _look(load_frame(opened, 0, limits), size, spec, limits, orientation=orientation, scale=scale)


def _look_at_frames(opened: Opened, plan: FramePlan, spec: ImageSpec, limits: ImageLimits) -> list[Look]:
    """Look at the planned frames; where each has a size of its own, no further than pixels and views reach."""
    looks: list[Look] = []
    left_pixels, left_tiles = limits.max_decoded_pixels, limits.max_views
    for index in plan.indices:
        if opened.format in APART:
            width, height = seek_frame(opened, index, limits)
            left_pixels -= width * height
            if looks and (left_pixels < 0 or left_tiles <= 0):
                break
        looks.append(_look_at_frame(opened, index, spec, limits))
        left_tiles -= len(looks[-1].tiles)
    return looks


def _look_at_frame(opened: Opened, index: int, spec: ImageSpec, limits: ImageLimits) -> Look:
    """Decode one frame and look at it at once: the next one takes its memory."""
    pictures = load_frame(opened, index, limits)
    image = opened.image
    return _look(pictures, image.size, spec, limits, orientation=orientation_of(image.info))


def _look(
    pictures: tuple[Image.Image, ...],
    size: tuple[int, int],
    spec: ImageSpec,
    limits: ImageLimits,
    *,
    orientation: int = 1,
    scale: float = 1.0,
) -> Look:
    """Cut a frame of this stored size, decoded at a scale, into tiles and make the views of each."""
    boxes = _image_views.tiles(*size)
    chosen = [_image_views.scaled(boxes[at], scale) for at in evenly(len(boxes), limits.max_views)]
    tiles: list[list[Array]] = [[] for _ in chosen]
    for picture in pictures:
        ready, shrunk = _image_views.prepared(picture, chosen[0], spec, orientation)
        for views, box in zip(tiles, chosen, strict=True):
            views.extend(_image_views.tile_views(ready, _image_views.scaled(box, shrunk), spec, orientation))
    return Look(tiles=tiles, num_tiles=len(boxes), orientation=orientation)


def _assemble(looks: list[Look], plan: FramePlan, info: ImageInfo, limits: ImageLimits) -> DecodedImage:
    """Keep as many views as the cap allows, every tile's main view first, and say what was left out."""
    tiles = [views for look in looks for views in look.tiles]
    ordered = [views[at] for at in range(max(map(len, tiles))) for views in tiles if at < len(views)]
    chosen = ordered[: limits.max_views]
    seen = len(ordered) + sum(look.num_tiles - len(look.tiles) for look in looks)
    total = seen + (plan.total - len(looks)) * looks[0].num_tiles
    left_out = plan.left_out
    if left_out is None and len(chosen) < seen:
        left_out = f"{seen - len(chosen)} of {seen} views"
    return DecodedImage(
        pixels=np.ascontiguousarray(np.stack(chosen)),
        info=info,
        views=Views(total=total, looked_at=len(chosen)),
        incomplete=f"{left_out} were not looked at" if left_out else None,
    )


def _info(format: str | None, size: tuple[int, int], mode: str, orientation: int) -> ImageInfo:
    return ImageInfo(format=format, width=size[0], height=size[1], mode=mode, exif_turned=orientation != 1)


def _tiff_orientation(image: Image.Image) -> int:
    """Read the orientation of a TIFF, which Pillow applies itself and then forgets."""
    tags = getattr(image, "tag_v2", None)
    return _valid(tags.get(ORIENTATION_TAG)) if tags is not None else 1


def orientation_of(info: dict[Any, Any]) -> int:
    """Read the EXIF (or XMP) orientation, 1..8; a block that cannot be read turns nothing.

    Read through a blank image with the same metadata, so that nothing is cached on, or loaded by, a caller's image.
    """
    if not any(key in info for key in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")):
        return 1
    blank = Image.new("1", (1, 1))
    blank.info = info
    try:
        return _valid(blank.getexif().get(ORIENTATION_TAG))
    except Exception:  # noqa: BLE001 - the EXIF parser raises whatever broken bytes make it trip over
        return 1


def _valid(orientation: object) -> int:
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1
