"""What the decoder looks at: colour modes, orientation, reduced scale, transparency, strips, animations, caps."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from moderation_client import ImageSpec, ModerationError
from moderation_client.images import DecodedImage, ImageLimits, decode
from tests.test_client_images import difference, encoded, scene

SPEC = ImageSpec(height=64, width=64)
Pixels = np.ndarray[Any, Any]


def reference(picture: Pixels, size: tuple[int, int] = (64, 64)) -> Pixels:
    """Resize as the spec says, by Pillow alone."""
    return np.asarray(Image.fromarray(picture).convert("RGB").resize(size, Image.Resampling.BILINEAR))


def frames_file(frames: list[Image.Image], format: str, **options: Any) -> bytes:
    """Encode an animation."""
    return encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)


def flat(colour: Any, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Image.Image:
    """Make a picture of one colour."""
    return Image.new(mode, size, colour)


# Colour modes


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "LA", "La", "PA"]
)
def test_every_mode_of_a_loaded_image_shows_the_picture(mode: str) -> None:
    """The colours that Pillow's modes stand for arrive, within what the mode can hold."""
    colour = scene()
    image = Image.fromarray(colour)
    if mode == "LAB":
        from PIL import ImageCms

        lab = ImageCms.profileToProfile(
            image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
        assert lab is not None
        converted = lab
    elif mode == "La":
        converted = image.convert("LA").convert("La")
    elif mode == "PA":
        converted = image.convert("P").convert("PA")
    else:
        converted = image.convert(mode)
    shown = decode(converted, SPEC).pixels[0].astype(int)
    grey = mode in {"1", "L", "LA", "La"}
    expected = reference(np.asarray(image.convert("L") if grey else image)).astype(int)
    assert np.abs(shown - expected).mean() < (14 if mode in {"1", "P", "PA"} else 3)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
def test_deep_grey_is_scaled_not_clipped(mode: str) -> None:
    """A 16-bit picture looks like its 8-bit self, in every deep mode: clipping would show a white page."""
    grey = scene()[:, :, 0]
    deep = grey.astype(np.uint16) * 257
    dtype = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4", "F": "<f4"}[mode]
    image = Image.frombytes(mode, (160, 120), deep.astype(dtype).tobytes())
    expected = decode(grey, SPEC).pixels
    for source in (image, encoded(image, "TIFF")):
        assert difference(expected, decode(source, SPEC).pixels) <= 1
    if mode == "I;16":
        np.testing.assert_array_equal(expected, decode(encoded(image), SPEC).pixels)


def test_float_grey_is_read_by_its_range() -> None:
    """0..1, 0..255 and wilder ranges all show the picture; numbers that are none are dark."""
    grey = scene()[:, :, 0].astype(np.float32)
    expected = decode(scene()[:, :, 0], SPEC).pixels
    for scale, offset in ((1 / 255, 0), (1, 0), (257, 0)):
        assert difference(expected, decode(Image.fromarray(grey * scale + offset), SPEC).pixels) <= 1
    wild = decode(Image.fromarray(grey * 1e6 - 3e7), SPEC).pixels
    assert wild.std() > 20
    grey[:5] = np.nan
    grey[5:9] = np.inf
    assert decode(Image.fromarray(grey), SPEC).pixels.std() > 20


def png16_rgb(picture: Pixels, transparent: tuple[int, int, int] | None = None) -> bytes:
    """Write a 16-bit RGB PNG, which Pillow cannot."""
    height, width, _ = picture.shape
    deep = (picture.astype(">u2") * 257).reshape(height, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))]
    if transparent:
        chunks.append((b"tRNS", struct.pack(">3H", *transparent)))
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def test_deep_colour_is_scaled_not_clipped() -> None:
    """A 16-bit RGB file and a uint16 array look like their 8-bit selves; a transparent colour in the file is harmless."""
    colour = scene()
    expected = decode(colour, SPEC).pixels
    assert difference(expected, decode(png16_rgb(colour), SPEC).pixels) <= 1
    np.testing.assert_array_equal(expected, decode(colour.astype(np.uint16) * 257, SPEC).pixels)
    keyed = decode(png16_rgb(colour, (257, 514, 65535)), SPEC)
    assert min(difference(expected, view[None]) for view in keyed.pixels) <= 40


def test_deep_grey_that_is_almost_black_is_also_shown_stretched() -> None:
    """16-bit values up to 255 are black by the rules, and a picture to a program that clips: both are looked at."""
    grey = scene()[:, :, 0]
    for source in (grey.astype(np.uint16), encoded(Image.fromarray(grey.astype(np.uint16)))):
        dark = decode(source, SPEC)
        assert dark.pixels.shape[0] == 2
        assert dark.pixels[0].max() <= 1
        assert difference(decode(grey, SPEC).pixels, dark.pixels[1:]) <= 1
    assert decode(np.zeros((9, 9), np.uint16), SPEC).pixels.shape[0] == 1


def test_cmyk_jpeg_and_palette_files() -> None:
    """Inverted CMYK, palettes of few bits and 1-bit files show what is in them."""
    colour = scene()
    cmyk = encoded(Image.fromarray(colour).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decode(cmyk, SPEC).pixels[0].astype(int) - reference(colour)).mean() < 3
    for format in ("PNG", "GIF", "BMP", "TIFF"):
        few = Image.fromarray(colour).quantize(16)
        np.testing.assert_array_equal(
            decode(few.convert("RGB"), SPEC).pixels, decode(encoded(few, format), SPEC).pixels
        )
    one = Image.fromarray(colour).convert("1")
    for format in ("PNG", "BMP", "TIFF"):
        np.testing.assert_array_equal(
            decode(one.convert("L"), SPEC).pixels, decode(encoded(one, format), SPEC).pixels
        )


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize(
    "spec", [SPEC, ImageSpec(height=40, width=80, fit="letterbox")], ids=["square", "wide"]
)
def test_exif_orientation_is_applied(orientation: int, format: str, spec: ImageSpec) -> None:
    """A turned file with the tag that turns it back is the upright picture, in every format that has the tag."""
    upright = Image.fromarray(scene(160, 120))
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(back[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(encoded(stored, format, exif=exif, quality=95), spec)
    assert np.abs(decoded.pixels.astype(int) - decode(upright, spec).pixels).mean() < 2
    assert decoded.info.exif_turned is (orientation != 1)
    assert (decoded.info.width, decoded.info.height) == stored.size


def test_orientation_of_a_loaded_image_and_broken_exif() -> None:
    """A loaded image keeps its tag; a broken block turns nothing and breaks nothing."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(scene(), "PNG", exif=exif)
    loaded = Image.open(io.BytesIO(data))
    loaded.load()
    np.testing.assert_array_equal(decode(data, SPEC).pixels, decode(loaded, SPEC).pixels)
    for block in (
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\1" * 40,
    ):
        np.testing.assert_array_equal(
            decode(encoded(scene(), "JPEG"), SPEC).pixels,
            decode(encoded(scene(), "JPEG", exif=block), SPEC).pixels,
        )


# Reduced scale


def patterns(side: int) -> dict[str, Pixels]:
    """Make full-contrast test pictures at and around what the model's size can still show."""
    y, x = np.mgrid[:side, :side].astype(np.float32)
    step = side / 64
    grids = {
        f"grating {period:g}": np.sin(2 * np.pi * (x + y / 2) / (period * step)) for period in (1.3, 2, 3, 5)
    }
    grids |= {
        f"checks {period:g}": np.sign(
            np.sin(x * np.pi / (period * step)) * np.sin(y * np.pi / (period * step))
        )
        for period in (1, 1.7, 3)
    }
    noise = (
        np.random.default_rng(0).integers(0, 2, (side // 7 + 1,) * 2).repeat(7, 0).repeat(7, 1)[:side, :side]
    )
    grids["blocks"] = noise * 2.0 - 1
    return {
        name: np.repeat((127.5 + 127 * grid)[:, :, None], 3, 2).astype(np.uint8)
        for name, grid in grids.items()
    }


@pytest.mark.parametrize("side", [64 * 3 + 1, 64 * 6 + 5, 64 * 12 + 2, 64 * 21])
def test_reduced_scale_stays_within_its_bound(side: int) -> None:
    """A reduced JPEG differs from its fully decoded pixels by what the documentation states, and photographs by little."""
    from moderation_client import _image_views

    for name, picture in patterns(side).items():
        data = encoded(picture, "JPEG", quality=95)
        full = decode(np.asarray(Image.open(io.BytesIO(data))), SPEC).pixels.astype(int)
        apart = np.abs(full - decode(data, SPEC).pixels)
        assert apart.max() <= _image_views.DRAFT_MAX_LEVELS, name
        assert apart.mean() <= _image_views.DRAFT_MEAN_LEVELS, name
    photo = encoded(scene(side, side), "JPEG", quality=90)
    apart = np.abs(
        decode(np.asarray(Image.open(io.BytesIO(photo))), SPEC).pixels.astype(int)
        - decode(photo, SPEC).pixels
    )
    assert (apart.max(), apart.mean() <= 1) <= (4, True)


def test_small_jpegs_are_not_reduced_and_lossless_files_never() -> None:
    """Where nothing is reduced, encoded and decoded forms are equal to the last bit."""
    small = encoded(scene(180, 180), "JPEG")
    np.testing.assert_array_equal(
        decode(np.asarray(Image.open(io.BytesIO(small))), SPEC).pixels, decode(small, SPEC).pixels
    )
    large = scene(1500, 1200)
    np.testing.assert_array_equal(
        decode(large, SPEC).pixels, decode(encoded(large, "WEBP", lossless=True), SPEC).pixels
    )
    assert difference(reference(large), decode(large, SPEC).pixels[0]) <= 2


# Fits


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


# Transparency


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


# Strips


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


# Animations


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


# One cap


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
