"""How a picture that is decoded already travels to a server that decodes itself: as a PNG that shows the same.

What PNG holds goes as it is, transparency and 16-bit grey included; the rest is brought to 8 bits as `decode` would. The EXIF turn
is applied, since metadata stays here.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from moderation_client import _image_modes, _image_views
from moderation_client._image_decode import orientation_of
from moderation_client._image_file import check_size, typed_errors
from moderation_client._image_source import Loaded, frames_missing
from moderation_client.images import ImageLimits

AS_IT_IS = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}
"""Modes that PNG holds without loss."""


def as_png(taken: Loaded, limits: ImageLimits) -> tuple[bytes, str | None]:
    """The file, and what of the picture is not in it. Raises InvalidImageError."""
    with typed_errors("pixels", taken.name):
        if isinstance(taken.pixels, np.ndarray):
            pictures = _of_array(taken.pixels, limits)
        else:
            check_size(taken.pixels.size, taken.name, limits)
            pictures = _of_image(taken.pixels, taken.name)
        buffer = io.BytesIO()
        pictures[0].save(buffer, "PNG", compress_level=1)
    left_out = frames_missing(taken.num_frames)
    if left_out is None and pictures[0].mode == "L" and len(pictures) > 1:
        left_out = "the darkest of its levels"
    return buffer.getvalue(), f"{left_out} were not looked at" if left_out else None


def _of_array(array: np.ndarray[Any, Any], limits: ImageLimits) -> tuple[Image.Image, ...]:
    _image_modes.check_array(array)
    check_size((array.shape[1], array.shape[0]), "array", limits)
    flat = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if flat.ndim == 2 and flat.dtype.kind == "u" and flat.dtype.itemsize == 2:
        return (Image.fromarray(np.ascontiguousarray(flat, np.uint16)),)
    return _image_modes.from_array(array)


def _of_image(image: Image.Image, name: str) -> tuple[Image.Image, ...]:
    """Without metadata other than the transparent colour."""
    pictures = (image.copy(),) if image.mode in AS_IT_IS else _image_modes.to_8bit(image, name)
    turned = tuple(_image_views.turned(picture, orientation_of(image.info)) for picture in pictures)
    for picture in turned:
        transparent = picture.info.get("transparency")
        picture.info = {} if transparent is None or picture.mode == "RGBA" else {"transparency": transparent}
    return turned
