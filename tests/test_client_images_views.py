"""What the decoder looks at: fits, transparency, strips, animations, and the one cap."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from moderation_client import (
    ImageSpec,
    ModerationError,
)
from moderation_client.images import DecodedImage, ImageLimits, decode
from tests.pictures import Pixels, difference, encoded, flat, frames_file, scene

SPEC = ImageSpec(height=64, width=64)


def reference(picture: Pixels, size: tuple[int, int] = (64, 64)) -> Pixels:
    """Resize as the spec says, by Pillow alone."""
    return np.asarray(Image.fromarray(picture).convert("RGB").resize(size, Image.Resampling.BILINEAR))


def test_fits_place_the_picture_as_the_spec_says() -> None:
    """Squash shows all of it, letterbox pads with the background, centre crop cuts the sides."""
    picture = np.zeros((100, 200, 3), np.uint8)
    picture[:, :50] = (255, 0, 0)
    picture[:, 150:] = (0, 0, 255)
    squash = decode(picture, SPEC).pixels[0]
    assert (tuple(squash[32, 2]), tuple(squash[32, 61])) == ((255, 0, 0), (0, 0, 255))
    letterbox = decode(picture, ImageSpec(height=64, width=64, fit="letterbox", background=(9, 8, 7))).pixels[
        0
    ]
    assert (tuple(letterbox[2, 32]), tuple(letterbox[61, 2])) == ((9, 8, 7), (9, 8, 7))
    assert tuple(letterbox[32, 2]) == (255, 0, 0)
    crop = decode(picture, ImageSpec(height=64, width=64, fit="center_crop")).pixels[0]
    assert crop[:, 2:-2].max() == 0
    grey = decode(
        picture[:, :, 0], ImageSpec(height=30, width=64, fit="letterbox", background=(9, 8, 7))
    ).pixels[0]
    assert tuple(grey[15, 0]) == (9, 8, 7)


@pytest.mark.parametrize("resampling", ["bilinear", "bicubic", "lanczos", "box"])
def test_resampling_is_the_specs(resampling: str) -> None:
    """The named filter is used, antialiased."""
    picture = scene(150, 130)
    spec = ImageSpec(height=64, width=64, resampling=resampling)  # type: ignore[arg-type]
    expected = np.asarray(Image.fromarray(picture).resize((64, 64), Image.Resampling[resampling.upper()]))
    np.testing.assert_array_equal(expected, decode(picture, spec).pixels[0])


def test_transparent_pictures_are_seen_over_both_backgrounds() -> None:
    """Black writing on nothing shows over white, white writing on nothing over black; both views are given."""
    for ink, showing in ((0, 0), (255, 1)):
        image = Image.new("RGBA", (200, 200), (ink, ink, ink, 0))
        ImageDraw.Draw(image).rectangle((50, 50, 150, 150), fill=(ink, ink, ink, 255))
        decoded = decode(encoded(image), SPEC)
        assert decoded.pixels.shape[0] == decoded.views.total == decoded.views.looked_at == 2
        assert [view.std() > 50 for view in decoded.pixels] == [at == showing for at in (0, 1)]
        assert decoded.incomplete is None


def test_the_specs_background_comes_first_and_its_opposite_is_far_away() -> None:
    """Half-transparent red over grey, then over the colour that is furthest from it."""
    image = flat((255, 0, 0, 128), mode="RGBA")
    decoded = decode(image, ImageSpec(height=8, width=8, background=(100, 200, 127)))
    assert [tuple(view[4, 4]) for view in decoded.pixels] == [(178, 100, 63), (255, 0, 127)]


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_an_opaque_alpha_channel_costs_nothing(format: str) -> None:
    """RGBA without a transparent pixel is one view, equal to RGB."""
    colour = scene()
    image = Image.fromarray(colour).convert("RGBA")
    options = {"lossless": True} if format == "WEBP" else {"quality": 100} if format == "AVIF" else {}
    decoded = decode(encoded(image, format, **options), SPEC)
    assert decoded.views.total == 1
    assert difference(decode(colour, SPEC).pixels, decoded.pixels) <= (0 if format != "AVIF" else 12)


def test_what_hides_under_invisible_pixels_is_looked_at() -> None:
    """With alpha 0 (or nearly) everywhere both backgrounds are blank: a third view drops the alpha."""
    for alpha in (0, 3, 30):
        hidden = np.dstack([scene(), np.full((120, 160), alpha, np.uint8)])
        for source in (hidden, encoded(hidden)):
            decoded = decode(source, SPEC)
            assert decoded.pixels.shape[0] == 3
            np.testing.assert_array_equal(decode(scene(), SPEC).pixels, decoded.pixels[2:])


def test_one_colour_under_invisible_pixels_hides_nothing() -> None:
    """A sticker with smooth edges is two views, whatever single colour its invisible pixels have."""
    for under in ((0, 0, 0), (255, 255, 255), (30, 200, 90)):
        big = Image.new("RGBA", (1024, 1024), (*under, 0))
        ImageDraw.Draw(big).ellipse((200, 200, 800, 800), fill=(200, 30, 60, 255))
        assert decode(big.resize((256, 256), Image.Resampling.LANCZOS), SPEC).views.total == 2


def test_transparency_without_an_alpha_channel_counts() -> None:
    """Palette entries, a grey key and an RGB key make pixels transparent in PNG and GIF."""
    square = Image.new("L", (64, 64), 0)
    ImageDraw.Draw(square).rectangle((16, 16, 47, 47), fill=255)
    sources = [
        encoded(square, "PNG", transparency=0),
        encoded(square.convert("1"), "PNG", transparency=0),
        encoded(square.convert("RGB"), "PNG", transparency=(0, 0, 0)),
        encoded(square.convert("P"), "PNG", transparency=0),
        encoded(square.convert("P"), "GIF", transparency=0),
        encoded(Image.fromarray(np.asarray(square).astype(np.uint16) * 257), "PNG", transparency=0),
        encoded(Image.merge("LA", (square, square)), "PNG"),
    ]
    for at, source in enumerate(sources):
        decoded = decode(source, SPEC)
        assert [int(view[0, 0, 0]) for view in decoded.pixels] == [255, 0], at
        assert decoded.pixels[:, 32, 32].min() == 255, at


@pytest.mark.parametrize(("width", "height"), [(100, 450), (450, 100), (100, 3000), (64, 257)])
def test_strips_are_tiled_so_that_no_square_is_cut(width: int, height: int) -> None:
    """Wherever a mark as large as the strip is wide stands, one tile shows it whole."""
    short, long = sorted((width, height))
    for start in np.linspace(0, long - short, 9).astype(int):
        picture = np.zeros((long, short, 3), np.uint8)
        picture[start : start + short] = 255
        decoded = decode(picture if height > width else picture.transpose(1, 0, 2), SPEC)
        lit = (decoded.pixels > 127).mean((1, 2, 3))
        assert lit.max() >= 0.45
        assert decoded.views.total == len(decoded.pixels) == -(-long // short) - 1
        assert decoded.incomplete is None


def test_tiles_of_a_jpeg_are_decoded_at_their_own_scale() -> None:
    """A long JPEG is not reduced below what each tile needs, and an odd size does not shift the tiles."""
    strip = scene(2003, 301)
    data = encoded(strip, "JPEG", quality=95)
    apart = np.abs(decode(data, SPEC).pixels.astype(int) - decode(strip, SPEC).pixels)
    assert (apart.mean() < 2, len(apart)) == (True, 6)


def test_ordinary_pictures_are_one_view() -> None:
    """Up to a ratio of four, nothing is tiled; a picture of one pixel is a picture."""
    for size in ((400, 100), (100, 400), (1, 1), (3, 2)):
        assert decode(flat(3, size, "L"), SPEC).views.total == 1


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_content_in_a_late_frame_is_looked_at(format: str) -> None:
    """Blank, blank, picture, blank: one of the views is the picture."""
    frames = [flat("white", (160, 120)) for _ in range(4)]
    frames[2] = Image.fromarray(scene())
    decoded = decode(frames_file(frames, format, duration=[100, 90, 80, 70]), SPEC)
    assert decoded.views.looked_at == decoded.pixels.shape[0] >= 3
    assert max(view.std() for view in decoded.pixels) > 20
    assert decoded.incomplete is None


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_long_animations_are_sampled_evenly_and_the_rest_is_reported(format: str) -> None:
    """Of 30 frames that all differ five are looked at, first and last among them, and the verdict cannot be ALLOW."""
    frames = [flat((at * 8, 255 - at * 8, 40 + at * 3), (24, 24)) for at in range(30)]
    decoded = decode(frames_file(frames, format, lossless=True), SPEC, ImageLimits(max_frames=5))
    assert (decoded.views.total, decoded.views.looked_at) == (30, 5)
    assert decoded.incomplete is not None
    assert "of 30" in decoded.incomplete
    assert [int(view[0, 0, 0]) // 8 for view in decoded.pixels] == pytest.approx([0, 7, 14, 22, 29], abs=1)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_a_flash_in_a_long_still_animation_is_found(format: str) -> None:
    """Samples that repeat each other give way to the one frame that differs, and nothing is left to review."""
    frames = [flat((10, 20, at % 2 * 3), (64, 48)) for at in range(60)]
    frames[37] = Image.fromarray(scene(64, 48))
    decoded = decode(frames_file(frames, format, lossless=True), SPEC, ImageLimits(max_frames=4))
    assert max(view.std() for view in decoded.pixels) > 20
    assert decoded.incomplete is None
    assert decoded.views.total > decoded.views.looked_at


def test_frames_beyond_the_pixel_budget_are_reported() -> None:
    """Only as many frames are decoded as the budget pays for; the verdict is then at least REVIEW."""
    frames = [flat((at * 8, 0, 0), (100, 100)) for at in range(30)]
    decoded = decode(frames_file(frames, "GIF"), SPEC, ImageLimits(max_decoded_pixels=100_000))
    assert decoded.views.looked_at <= 10
    assert decoded.incomplete is not None


def test_a_loaded_animation_is_judged_whole_or_reported() -> None:
    """One decoded frame of many is not the picture: its file is read if it is open, else REVIEW."""
    frames = [flat("white", (160, 120)), Image.fromarray(scene())]
    for format in ("GIF", "PNG", "WEBP", "TIFF"):
        image = Image.open(io.BytesIO(frames_file(frames, format)))
        image.load()
        assert image.convert("RGB").getextrema() == ((255, 255),) * 3
        decoded = decode(image, SPEC)
        assert decoded.incomplete is not None or decoded.pixels.std() > 20, format
        assert decoded.views.total == 2, format


def test_pages_of_different_sizes_are_each_looked_at() -> None:
    """A document's pages may be strips and squares."""
    pages = [flat("white", (100, 100)), flat("red", (100, 500)), flat("blue", (60, 40))]
    decoded = decode(frames_file(pages, "TIFF"), SPEC)
    assert decoded.views.total == decoded.views.looked_at == 1 + 4 + 1
    with pytest.raises(ModerationError, match="max_pixels"):
        decode(frames_file(pages, "TIFF"), SPEC, ImageLimits(max_pixels=20_000))


def test_no_file_makes_more_views_than_the_cap() -> None:
    """Frames x tiles x backgrounds: an animated, transparent strip stays under the cap and says what is missing."""
    frames = []
    for seed in range(12):
        strip = Image.fromarray(scene(30, 300, seed)).convert("RGBA")
        strip.putalpha(Image.fromarray(scene(30, 300, seed + 50)[:, :, 0]))
        frames.append(strip)
    for cap in (1, 5, 20):
        decoded = decode(frames_file(frames, "PNG"), SPEC, ImageLimits(max_views=cap))
        assert (len(decoded.pixels), decoded.views.looked_at) == (cap, cap)
        assert decoded.views.total >= 12 * 9
        assert decoded.incomplete is not None


def test_within_the_cap_every_tiles_main_view_comes_before_second_backgrounds() -> None:
    """With room for half of the views, no tile goes unseen."""
    strip = np.zeros((500, 100, 4), np.uint8)
    strip[:, :, 3] = 128
    decoded: DecodedImage = decode(strip, SPEC, ImageLimits(max_views=4))
    assert {int(view[0, 0, 0]) for view in decoded.pixels} == {127}
    assert decoded.views.total == 8
    assert decoded.incomplete is not None
