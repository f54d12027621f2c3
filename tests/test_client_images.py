"""The decoder's inputs: every form of a picture gives the same pixels, and nothing of the caller's is changed."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from moderation_client import (
    BadArrayError,
    ImageReadError,
    ImageSpec,
)
from moderation_client.images import FORMATS, decode
from tests.pictures import Pixels, difference, encoded, scene

SPEC = ImageSpec(height=64, width=64)


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
