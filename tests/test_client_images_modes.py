"""How the decoder reads pixels: colour modes, depth, orientation, reduced scale."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from moderation_client import (
    ImageSpec,
    _image_modes,
)
from moderation_client.images import decode
from tests.pictures import Pixels, difference, encoded, scene

SPEC = ImageSpec(height=64, width=64)


def reference(picture: Pixels, size: tuple[int, int] = (64, 64)) -> Pixels:
    """Resize as the spec says, by Pillow alone."""
    return np.asarray(Image.fromarray(picture).convert("RGB").resize(size, Image.Resampling.BILINEAR))


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


@pytest.mark.parametrize("far", [65535.0, 1e6, -1e6, 1e30])
@pytest.mark.parametrize("scale", [1 / 255, 1.0, 4.0])
def test_a_few_far_numbers_do_not_hide_the_picture(far: float, scale: float) -> None:
    """One pixel in a thousand far away turns all others into one shade where the range is scaled: the rest is shown as well."""
    grey = scene()[:, :, 0].astype(np.float32)
    expected = decode(scene()[:, :, 0], SPEC).pixels[0].astype(float).ravel()
    numbers = grey * np.float32(scale)
    numbers[::30, ::40] = far
    views = decode(Image.fromarray(numbers), SPEC).pixels
    likeness = [
        float(np.corrcoef(view.astype(float).ravel(), expected)[0, 1]) for view in views if view.std() > 10
    ]
    assert max(likeness) > 0.9


@pytest.mark.parametrize("source", ["array", "png", "tiff"])
def test_bright_parts_do_not_hide_what_clipping_shows(source: str) -> None:
    """A bright frame around 16-bit numbers up to 255: black by the rules, a picture to a program that clips."""
    grey = scene()[:, :, 0]
    deep = grey.astype(np.uint16)
    deep[:30] = deep[-30:] = 65535
    shown: dict[str, Any] = {
        "array": deep,
        "png": encoded(Image.fromarray(deep)),
        "tiff": encoded(Image.fromarray(deep), "TIFF"),
    }
    views = decode(shown[source], SPEC).pixels.astype(float)
    clipped = decode(np.minimum(deep, 255).astype(np.uint8), SPEC).pixels.astype(float)
    assert min(np.abs(view - clipped[0]).max() for view in views) <= 1


def test_ordinary_deep_pictures_are_one_view() -> None:
    """Pictures that use their range cost nothing more, nor do those of one shade."""
    grey = scene()[:, :, 0]
    for array in (grey.astype(np.uint16) * 257, np.full((9, 9), 300, np.uint16), np.zeros((9, 9), np.uint16)):
        assert len(decode(array, SPEC).pixels) == 1
    for float_grey in (grey / np.float32(255), grey.astype(np.float32), np.full((9, 9), 7.5, np.float32)):
        assert len(decode(Image.fromarray(float_grey), SPEC).pixels) == 1


@pytest.mark.parametrize("far", [[], [1e30], [1e35, 1e28, 1e21, 1e14, 1e7]])
def test_one_shade_and_far_numbers_are_gone_through_a_few_times(
    far: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that compresses to nothing must not cost dozens of looks at its pixels."""
    shades = np.full((40, 40), 7, np.float32)
    shades[0, : len(far)] = far
    looks: list[int] = []
    parts = _image_modes._parts

    def counted(array: Any) -> Any:
        looks.append(1)
        return parts(array)

    monkeypatch.setattr(_image_modes, "_parts", counted)
    decode(Image.fromarray(shades), SPEC)
    assert 1 <= len(looks) <= _image_modes.MAX_LOOKS + 1


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
