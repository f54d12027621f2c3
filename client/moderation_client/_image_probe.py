"""What a file's structure promises, read from its bytes before any decoder touches them.

Pillow walks segments, chunks, blocks and tags in Python, a few microseconds each, so a small file made of millions of
empty ones would hold a worker for a minute; `parts` are counted here first, by loops that stop at the limit. The same
walk tells a file that ends early from one that is broken, and gives sizes and frame counts where Pillow would have to
allocate or decode to know them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from moderation_client._errors import ImageTooLargeError

PARTS = 65_536
"""Parts that every file may have ..."""
BYTES_PER_PART = 128
"""... plus one for so many bytes; ordinary files have one per 250 to 8,000."""
SCAN_PIXELS = 2_000_000_000
"""Scans times pixels of a JPEG: each scan is a pass over the whole picture however few bytes it has."""
RLE_BYTES = 2 * 1024 * 1024
"""Size of a run-length coded BMP: Pillow decodes those in Python."""

TIFF_SIZES = {3: 2, 4: 4, 13: 4, 16: 8, 18: 8}
"""Bytes of the integer types that lists of strips and tiles are written in."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What the walk found."""

    size: tuple[int, int] | None = None
    """Columns and rows, where the walk is the safest place to learn them."""
    num_frames: int | None = None
    """Frames, where only a walk can tell."""
    complete: bool = True
    """Whether the structure reaches its end; a file that does not decode and is not complete is truncated."""


def probe_file(data: bytes, format: str, name: str) -> Probe:
    """Walk a file's structure. Raises ImageTooLargeError where it has too many parts to be a picture."""
    walk = {"JPEG": _jpeg, "PNG": _png, "GIF": _gif, "WEBP": _webp, "BMP": _bmp, "TIFF": _tiff}.get(format)
    try:
        return walk(data, _Parts(len(data), format, name)) if walk else Probe()
    except (struct.error, IndexError, OverflowError):
        return Probe(complete=False)


class _Parts:
    """Counts parts up to the limit."""

    def __init__(self, num_bytes: int, format: str, name: str) -> None:
        self.limit = PARTS + num_bytes // BYTES_PER_PART
        self.count = 0
        self.format = format
        self.name = name

    def add(self, count: int = 1) -> None:
        """Count some more. Raises ImageTooLargeError at the limit."""
        self.count += count
        if self.count > self.limit:
            self.refuse(f"more than {self.limit} parts for its size", self.count, self.limit)

    def refuse(self, what: str, value: float, limit: float) -> None:
        """Raise ImageTooLargeError."""
        raise ImageTooLargeError(f"{self.format} with {what}", source=self.name, value=value, limit=limit)


def _jpeg(data: bytes, parts: _Parts) -> Probe:
    """Walk the segments up to the first scan, then count scans."""
    at, size = 2, (0, 0)
    while True:
        marker = data.find(b"\xff", at)
        parts.add(
            1 + (marker if marker >= 0 else len(data)) - at
        )  # junk between segments is read byte by byte
        if marker < 0:
            return Probe(complete=False)
        code, at = data[marker + 1], marker + 2
        if code == 0xFF:
            at = marker + 1
        elif code == 0xDA:
            break
        elif code not in {0x00, 0x01} and not 0xD0 <= code <= 0xD8:
            if 0xC0 <= code <= 0xCF and code not in {0xC4, 0xC8, 0xCC}:
                size = struct.unpack_from(">HH", data, at + 3)[::-1]
            at += struct.unpack_from(">H", data, at)[0]
    scans = data.count(b"\xff\xda", at - 2)
    if scans * size[0] * size[1] > SCAN_PIXELS:
        limit = SCAN_PIXELS // (size[0] * size[1])
        parts.refuse(f"{scans} scans, at {size[0]}x{size[1]} it may have {limit}", scans, limit)
    return Probe(complete=data.find(b"\xff\xd9", at) >= 0)


def _png(data: bytes, parts: _Parts) -> Probe:
    """Walk the chunks."""
    at = 8
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        if not kind.isalpha():
            return Probe()  # not cut off but broken
        parts.add()
        at += 12 + length
        if kind == b"IEND" or at > len(data):
            return Probe(complete=at <= len(data))


def _gif(data: bytes, parts: _Parts) -> Probe:
    """Walk the blocks: count frames and find the canvas that holds all of them."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at, frames = 13 + _palette(flags), 0
    while at < len(data) and data[at] != 0x3B:
        kind = data[at]
        at += 1
        parts.add()
        if kind == 0x2C:
            left, top, wide, high, flags = struct.unpack_from("<4HB", data, at)
            width, height, frames = max(width, left + wide), max(height, top + high), frames + 1
            at = _skip_blocks(data, at + 10 + _palette(flags), parts)
        elif kind == 0x21:
            at = _skip_blocks(data, at + 1, parts)
    return Probe(size=(width, height), num_frames=frames, complete=at <= len(data))


def _palette(flags: int) -> int:
    """Bytes of the palette that a GIF's flags announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _skip_blocks(data: bytes, at: int, parts: _Parts) -> int:
    """Skip a chain of data blocks; past the end of the file when the chain is cut off."""
    budget = parts.limit - parts.count + 1
    blocks = 0
    while at < len(data) and data[at] and blocks < budget:
        at += data[at] + 1
        blocks += 1
    parts.add(blocks)
    return at + 1


def _webp(data: bytes, parts: _Parts) -> Probe:
    """Read the canvas size: Pillow's decoder allocates it before it can be asked."""
    (length,), kind, size = struct.unpack_from("<I", data, 4), data[12:16], None
    if kind == b"VP8X":
        size = 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        size = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        size = width & 0x3FFF, height & 0x3FFF
    parts.add()
    return Probe(size=size, complete=len(data) >= length + 8)


def _bmp(data: bytes, parts: _Parts) -> Probe:
    """Refuse long run-length coded files."""
    compression = struct.unpack_from("<I", data, 30)[0] if len(data) >= 34 and data[14] >= 40 else 0
    if compression in {1, 2} and len(data) > RLE_BYTES:
        parts.refuse(f"run-length coding and more than {RLE_BYTES} bytes", len(data), RLE_BYTES)
    return Probe()


def _tiff(data: bytes, parts: _Parts) -> Probe:
    """Walk the pages' tags: count list entries, and see whether strips and tiles lie inside the file."""
    order = "<" if data[:2] == b"II" else ">"
    complete, num_frames = True, 0
    for tags in _tiff_pages(data, order, parts):
        num_frames += 1
        lists = {}
        for tag, kind, count, where in tags:
            width = TIFF_SIZES.get(kind, 0)
            if count * width > len(data):
                complete = False  # the decoder skips such a tag
            elif width:
                parts.add(count)
                lists[tag] = width, count, where
        complete = complete and _strips_inside(data, order, lists)
    return Probe(num_frames=num_frames, complete=complete)


def _strips_inside(data: bytes, order: str, lists: dict[int, tuple[int, int, int]]) -> bool:
    """Whether each strip or tile ends before the file does."""
    for starts, lengths in ((273, 279), (324, 325)):
        if starts in lists and lengths in lists:
            places = zip(*(_tiff_list(data, order, *lists[tag]) for tag in (starts, lengths)), strict=False)
            if any(start + length > len(data) for start, length in places):
                return False
    return True


def _tiff_pages(data: bytes, order: str, parts: _Parts) -> Iterator[list[tuple[int, int, int, int]]]:
    """Yield each page's tags: number, type, count, and where the value (or its place) stands."""
    big = data[2:4] in {b"\x2b\x00", b"\x00\x2b"}
    head, entry, offset = ("Q", "HHQQ", "Q") if big else ("H", "HHLL", "L")
    head, entry, offset = order + head, order + entry, order + offset
    value = struct.calcsize(offset)
    seen: set[int] = set()
    (at,) = struct.unpack_from(offset, data, 8 if big else 4)
    while at and at not in seen:
        seen.add(at)
        (count,) = struct.unpack_from(head, data, at)
        parts.add(count)
        at += struct.calcsize(head)
        step = struct.calcsize(entry)
        yield [
            (*struct.unpack_from(entry, data, at + step * row)[:3], at + step * (row + 1) - value)
            for row in range(count)
        ]
        (at,) = struct.unpack_from(offset, data, at + step * count)


def _tiff_list(data: bytes, order: str, width: int, count: int, where: int) -> tuple[int, ...]:
    """Read a list of integers that stands in the tag itself or where the tag points."""
    room = 8 if data[2:4] in {b"\x2b\x00", b"\x00\x2b"} else 4
    if count * width > room:
        (where,) = struct.unpack_from(order + ("Q" if room == 8 else "L"), data, where)
    return struct.unpack_from(f"{order}{count}{ {2: 'H', 4: 'L', 8: 'Q'}[width] }", data, where)
