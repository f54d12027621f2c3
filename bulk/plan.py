"""The plan of a backfill: what is judged, in which shards, by which version; recorded once in RESULT/_plan and never changed.

The source is listed once, so that the shards are the same however often the run is resumed and whatever is added meanwhile. A shard
is done when its file RESULT/part-<shard>.parquet is there.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from bulk.config import BulkConfig, SourceConfig
from bulk.errors import PlanError, SourceError
from bulk.listing import Piece, files, image_column, parquet_pieces, source_kind, tar_pieces
from bulk.places import Place, place_of
from bulk.reading import Shard

T = TypeVar("T")
SCHEMA_VERSION = 1
FOLDER = "_plan"
SHARDS_PER_LISTING = 1000
"""Shards whose files stand in one listing: one row group each."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a backfill is."""

    source: str
    kind: str
    shard_size: int
    pattern: str
    column: str | None
    id_column: str | None
    model_version: str | None
    num_shards: int
    num_images: int | None
    """None when tars are among it: their members are not counted beforehand."""
    schema_version: int = SCHEMA_VERSION


def part_name(index: int) -> str:
    """File name of a shard's result."""
    return f"part-{index:07d}.parquet"


def done_shards(out: Place) -> set[int]:
    """Shards whose result is there."""
    names = (name for name in out.names() if name.startswith("part-") and name.endswith(".parquet"))
    return {int(name[5:-8]) for name in names if name[5:-8].isdigit()}


def read_plan(out: Place) -> Plan | None:
    """Plan of a result folder; None when there is none yet. Raises PlanError when it cannot be read."""
    place = out.child(FOLDER).child("plan.json")
    try:
        payload = json.loads(place.read())
        if payload.get("schema_version") != SCHEMA_VERSION:
            raise PlanError(
                f"{place.url} has schema_version {payload.get('schema_version')!r}, not {SCHEMA_VERSION}"
            )
        return Plan(**payload)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError) as error:
        raise PlanError(f"{place.url} is not a plan: {error}") from error


def read_shards(plan: Plan, out: Place) -> list[Shard]:
    """Every shard of a plan, in order. Raises PlanError."""
    place = out.child(FOLDER).child("shards.parquet")
    try:
        rows = pq.read_table(io.BytesIO(place.read())).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise PlanError(f"{place.url} cannot be read: {error}") from error
    if len(rows) != plan.num_shards:
        raise PlanError(f"{place.url} has {len(rows)} shards, the plan {plan.num_shards}")
    rest: dict[str, Any] = {"kind": plan.kind, "column": plan.column, "id_column": plan.id_column}
    return [Shard(index=index, **row, **rest) for index, row in enumerate(rows)]


def check_same(plan: Plan, config: BulkConfig) -> None:
    """Refuse to go on with another backfill's result. Raises PlanError that names what differs."""
    reading = config.reading
    asked = {
        "source": place_of(config.source).url,
        "shard_size": reading.shard_size,
        "pattern": reading.pattern,
    }
    optional = {
        "kind": None if reading.kind == "auto" else reading.kind,
        "column": reading.column,
        "id_column": reading.id_column,
        "model_version": config.model_version,
    }
    asked |= {name: value for name, value in optional.items() if value is not None}
    for name, value in asked.items():
        if getattr(plan, name) != value:
            raise PlanError(
                f"{config.out} was begun with {name.replace('_', ' ')} {getattr(plan, name)!r}, not {value!r}: "
                "give the same, or another --out"
            )


def make_plan(config: BulkConfig, out: Place, model_version: str | None) -> Plan:
    """List the source and record the plan; plan.json comes last and makes it valid. Raises SourceError."""
    source = place_of(config.source)
    kind = source_kind(source, config.reading)
    folder = out.child(FOLDER)
    column, id_column = _columns(source, config.reading) if kind == "parquet" else (None, None)
    pieces = list(_pieces(kind, source, folder, config.reading))
    if not pieces:
        raise SourceError(f"{config.source}: nothing to judge there ({kind})")
    rows = [dataclasses.asdict(piece) for piece in pieces]
    sizes = [None if piece.stop is None else piece.stop - piece.start for piece in pieces]
    folder.write("shards.parquet", _parquet([pa.Table.from_pylist(rows, schema=SHARDS)]))
    plan = Plan(
        source=source.url,
        kind=kind,
        shard_size=config.reading.shard_size,
        pattern=config.reading.pattern,
        column=column,
        id_column=id_column,
        model_version=model_version,
        num_shards=len(pieces),
        num_images=None if None in sizes else sum(size for size in sizes if size is not None),
    )
    folder.write("plan.json", json.dumps(dataclasses.asdict(plan), indent=1).encode())
    return plan


SHARDS = pa.schema([("file", pa.string()), ("start", pa.int64()), ("stop", pa.int64())])


def _pieces(kind: str, source: Place, folder: Place, config: SourceConfig) -> Iterator[Piece]:
    if kind == "parquet":
        return parquet_pieces(source, config)
    return (
        tar_pieces(source)
        if kind == "tar"
        else _listed(files(source, config.pattern), folder, config.shard_size)
    )


def _columns(source: Place, config: SourceConfig) -> tuple[str, str | None]:
    """Columns with images and ids, by the first file. Raises SourceError."""
    for path in files(source, "*.parquet"):
        with source.at(path).open() as stream:
            try:
                schema = pq.read_schema(stream)
            except pa.ArrowException as error:
                raise SourceError(f"{path}: not a readable Parquet file: {error}") from error
        if config.id_column and config.id_column not in schema.names:
            raise SourceError(f"{path} has no column {config.id_column!r}; it has {', '.join(schema.names)}")
        id_column = config.id_column or ("id" if "id" in schema.names else None)
        return str(image_column(schema, config, path).name), id_column
    raise SourceError(f"{source.url}: there is no Parquet file")


def _listed(paths: Iterable[str], folder: Place, shard_size: int) -> Iterator[Piece]:
    """Write the listing of a folder, one row group a shard, many shards a file."""
    listings = _chunks(_chunks(paths, shard_size), SHARDS_PER_LISTING)
    for number, group in enumerate(listings):
        name, start = f"files-{number:05d}.parquet", 0
        folder.write(name, _parquet([pa.table({"path": pa.array(each, pa.string())}) for each in group]))
        for each in group:
            yield Piece(file=name, start=start, stop=start + len(each))
            start += len(each)


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    source = iter(items)
    while chunk := list(itertools.islice(source, size)):
        yield chunk


def _parquet(groups: list[Any]) -> bytes:
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, groups[0].schema, compression="zstd") as writer:
        for group in groups:
            writer.write_table(group, row_group_size=max(len(group), 1))
    return buffer.getvalue()
