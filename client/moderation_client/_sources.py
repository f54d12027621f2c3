"""What a caller may pass as images: one, or any iterable of them, alone or as (id, image) pairs, with ids beside them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import TypeAlias

    from moderation_client.images import ImageSource

    Item: TypeAlias = ImageSource | tuple[str | int, ImageSource]
    Images: TypeAlias = ImageSource | Iterable[Item]
    AsyncImages: TypeAlias = Images | AsyncIterable[Item]

ImageId = str | int
Named = tuple[ImageId, Any]
"""An image with its id."""

NO_ID = object()


def is_single(images: Any) -> bool:
    """Whether this is one image rather than a collection: text, bytes, a path, a file, a PIL image, an HxW(xC) array."""
    if isinstance(images, (str, bytes, bytearray, memoryview, os.PathLike)) or hasattr(images, "read"):
        return True
    if hasattr(images, "__array_interface__") and hasattr(images, "tobytes"):
        return len(getattr(images, "shape", (0, 0))) <= 3
    return False


def lends(images: Any) -> bool:
    """Whether an image may change once the next is asked for: an iterator can refill one buffer, a list cannot."""
    return (
        not is_single(images)
        and not isinstance(images, (list, tuple))
        and not hasattr(images, "__array_interface__")
    )


def named(images: Any, ids: Iterable[ImageId] | None) -> Iterator[Named]:
    """Each image with its id: from `ids`, from the pair, else its index.

    Raises ValueError when `ids` and images are not equally many.
    """
    items = iter([images]) if is_single(images) else _checked_iter(images)
    given = None if ids is None else iter(ids)
    index = -1
    for index, item in enumerate(items):
        yield _named(index, item, given)
    _check_exhausted(given, index + 1)


async def anamed(images: Any, ids: Iterable[ImageId] | None) -> AsyncIterator[Named]:
    """Like `named`, for async iterables as well."""
    if not hasattr(images, "__aiter__"):
        for pair in named(images, ids):
            yield pair
        return
    given = None if ids is None else iter(ids)
    index = -1
    async for item in images:
        index += 1
        yield _named(index, item, given)
    _check_exhausted(given, index + 1)


def _checked_iter(images: Any) -> Iterator[Any]:
    try:
        return iter(images)
    except TypeError as error:
        raise TypeError(
            f"images must be an image or an iterable of images, got {type(images).__name__}; an image is a path, bytes, "
            "a binary file object, a PIL image or an array"
        ) from error


def _named(index: int, item: Any, given: Iterator[ImageId] | None) -> Named:
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], (str, int)):
        if given is not None:
            raise ValueError("give ids= or (id, image) pairs, not both")
        return item
    if given is None:
        return index, item
    image_id = next(given, NO_ID)
    if not isinstance(image_id, (str, int)):
        raise ValueError(
            f"ids= has only {index} entries, there are more images"
            if image_id is NO_ID
            else f"ids must be text or whole numbers, got {image_id!r}"
        )
    return image_id, item


def _check_exhausted(given: Iterator[ImageId] | None, num_images: int) -> None:
    if given is not None and next(given, NO_ID) is not NO_ID:
        raise ValueError(f"ids= has more entries than there are images ({num_images})")
