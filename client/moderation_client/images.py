"""The one decoder of the product: any picture in, what the model looks at out, or a typed error that says why not.

Training's evaluation, calibration, the encoded backend and the client all call `decode`, so no two of them can see a
picture differently. This file holds the public names and the order of steps; the private siblings hold one decision
each: `_image_source` (what was handed over), `_image_probe` (what a file's header promises), `_image_file` (opening it
with exactly one Pillow plugin), `_image_modes` (colour modes to 8 bits), `_image_frames` (which frames), `_image_views`
(tiles, resize, backgrounds). Pillow and numpy are imported by the first call, not by importing this package.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moderation_client._errors import ContractError
from moderation_client.contract import ImageSpec
from moderation_client.results import ImageInfo, Views

if TYPE_CHECKING:
    import os
    from typing import IO, Any, TypeAlias

    import numpy as np
    from PIL import Image

    ImageSource: TypeAlias = (
        str
        | os.PathLike[str]
        | bytes
        | bytearray
        | memoryview
        | IO[bytes]
        | Image.Image
        | np.ndarray[Any, Any]
    )
else:
    ImageSource = (
        "str | os.PathLike | bytes | bytearray | memoryview | BinaryIO | PIL.Image.Image | np.ndarray"
    )

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
"""Every format that can be allowed; HEIF (HEIC) also needs the extra `heif`."""


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What one picture may cost. Everything here is checked before pixels are decoded.

    Beyond `max_bytes`, `max_pixels`, `max_file_frames`, `max_side_ratio` and outside `formats` an image is refused with a typed error.
    Beyond `max_frames`, `max_views` and `max_decoded_pixels` it is looked at in part and `DecodedImage.incomplete` says so.
    """

    max_bytes: int = 32 * 1024 * 1024
    """Size of the file."""
    max_pixels: int = 50_000_000
    """Width times height of one frame. Memory peaks at 5 to 10 bytes a pixel (WebP: 20), for a baseline JPEG below 1."""
    max_side_ratio: float = 50.0
    """Longer side over shorter side."""
    max_file_frames: int = 2_000
    """Frames or pages that a file may have at all."""
    max_frames: int = 16
    """Frames or pages looked at."""
    max_views: int = 48
    """Views an image may give, over frames x tiles x backgrounds: what the model is asked for one image at most."""
    max_decoded_pixels: int = 256_000_000
    """Frames times pixels that may be decoded to get at the frames looked at."""
    formats: tuple[str, ...] = FORMATS
    """Allowed formats; only their decoders are ever run."""

    def __post_init__(self) -> None:
        """Check the values. Raises ContractError that names the field."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "formats" and not value >= 1:
                raise ContractError(f"{field.name} must be at least 1, got {value}")
        unknown = sorted(set(self.formats) - set(FORMATS))
        if unknown or not self.formats:
            raise ContractError(
                f"formats must be some of {', '.join(FORMATS)}, got {', '.join(unknown) or 'none'}"
            )


DEFAULT_LIMITS = ImageLimits()


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodedImage:
    """A picture as the model sees it."""

    pixels: np.ndarray[tuple[int, int, int, int], np.dtype[np.uint8]]
    """uint8 RGB [num_views, H, W, 3], C-contiguous; the image's score per label is the maximum over the views."""
    info: ImageInfo
    """What the file said of itself."""
    views: Views
    """How many views the picture has and how many are in `pixels`."""
    incomplete: str | None = None
    """Why the verdict must be at least REVIEW: what was not looked at. None when everything was."""


def decode(source: ImageSource, spec: ImageSpec, limits: ImageLimits = DEFAULT_LIMITS) -> DecodedImage:
    """Decode, orient, flatten and resize one picture into the model's input.

    `source` is a path, a file's bytes, a binary file object (read from its start; its position is restored), a PIL
    image (one not yet loaded is reread from its file, a loaded one is used as it is; neither is changed) or an array
    HxW, HxWx1, HxWx3 (RGB) or HxWx4 (RGBA) of uint8, uint16 or float 0..1. No URL is ever fetched.

    All encoded forms of a picture give identical pixels. Decoded forms (array, loaded PIL image) give the same pixels
    too, except for a JPEG at least three times as large as the model's input: it is decoded at half, quarter or eighth
    scale, with 1.5 pixels or more left per pixel of the result. Photographs then differ from a full decode by at most 4
    levels of 255 and by less than 1 on average; full-contrast patterns as fine as the result by at most 72, 24 on average.

    A picture gives several views when one is not enough: frames of an animation and pages (sampled evenly), tiles of a
    strip (side ratio > 4), and the backgrounds under transparency. Raises subtypes of InvalidImageError and nothing
    else; safe to call from many threads.
    """
    from moderation_client._image_decode import decode_source  # noqa: PLC0415 - Pillow and numpy take 100 ms to import

    return decode_source(source, spec, limits)
