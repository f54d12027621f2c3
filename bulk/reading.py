"""From a shard to its images, in order and in bounded memory: each with its id, as the client takes it, or refused with the reason.

A picture that cannot be read is refused and costs only its own row. A table or archive that breaks in the middle has its rest
refused: every row of a table, one row for an archive, whose number of members nobody knows. Trouble of the store itself is raised.
"""

from __future__ import annotations

import posixpath
import tarfile
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from tarfile import EmptyHeaderError, ReadError  # type: ignore[attr-defined]
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bulk.places import Place, place_of
from moderation_client import EmptyImageError, ImageReadError, ImageTooLargeError, InvalidImageError
from moderation_client.images import DEFAULT_LIMITS, FORMATS

MAX_BYTES = DEFAULT_LIMITS.max_bytes
FETCH_AHEAD = 32
"""Objects of a store that are read at the same time."""
ROWS_AT_ONCE = 64
DAMAGE = (pa.ArrowInvalid, tarfile.TarError, zlib.error, EOFError)
"""What says that the data are broken, and not the way to them."""
GONE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
SUFFIXES = (*(f".{name.lower()}" for name in FORMATS), ".jpg", ".tif", ".heic")


@dataclass(frozen=True, kw_only=True)
class Input:
    """One image to judge."""

    id: str
    source: Any
    """Path or bytes; an InvalidImageError when it cannot even be read."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The unit of work: which rows of which file."""

    index: int
    kind: str
    file: str
    start: int
    stop: int | None
    column: str | None = None
    id_column: str | None = None

    @property
    def num_images(self) -> int | None:
        """How many rows its result has; None for a tar."""
        return None if self.stop is None else self.stop - self.start


def read_shard(shard: Shard, source: Place, listing: Place, *, skip: int = 0) -> Iterator[Input]:
    """Images of a shard from number `skip` on. Raises OSError when the store fails."""
    if shard.kind == "tar":
        yield from _from_tar(source.at(shard.file), skip)
        return
    start = shard.start + skip
    done = start
    if shard.kind == "images":
        images = _from_listing(shard, source, listing.child(shard.file), start)
    else:
        images = _from_table(shard, source.at(shard.file), start)
    try:
        for each in images:
            done += 1
            yield each
    except DAMAGE as error:
        assert shard.stop is not None
        for row in range(done, shard.stop):
            refused = ImageReadError(f"{shard.file} is damaged: {error}")
            yield Input(id=f"{posixpath.basename(shard.file)}:{row}", source=refused)


def _from_listing(shard: Shard, source: Place, place: Place, start: int) -> Iterator[Input]:
    """Files of a folder, named by their path below it."""
    root = source.path.rstrip("/")
    batches = _batches(shard, place, start, ["path"])
    paths = (path for batch in batches for path in batch.column("path").to_pylist())
    named = (
        (posixpath.relpath(path, root) if path != root else posixpath.basename(path), path) for path in paths
    )
    yield from _fetched(named, source)


def _from_table(shard: Shard, place: Place, start: int) -> Iterator[Input]:
    """Rows of a Parquet file: bytes as they are, paths relative to the file's own folder."""
    assert shard.column is not None
    columns = [shard.column, *([shard.id_column] if shard.id_column else [])]
    folder, name = posixpath.split(place.path)

    def rows() -> Iterator[tuple[str, Any]]:
        row = start
        for batch in _batches(shard, place, start, columns):
            ids = batch.column(shard.id_column).to_pylist() if shard.id_column else [None] * len(batch)
            for given, value in zip(ids, batch.column(shard.column).to_pylist(), strict=True):
                yield (f"{name}:{row}" if given is None else str(given)), _value(value, folder, place)
                row += 1

    yield from _fetched(rows(), place)


def _value(value: Any, folder: str, place: Place) -> Any:
    """Bytes, an absolute path, or the reason why there is neither."""
    if isinstance(value, dict):  # as Hugging Face's datasets keep images
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not value:
        return EmptyImageError("the row has neither bytes nor a path")
    if "://" not in value:
        return posixpath.join(folder, value)
    other = place_of(value)
    if type(other.fs) is not type(place.fs):
        return ImageReadError(
            f"{value} lies in another store than its table; only the table's own store is read"
        )
    return other.path


def _batches(shard: Shard, place: Place, start: int, columns: list[str]) -> Iterator[Any]:
    """Rows `start` to the shard's end, a few at a time; row groups outside are not read."""
    assert shard.stop is not None
    with place.open() as stream:
        file = pq.ParquetFile(stream)
        first, groups, skipped = 0, [], 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if first + size <= start:
                skipped = first + size
            elif first < shard.stop:
                groups.append(group)
            first += size
        position = skipped
        for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=groups, columns=columns):
            low, high = max(start - position, 0), min(shard.stop - position, len(batch))
            position += len(batch)
            if low < high:
                yield batch.slice(low, high - low)


def _fetched(items: Iterator[tuple[str, Any]], place: Place) -> Iterator[Input]:
    """Give paths of this machine as they are (the client's decoders read them); read those of a store ahead, in order."""
    if place.is_local:
        yield from (Input(id=name, source=value) for name, value in items)
        return
    waiting: deque[tuple[str, Future[Any]]] = deque()
    with ThreadPoolExecutor(FETCH_AHEAD, thread_name_prefix="bulk-fetch") as pool:
        for name, value in items:
            waiting.append((name, pool.submit(_fetch, place, value)))
            if len(waiting) >= FETCH_AHEAD:
                yield _arrived(*waiting.popleft())
        while waiting:
            yield _arrived(*waiting.popleft())


def _arrived(name: str, fetched: Future[Any]) -> Input:
    return Input(id=name, source=fetched.result())


def _fetch(place: Place, value: Any) -> Any:
    """Content of an object, at most one byte more than may be: the client then refuses it by its size."""
    if not isinstance(value, str):
        return value
    try:
        return place.fs.cat_file(value, start=0, end=MAX_BYTES + 1)
    except GONE as error:
        return ImageReadError(f"{value}: {error}")


def _from_tar(place: Place, skip: int) -> Iterator[Input]:
    """Pictures of a WebDataset tar, read front to back; other members (labels, texts) are left out."""
    name = posixpath.basename(place.path)
    number = 0
    try:
        with place.open() as stream, tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Member) as archive:
            for member in archive:
                if not member.isfile() or not member.name.lower().endswith(SUFFIXES):
                    continue
                number += 1
                if number > skip:
                    yield Input(id=f"{name}/{member.name}", source=_member(archive, member))
    except DAMAGE as error:
        if number >= skip:
            yield Input(
                id=f"{name}#{number}",
                source=ImageReadError(f"{name} breaks off after {number} images: {error}"),
            )


class _Member(tarfile.TarInfo):
    """Takes a missing end for what it is: tarfile alone would call an archive whole that was cut off between two members."""

    @classmethod
    def fromtarfile(cls, tarfile: Any) -> Any:
        """Read the next header. Raises ReadError when the archive ends without its end marker."""
        try:
            return super().fromtarfile(tarfile)
        except EmptyHeaderError as error:
            raise ReadError("the end of the archive is missing") from error


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | InvalidImageError:
    if member.size > MAX_BYTES:
        return ImageTooLargeError(
            f"the file has {member.size} bytes, more than {MAX_BYTES}", value=member.size, limit=MAX_BYTES
        )
    content = archive.extractfile(member)
    assert content is not None  # it is a file
    return content.read()
