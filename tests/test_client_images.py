"""The decoder's inputs: every form of a picture gives the same pixels, every broken one the right typed error."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from moderation_client import (
    BadArrayError,
    ContractError,
    CorruptImageError,
    EmptyImageError,
    ImageReadError,
    ImageSpec,
    ImageTooLargeError,
    InvalidImageError,
    TooManyFramesError,
    TruncatedImageError,
    UnsupportedFormatError,
)
from moderation_client.images import FORMATS, ImageLimits, decode

SPEC = ImageSpec(height=64, width=64)
Pixels = np.ndarray[Any, Any]


def scene(width: int = 160, height: int = 120, seed: int = 0) -> Pixels:
    """Make a smooth colourful picture: uint8 [height, width, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(picture: Pixels | Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """Encode an array or image as a file's bytes."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def difference(one: Pixels, other: Pixels) -> int:
    """Give the largest difference in levels."""
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_encoded_forms_give_identical_pixels(format: str, tmp_path: Path) -> None:
    """Path, bytes, bytearray, memoryview, file object and a PIL image not yet loaded are one picture."""
    data = encoded(scene(900, 700), format)
    path = tmp_path / "picture"
    path.write_bytes(data)
    expected = decode(data, SPEC)
    with path.open("rb") as file, Image.open(path) as from_path:
        lazy = Image.open(io.BytesIO(data))
        for source in (
            path,
            str(path),
            bytearray(data),
            memoryview(data),
            io.BytesIO(data),
            file,
            from_path,
            lazy,
        ):
            np.testing.assert_array_equal(expected.pixels, decode(source, SPEC).pixels)
    assert expected.pixels.shape == (1, 64, 64, 3)
    assert expected.pixels.dtype == np.uint8
    assert expected.pixels.flags.c_contiguous
    assert (expected.info.format, expected.info.width, expected.info.height) == (format, 900, 700)


def test_decoded_forms_give_the_same_pixels_where_nothing_is_reduced() -> None:
    """An array and a loaded image equal the lossless file, whatever the number of channels."""
    colour = scene()
    grey = colour[:, :, 0]
    for array in (colour, grey, grey[:, :, None], np.dstack([colour, np.full(grey.shape, 255, np.uint8)])):
        from_file = decode(encoded(array[:, :, 0] if array.shape[2:] == (1,) else array), SPEC).pixels
        for source in (
            array,
            array / 255.0,
            array.astype(np.uint16) * 257,
            (array / 255.0).astype(np.float32),
        ):
            np.testing.assert_array_equal(from_file, decode(source, SPEC).pixels)
    loaded = Image.open(io.BytesIO(encoded(colour)))
    loaded.load()
    np.testing.assert_array_equal(decode(encoded(colour), SPEC).pixels, decode(loaded, SPEC).pixels)


def test_array_layout_does_not_matter() -> None:
    """Strided, reversed, Fortran-ordered and byte-swapped arrays are the picture they show."""
    colour = scene()
    expected = decode(np.ascontiguousarray(colour[::-1, ::2]), SPEC).pixels
    for source in (colour[::-1, ::2], np.asfortranarray(colour[::-1, ::2])):
        np.testing.assert_array_equal(expected, decode(source, SPEC).pixels)
    deep = colour.astype(">u2") * 257
    np.testing.assert_array_equal(decode(colour, SPEC).pixels, decode(deep, SPEC).pixels)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 4, 2), np.uint8), "shape (4, 4, 2)"),
        (np.zeros((4,), np.uint8), "shape (4,)"),
        (np.zeros((1, 4, 4, 3), np.uint8), "shape (1, 4, 4, 3)"),
        (np.zeros((0, 4, 3), np.uint8), "shape (0, 4, 3)"),
        (np.zeros((4, 4), np.int32), "dtype int32"),
        (np.zeros((4, 4), bool), "dtype bool"),
        (np.zeros((4, 4), object), "dtype object"),
        (np.full((4, 4), 1.5), "1.5"),
        (np.full((4, 4), -0.5), "-0.5"),
        (np.full((4, 4), np.nan), "nan"),
    ],
)
def test_an_array_that_is_no_picture_is_refused_with_what_was_expected(array: Pixels, words: str) -> None:
    """The error says what came and what would have been right."""
    with pytest.raises(BadArrayError) as caught:
        decode(array, SPEC)
    assert words in str(caught.value)
    assert "uint8, uint16 or float 0..1" in str(caught.value)


def test_the_callers_objects_are_not_changed() -> None:
    """File positions, lazy and loaded PIL images and arrays are as they were."""
    data = encoded(scene(1200, 900), "JPEG")
    file = io.BytesIO(data)
    file.seek(7)
    lazy = Image.open(io.BytesIO(data))
    loaded = Image.open(io.BytesIO(encoded(scene(), "TIFF")))
    loaded.load()
    before, array = loaded.tobytes(), scene()
    copy = array.copy()
    for source in (file, lazy, loaded, array):
        decode(source, SPEC)
    assert file.tell() == 7
    assert lazy.size == (1200, 900)
    assert getattr(lazy, "_im", None) is None
    assert (loaded.tobytes(), loaded.size) == (before, (160, 120))
    np.testing.assert_array_equal(copy, array)


def test_a_loaded_image_is_judged_by_its_pixels_not_by_its_file() -> None:
    """What the caller painted on a loaded image counts."""
    for format in ("PNG", "GIF", "TIFF", "JPEG"):
        image = Image.open(io.BytesIO(encoded(scene(), format)))
        image.load()
        image.paste(0, (0, 0, *image.size))
        painted = decode(image, SPEC)
        assert difference(painted.pixels, painted.pixels[:, :1, :1]) == 0, format


def test_a_drafted_lazy_image_is_reread_at_full_size() -> None:
    """A caller's own draft() does not make the library look at a smaller picture."""
    data = encoded(scene(1200, 900), "JPEG")
    lazy = Image.open(io.BytesIO(data))
    lazy.draft("L", (100, 100))
    np.testing.assert_array_equal(decode(data, SPEC).pixels, decode(lazy, SPEC).pixels)


def test_file_objects_of_every_kind_are_read_whole() -> None:
    """Short reads, no seek, and a read that fails are handled; text is refused with the way out."""
    data = encoded(scene())

    class Dribble(io.RawIOBase):
        def __init__(self) -> None:
            self.rest = data

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            part, self.rest = self.rest[: min(len(buffer), 100)], self.rest[min(len(buffer), 100) :]
            buffer[: len(part)] = part
            return len(part)

    dribble: Any = Dribble()
    np.testing.assert_array_equal(decode(data, SPEC).pixels, decode(dribble, SPEC).pixels)
    closed = io.BytesIO(data)
    closed.close()
    sources: list[tuple[Any, str]] = [(closed, "closed"), (io.StringIO("x"), "'rb'")]
    for source, words in sources:
        with pytest.raises(ImageReadError, match=words):
            decode(source, SPEC)


def test_what_cannot_be_read_says_what_it_is(tmp_path: Path) -> None:
    """A missing file, a folder, a bad path and a wrong type are ImageReadError with the source."""
    sources: list[Any] = [tmp_path / "missing.jpg", tmp_path, "nul\0byte", None, 7, [b"x"]]
    for source in sources:
        with pytest.raises(ImageReadError) as caught:
            decode(source, SPEC)
        assert caught.value.source
    image = Image.open(io.BytesIO(encoded(scene())))
    image.close()
    with pytest.raises(ImageReadError, match="closed"):
        decode(image, SPEC)


@pytest.mark.parametrize("source", [b"", bytearray(), memoryview(b""), io.BytesIO()], ids=type)
def test_nothing_is_an_empty_image(source: Any) -> None:
    """No bytes is its own error."""
    with pytest.raises(EmptyImageError):
        decode(source, SPEC)


@pytest.mark.parametrize(
    "data", [b"x", b"hello world" * 9, b"\x7fELF" + bytes(99), b"%PDF-1.7", b"RIFF\0\0\0\0WAVE"]
)
def test_what_is_no_image_is_unsupported(data: bytes) -> None:
    """Other bytes are named as such, with what would be taken."""
    with pytest.raises(UnsupportedFormatError, match="JPEG, PNG"):
        decode(data, SPEC)


@pytest.mark.parametrize("format", ["PPM", "ICO", "TGA", "PCX", "JPEG2000", "EPS", "PDF"])
def test_formats_outside_the_list_are_never_decoded(format: str) -> None:
    """Formats that Pillow could open are refused all the same."""
    with pytest.raises(UnsupportedFormatError):
        decode(encoded(scene(), format), SPEC)


def test_formats_can_be_narrowed_and_the_error_names_the_allowed_ones() -> None:
    """A platform that takes JPEG only does not run the GIF decoder."""
    with pytest.raises(UnsupportedFormatError, match=r"GIF is not allowed here \(JPEG\)"):
        decode(encoded(scene(), "GIF"), SPEC, ImageLimits(formats=("JPEG",)))


def test_heic_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message is the pip line."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
    with pytest.raises(UnsupportedFormatError, match=r'pip install "moderation-client\[heif\]"'):
        decode(heic, SPEC)


def test_heic_with_its_package_is_decoded() -> None:
    """HEIC photos work when pillow-heif is there, in every encoded form, and stay unknown to other users of Pillow."""
    heif = pytest.importorskip("pillow_heif", reason="the heif extra is not installed")
    buffer = io.BytesIO()
    heif.from_pillow(Image.fromarray(scene())).save(buffer, quality=95)
    decoded = decode(buffer, SPEC)
    assert decoded.info.format == "HEIF"
    assert difference(decode(scene(), SPEC).pixels, decoded.pixels) < 24
    assert "HEIF" not in Image.OPEN
    with pytest.raises((TruncatedImageError, CorruptImageError)):
        decode(buffer.getvalue()[:-200], SPEC)


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
    ],
)
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_cut_off_file_is_truncated(format: str, options: dict[str, Any], share: float) -> None:
    """Half a picture is reported as truncated, neither scored nor called corrupt."""
    data = encoded(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8), format, **options)
    with pytest.raises(TruncatedImageError) as caught:
        decode(data[: int(len(data) * share)], SPEC)
    assert caught.value.source == "bytes"


def test_truncation_is_reported_although_the_process_tolerates_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's process-wide LOAD_TRUNCATED_IMAGES of some other library does not open a hole here."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for format in ("JPEG", "PNG", "WEBP", "GIF"):
        data = encoded(scene(), format)
        with pytest.raises(TruncatedImageError):
            decode(data[: len(data) // 2], SPEC)


def test_broken_content_is_corrupt() -> None:
    """A whole file with nonsense inside is corrupt, not truncated."""
    data = bytearray(encoded(scene()))
    data[60] ^= 0xFF
    with pytest.raises(CorruptImageError):
        decode(bytes(data), SPEC)


LIMITS: list[tuple[ImageLimits, Callable[[], Any], type[InvalidImageError], float, float]] = [
    (ImageLimits(max_bytes=100), lambda: encoded(scene()), ImageTooLargeError, -1, 100),
    (ImageLimits(max_pixels=10_000), lambda: encoded(scene()), ImageTooLargeError, 19_200, 10_000),
    (ImageLimits(max_pixels=10_000), scene, ImageTooLargeError, 19_200, 10_000),
    (ImageLimits(max_pixels=10_000), lambda: Image.fromarray(scene()), ImageTooLargeError, 19_200, 10_000),
    (ImageLimits(max_side_ratio=8), lambda: encoded(scene(90, 10)), ImageTooLargeError, 9, 8),
    (ImageLimits(max_side_ratio=8), lambda: encoded(scene(10, 90), "JPEG"), ImageTooLargeError, 9, 8),
    (ImageLimits(max_file_frames=3), lambda: animation(5, "GIF"), TooManyFramesError, 5, 3),
    (ImageLimits(max_file_frames=3), lambda: animation(5, "PNG"), TooManyFramesError, 5, 3),
    (ImageLimits(max_file_frames=3), lambda: animation(5, "WEBP"), TooManyFramesError, 5, 3),
    (ImageLimits(max_file_frames=3), lambda: animation(5, "TIFF"), TooManyFramesError, 4, 3),
]


def animation(num_frames: int, format: str) -> bytes:
    """Encode frames that differ."""
    frames = [Image.fromarray(scene(40, 30, seed)) for seed in range(num_frames)]
    return encoded(frames[0], format, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(("limits", "make", "kind", "value", "limit"), LIMITS)
def test_limits_carry_the_numbers(
    limits: ImageLimits, make: Callable[[], Any], kind: type[InvalidImageError], value: float, limit: float
) -> None:
    """A broken limit says which number broke which limit."""
    with pytest.raises(kind) as caught:
        decode(make(), SPEC, limits)
    assert caught.value.limit == limit
    assert value in {caught.value.value, -1}
    assert pickle.loads(pickle.dumps(caught.value)).limit == limit


@pytest.mark.parametrize("bad", [{"max_bytes": 0}, {"max_views": 0}, {"formats": ()}, {"formats": ("SVG",)}])
def test_limits_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    """The message names the field."""
    with pytest.raises(ContractError, match=next(iter(bad))):
        ImageLimits(**bad)


def test_pillows_own_limit_and_warnings_do_not_interfere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a tiny MAX_IMAGE_PIXELS nor warnings as errors change what a picture gives; both stay as they were."""
    data = encoded(scene())
    expected = decode(data, SPEC).pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    filters = list(warnings.filters)
    np.testing.assert_array_equal(expected, decode(data, SPEC).pixels)
    assert Image.MAX_IMAGE_PIXELS == 100
    assert warnings.filters == filters
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(data))


def test_pillow_still_warns_everybody_else() -> None:
    """The decoder's silence ends with it: a user's own Image.open warns as ever, at the user's line."""
    odd = Image.new("P", (4, 4))
    odd.info["transparency"] = bytes(256)
    decode(odd, SPEC)
    with pytest.warns(UserWarning, match="Transparency") as caught:
        odd.convert("RGB")
    assert len(caught) == 1


def test_threads_decode_alike() -> None:
    """Many threads over the same sources give what one gives, quietly."""
    sources: list[Any] = [encoded(scene(400, 300, seed), format) for seed, format in enumerate(FORMATS[:7])]
    shared = Image.fromarray(scene())
    sources.append(shared)
    expected = [decode(source, SPEC).pixels for source in sources]
    wrong: list[int] = []

    def work() -> None:
        for _ in range(5):
            wrong.extend(
                at
                for at, source in enumerate(sources)
                if not np.array_equal(decode(source, SPEC).pixels, expected[at])
            )

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_importing_the_public_module_imports_neither_numpy_nor_pillow() -> None:
    """The 100 ms of imports are paid by the first decode."""
    code = "import sys, moderation_client.images; print([m for m in ('numpy', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
