"""What there is to judge, in a fixed order, cut into pieces: done once, when the plan is made.

Nothing is left out silently: every file of a folder that is not hidden is an input, and what is no picture gets a row that says so.
"""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bulk.config import Kind, SourceConfig
from bulk.errors import SourceError
from bulk.places import Place

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
COLUMNS = ("image", "bytes", "content", "path", "file", "url")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Rows `start` to `stop` of a Parquet file or listing, or all of a tar (`stop` unknown)."""

    file: str
    start: int
    stop: int | None


def source_kind(source: Place, config: SourceConfig) -> Kind:
    """Decide what a source is made of, by its first twenty files. Raises SourceError."""
    if config.kind != "auto":
        return config.kind
    first = [path.lower() for path in itertools.islice(files(source, "*"), 20)]
    if not first:
        raise SourceError(f"{source.url}: there is no file")
    if any(path.endswith(".parquet") for path in first):
        return "parquet"
    return "tar" if any(path.endswith(TAR_SUFFIXES) for path in first) else "images"


def files(source: Place, pattern: str) -> Iterator[str]:
    """Paths of a source's files in the order of their names; folders are gone through, links to folders are not.

    Raises SourceError when there is nothing at that place.
    """
    try:
        if source.fs.isdir(source.path):
            yield from _below(source.fs, source.path, pattern)
        elif source.fs.exists(source.path):
            yield source.path
        elif any(sign in source.path for sign in "*?["):
            yield from sorted(str(each) for each in source.fs.glob(source.path))
        else:
            raise SourceError(f"{source.url}: no such file or folder")
    except (OSError, ImportError) as error:
        raise SourceError(f"{source.url}: {error}") from error


def _below(fs: Any, folder: str, pattern: str) -> Iterator[str]:
    for each in sorted(fs.ls(folder, detail=True), key=lambda entry: str(entry["name"])):
        path = str(each["name"])
        name = path.rstrip("/").rsplit("/", 1)[-1]
        if name.startswith(".") or path.rstrip("/") == folder.rstrip("/"):
            continue  # hidden, or the marker some stores keep for a folder
        if each["type"] == "directory":
            if not each.get("islink"):
                yield from _below(fs, path, pattern)
        elif fnmatch.fnmatch(name, pattern):
            yield path


def parquet_pieces(source: Place, config: SourceConfig) -> Iterator[Piece]:
    """Row ranges of every Parquet file. Raises SourceError that names the file."""
    for path in files(source, "*.parquet"):
        place = source.at(path)
        try:
            with place.open() as stream:
                found = pq.ParquetFile(stream)
                column = image_column(found.schema_arrow, config, path)
                splits = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
                sizes = [found.metadata.row_group(each).num_rows for each in range(found.num_row_groups)]
        except (OSError, pa.ArrowException) as error:
            raise SourceError(f"{path}: not a readable Parquet file: {error}") from error
        yield from _ranges(path, [sum(sizes)] if splits else sizes, config.shard_size, splits=splits)


def _ranges(path: str, sizes: list[int], shard_size: int, *, splits: bool) -> Iterator[Piece]:
    """Cut a file: anywhere when it holds paths, at row groups when it holds bytes (half a group costs as much as all of it)."""
    num_rows = sum(sizes)
    if splits:
        for start in range(0, num_rows, shard_size):
            yield Piece(file=path, start=start, stop=min(start + shard_size, num_rows))
        return
    start = stop = 0
    for size in sizes:
        if stop > start and stop + size - start > shard_size:
            yield Piece(file=path, start=start, stop=stop)
            start = stop
        stop += size
    if stop > start:
        yield Piece(file=path, start=start, stop=stop)


def image_column(schema: Any, config: SourceConfig, path: str) -> Any:
    """Field with the images. Raises SourceError that names what is there."""
    wanted = [config.column] if config.column else COLUMNS
    for name in wanted:
        if name in schema.names:
            field = schema.field(name)
            _check_type(field, path)
            return field
    raise SourceError(
        f"{path} has no column {' or '.join(map(str, wanted))}; it has {', '.join(schema.names)}: choose with --column"
    )


def _check_type(field: Any, path: str) -> None:
    kind = field.type
    plain = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    if any(test(kind) for test in plain):
        return
    if pa.types.is_struct(kind) and {each.name for each in kind} & {"bytes", "path"}:
        return
    raise SourceError(
        f"{path}: column {field.name!r} is {kind}: images are bytes, paths, or a struct with `bytes` or `path`"
    )


def tar_pieces(source: Place) -> Iterator[Piece]:
    """Every tar is a piece of its own."""
    for path in files(source, "*"):
        if path.lower().endswith(TAR_SUFFIXES):
            yield Piece(file=path, start=0, stop=None)
