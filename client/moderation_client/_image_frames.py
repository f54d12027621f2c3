"""Frames: how many a file has, which of them are looked at, and what that may cost.

Getting at the last frame of an animation means decoding all before it, so the budget counts every frame up to the last
one taken.
"""

from __future__ import annotations

from PIL import ImageFile

from moderation_client._errors import TooManyFramesError
from moderation_client.images import ImageLimits


def count_frames(image: ImageFile.ImageFile, data: bytes, name: str, limits: ImageLimits) -> int:
    """Count frames or pages. Raises TooManyFramesError without decoding any."""
    format = image.format
    if format == "TIFF":
        count = _count_pages(image, limits.max_file_frames)
    elif format == "GIF":
        count = _count_gif(data, limits.max_file_frames)
    else:
        count = int(getattr(image, "n_frames", 1))
    if count > limits.max_file_frames:
        raise TooManyFramesError(
            f"more than {limits.max_file_frames} frames (max_file_frames)",
            source=name,
            value=count,
            limit=limits.max_file_frames,
        )
    return max(count, 1)


def _count_pages(image: ImageFile.ImageFile, limit: int) -> int:
    """Follow the chain of pages no further than the limit."""
    count = 1
    try:
        while count <= limit:
            image.seek(count)
            count += 1
    except EOFError:
        return count
    finally:
        image.seek(0)
    return count


def _count_gif(data: bytes, limit: int) -> int:
    """Walk a GIF's blocks; Pillow's own count decodes Python objects for each."""
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    count, end = 0, len(data)
    while at < end and count <= limit:
        kind = data[at]
        if kind == 0x21:  # extension: label, then blocks
            at += 2
        elif kind == 0x2C and at + 9 < end:  # image: place, size, palette, code size, then blocks
            count += 1
            at += 11 + (3 << (data[at + 9] & 7) + 1 if data[at + 9] & 0x80 else 0)
        elif kind == 0x3B:
            break
        else:
            at += 1
            continue
        while at < end and data[at]:
            at += data[at] + 1
        at += 1
    return count


def evenly(total: int, count: int) -> list[int]:
    """`count` of `total` indices, evenly spread, first and last among them."""
    if count >= total:
        return list(range(total))
    if count == 1:
        return [0]
    return [round(at * (total - 1) / (count - 1)) for at in range(count)]
