"""One picture in the forms that got past other moderators."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from moderation_client import EmptyImageError, ImageSpec, TruncatedImageError
from moderation_client.images import decode
from tests.pictures import Pixels, encoded, flat, frames_file, scene

SPEC = ImageSpec(height=32, width=32)


def _content(decoded_pixels: Pixels) -> float:
    """Give how much of the scene the best view shows: 1 minus its mean difference in full contrast."""
    shown = decode(scene(), SPEC).pixels.astype(int)
    return float(max(1 - np.abs(view - shown[0]).mean() / 64 for view in decoded_pixels.astype(int)))


def _panel() -> dict[str, bytes]:
    picture = Image.fromarray(scene())
    blank = flat("white", (160, 120))
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "turned by exif": encoded(
            picture.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95
        ),
        "gif, third frame": frames_file([blank, blank, picture, blank], "GIF", duration=[9, 8, 7, 6]),
        "webp, third frame": frames_file([blank, blank, picture, blank], "WEBP", duration=[90, 80, 70, 60]),
        "apng, third frame": frames_file([blank, blank, picture, blank], "PNG", duration=[90, 80, 70, 60]),
        "apng, hidden first picture": frames_file([picture, blank, blank], "PNG", default_image=True),
        "alpha 0 everywhere": encoded(Image.merge("RGBA", (*picture.split(), Image.new("L", picture.size)))),
        "cmyk": encoded(picture.convert("CMYK"), "JPEG", quality=95),
        "last page": frames_file([blank, blank, picture], "TIFF"),
    }


@pytest.mark.parametrize("name", _panel())
def test_content_cannot_hide(name: str) -> None:
    """Turned, in one frame, on one page, under invisible pixels: one of the views shows it, and nothing is left out."""
    decoded = decode(_panel()[name], SPEC)
    assert _content(decoded.pixels) > 0.9
    assert decoded.incomplete is None


def test_sixteen_bit_grey_is_not_a_white_page() -> None:
    """The clip that blinds other moderators does not happen, by path, bytes, PIL image or array."""
    grey = np.asarray(Image.fromarray(scene()).convert("L"))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    for source in (encoded(deep), encoded(deep, "TIFF"), deep, np.asarray(deep)):
        np.testing.assert_array_equal(decode(grey, SPEC).pixels, decode(source, SPEC).pixels)


def test_no_picture_fails_with_its_own_error() -> None:
    """Truncated, empty and one-pixel files are told apart."""
    data = encoded(scene(), "JPEG")
    with pytest.raises(TruncatedImageError):
        decode(data[:-100], SPEC)
    with pytest.raises(EmptyImageError):
        decode(b"", SPEC)
    assert decode(encoded(flat("red", (1, 1))), SPEC).pixels.reshape(-1, 3).tolist() == [[255, 0, 0]] * 1024
