"""What the decoder refuses: unreadable, empty, unsupported, truncated, corrupt and over the limits, each by its own error."""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from moderation_client import (
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
from moderation_client.images import ImageLimits, decode
from tests.pictures import difference, encoded, scene

SPEC = ImageSpec(height=64, width=64)


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
