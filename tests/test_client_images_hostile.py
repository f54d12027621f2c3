"""Files made to hurt: Pillow's own collection, mutated bytes and bombs."""

from __future__ import annotations

import hashlib
import io
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.pillow_images import FetchError, pillow_images
from moderation_client import (
    ImageSpec,
    ImageTooLargeError,
    InvalidImageError,
    TooManyFramesError,
)
from moderation_client.images import ImageLimits, decode
from tests.pictures import encoded, frames_file, scene

SPEC = ImageSpec(height=32, width=32)
SMALL = ImageLimits(max_pixels=300_000, max_decoded_pixels=1_000_000)


def outcome(source: Any, limits: ImageLimits = SMALL) -> tuple[str, ...]:
    """Give a source's pixels and coverage, or its typed error; any other exception or warning fails the test."""
    try:
        decoded = decode(source, SPEC, limits)
    except InvalidImageError as error:
        return type(error).__name__, error.message
    return (
        hashlib.sha256(decoded.pixels.tobytes()).hexdigest(),
        str(decoded.views),
        str(decoded.incomplete),
        str(decoded.info),
    )


# Pillow's collection


@pytest.fixture(scope="session")
def images(request: pytest.FixtureRequest) -> Path:
    """Fetch the test images of Pillow's source distribution once, into pytest's cache."""
    try:
        return pillow_images(Path(request.config.cache.mkdir("pillow-images")))
    except FetchError as error:
        pytest.skip(str(error))


def test_every_image_of_pillows_collection_has_one_outcome(images: Path) -> None:
    """A thousand awkward files: by path, bytes and file object the same pixels or the same typed error."""
    outcomes = {}
    files = sorted(path for path in images.rglob("*") if path.is_file())
    for path in files:
        with path.open("rb") as file:
            outcomes[path.name] = {
                outcome(path, ImageLimits()),
                outcome(path.read_bytes(), ImageLimits()),
                outcome(file, ImageLimits()),
            }
    assert [name for name, found in outcomes.items() if len(found) > 1] == []
    kinds = [next(iter(found))[0] for found in outcomes.values()]
    assert len(files) > 1000
    assert (
        sum(len(kind) == 64 for kind in kinds) > 650
    )  # the others are broken on purpose, or of formats not taken
    assert {
        "UnsupportedFormatError",
        "CorruptImageError",
        "TruncatedImageError",
        "ImageTooLargeError",
    } <= set(kinds)


# Mutations


def _bases() -> dict[str, list[bytes]]:
    """Make small files of every kind a format has."""
    colour, clear = Image.fromarray(scene(24, 18)), Image.fromarray(scene(24, 18)).convert("RGBA")
    clear.putalpha(Image.fromarray(scene(24, 18, 5)[:, :, 0]))
    film = [Image.fromarray(scene(20, 16, seed)) for seed in range(3)]
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(scene(24, 18)[:, :, 0].astype(np.uint16) * 257)
    return {
        "JPEG": [
            encoded(colour, "JPEG", exif=exif),
            encoded(colour, "JPEG", progressive=True, quality=60),
            encoded(colour.convert("CMYK"), "JPEG"),
        ],
        "PNG": [
            encoded(clear),
            encoded(colour.quantize(8), transparency=2),
            encoded(deep),
            frames_file(film, "PNG"),
        ],
        "GIF": [encoded(colour, "GIF", interlace=1), frames_file(film, "GIF", disposal=2, transparency=1)],
        "WEBP": [
            encoded(colour, "WEBP"),
            encoded(clear, "WEBP", lossless=True, exif=exif),
            frames_file(film, "WEBP"),
        ],
        "TIFF": [encoded(deep, "TIFF"), frames_file(film, "TIFF", compression="tiff_lzw")],
        "BMP": [encoded(colour, "BMP"), encoded(colour.quantize(8), "BMP")],
    }


BASES = _bases()


def _mutate(data: bytes, seed: int, num_changes: int) -> bytes:
    """Flip, overwrite, delete, repeat or cut off bytes, more often near the start where the headers are."""
    rng, out = random.Random(seed), bytearray(data)
    for _ in range(num_changes):
        at = min(rng.randrange(len(out)), rng.randrange(len(out))) if out else 0
        kind = rng.randrange(7)
        if kind == 0:
            out = out[: max(at, 4)]
        elif kind == 1:
            del out[at : at + rng.randrange(1, 9)]
        elif kind == 2:
            out[at:at] = out[at : at + rng.randrange(1, 40)]
        elif kind == 3:
            out[at : at + 4] = struct.pack(
                rng.choice("<>") + "I", rng.choice([0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF])
            )
        else:
            out[at : at + 1] = bytes([rng.randrange(256)])
    return bytes(out)


def _mend(data: bytes) -> bytes:
    """Correct a PNG's checksums, so that what was changed is reached."""
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        length = struct.unpack_from(">I", out, at)[0]
        if at + 12 + length > len(out):
            break
        out[at + 8 + length : at + 12 + length] = struct.pack(">I", zlib.crc32(out[at + 4 : at + 8 + length]))
        at += 12 + length
    return bytes(out)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "mended PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_mutated_files_have_one_typed_outcome(name: str) -> None:
    """Whatever is done to the bytes, the answer is pixels or InvalidImageError, the same by bytes and by file object."""
    format, mend = name.rsplit(maxsplit=1)[-1], name.startswith("mended")

    @settings(
        max_examples=1300 if format not in {"TIFF", "BMP"} else 500,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(base=st.sampled_from(BASES[format]), seed=st.integers(0, 2**32), num_changes=st.integers(1, 6))
    def holds(base: bytes, seed: int, num_changes: int) -> None:
        data = _mutate(base, seed, num_changes)
        data = _mend(data) if mend else data
        assert outcome(data) == outcome(io.BytesIO(data))

    holds()


# Bombs


def _png(width: int, height: int, rows: bytes, before: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + before + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _gif(width: int, height: int, frames: bytes) -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + frames + b";"


GIF_FRAME = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02L\x01\x00"


def _scans(num_scans: int) -> bytes:
    data = encoded(Image.new("L", (4000, 3000)), "JPEG", progressive=True)
    end = data.rfind(b"\xff\xd9")
    return data[:end] + data[data.rfind(b"\xff\xc4") : end] * num_scans + data[end:]


BOMBS = {
    "623 megapixels": lambda: _png(20990, 29700, zlib.compress(bytes(2625 * 29700), 1)),
    "169 megapixels": lambda: encoded(Image.new("1", (13000, 13000))),
    "gif screen": lambda: _gif(65535, 65535, GIF_FRAME),
    "gif frame": lambda: _gif(9, 9, b"," + struct.pack("<HHHHB", 60000, 60000, 9000, 9000, 0) + b"\x02\x02L\x01\x00"),
    "webp canvas": lambda: b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\xff\xff" * 2 + bytes(12),
    "bmp": lambda: b"BM" + struct.pack("<IHHIIiiHHII", 99, 0, 0, 54, 40, 3_000_000, 2_000_000, 1, 24, 0, 0) + bytes(40),
    "png text": lambda: _png(9, 9, zlib.compress(bytes(27)), _chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**8)))),
    "png profile": lambda: _png(9, 9, zlib.compress(bytes(27)), _chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(10**8)))),
    "png chunks": lambda: _png(9, 9, zlib.compress(bytes(27)), _chunk(b"abCd", b"") * 200_000),
    "jpeg segments": lambda: b"\xff\xd8" + b"\xff\xe1\x00\x02" * 200_000,
    "jpeg junk": lambda: b"\xff\xd8\xff\xe0\x00\x02" + bytes(1_000_000),
    "jpeg scans": lambda: _scans(2000),
    "gif blocks": lambda: _gif(9, 9, b"!\xfe" + b"\x01a" * 200_000 + b"\0"),
    "strip": lambda: encoded(np.zeros((8, 2000, 3), np.uint8)),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_from_their_headers(name: str) -> None:
    """Small files that would cost seconds or gigabytes are too large, with the number and the limit where there is one."""
    with pytest.raises(ImageTooLargeError) as caught:
        decode(BOMBS[name](), SPEC)
    error = caught.value
    assert error.limit is None or (error.value is not None and error.value > error.limit)


def test_a_million_frames_are_too_many() -> None:
    """Frames are counted before any is decoded."""
    with pytest.raises(TooManyFramesError):
        decode(_gif(9, 9, GIF_FRAME * 30_000), SPEC)
