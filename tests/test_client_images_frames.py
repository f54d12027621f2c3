"""Frames and pages: what can hide in one of many is found, or said not to have been looked at."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moderation_client import ImageSpec
from moderation_client.images import ImageLimits, decode
from tests.pictures import Pixels, encoded, flat, frames_file

SPEC = ImageSpec(height=224, width=224)


def checkers(phase: int = 0) -> Pixels:
    """Pixels that alternate around grey: uint8 [224, 224]."""
    rows, columns = np.indices((224, 224))
    return np.where((rows + columns + phase) % 2, 255, 1).astype(np.uint8)


def hidden(background: Pixels) -> Pixels:
    """The other phase of the pattern, or the pattern itself, over half of a background."""
    shown = background.copy()
    shown[40:180, 30:200] = checkers(1)[40:180, 30:200]
    return shown


@pytest.mark.parametrize("background", [np.full((224, 224), 128, np.uint8), checkers()])
def test_detail_without_a_mean_is_seen_in_a_long_animation(background: Pixels) -> None:
    """Forty frames that are alike on average, one of which shows something: it is looked at."""
    frames = [Image.fromarray(hidden(background) if at == 13 else background) for at in range(40)]
    for at, frame in enumerate(frames):
        frame.putpixel((0, 0), 118 + at % 2)  # the encoder merges frames that are the same
    data = frames_file(frames, "GIF", duration=20)
    decoded = decode(data, SPEC)
    assert decoded.views.total == 40
    assert len(decoded.pixels) == 2 or decoded.incomplete is not None


def test_what_is_painted_under_alpha_0_is_compared_too() -> None:
    """A frame whose invisible pixels show something is one of those looked at."""
    blank = np.full((224, 224), 128, np.uint8)
    frames = []
    for at in range(40):
        grey = Image.fromarray(hidden(blank) if at == 13 else blank)
        frames.append(Image.merge("RGBA", (grey, grey, grey, Image.new("L", grey.size))))
        frames[-1].putpixel((0, 0), (128, 128, 128, 250 + at % 2))
    data = frames_file(frames, "PNG", duration=20)
    decoded = decode(data, SPEC)
    assert max(int(np.ptp(view)) for view in decoded.pixels) > 100


def test_pages_larger_than_the_first_stay_in_the_budget() -> None:
    """Pages count with their own size; what no longer fits is said not to have been looked at."""
    data = frames_file([flat("white", (8, 8)), *[flat("black", (100, 100))] * 9], "TIFF")
    decoded = decode(data, SPEC, ImageLimits(max_decoded_pixels=25_000))
    assert decoded.views.looked_at == 3
    assert decoded.incomplete == "7 of 10 pages were not looked at"


def test_pages_of_a_heif_file_stay_in_the_budget() -> None:
    """As those of a TIFF do: each has a size of its own."""
    heif = pytest.importorskip("pillow_heif", reason="the heif extra is not installed")
    file, buffer = heif.HeifFile(), io.BytesIO()
    for page in [flat("white", (8, 8)), *[flat("black", (100, 100))] * 9]:
        file.add_from_pillow(page)
    file.save(buffer)
    decoded = decode(buffer.getvalue(), SPEC, ImageLimits(max_decoded_pixels=25_000))
    assert decoded.views.looked_at == 3
    assert decoded.incomplete == "7 of 10 pages were not looked at"


@pytest.mark.parametrize("format", ["GIF", "TIFF"])
def test_a_loaded_animation_whose_file_is_closed_is_not_whole(format: str, tmp_path: Path) -> None:
    """Nobody can count its frames any more: that is a reason."""
    path = tmp_path / "picture"
    path.write_bytes(frames_file([flat("white"), flat("black")], format))
    with Image.open(path) as image:
        image.load()
    assert decode(image, SPEC).incomplete is not None


def test_a_loaded_tiff_of_one_page_is_whole() -> None:
    """One that is known to be alone needs no person."""
    with Image.open(io.BytesIO(encoded(flat("white"), "TIFF"))) as image:
        image.load()
    assert decode(image, SPEC).incomplete is None
