"""Back-catalogues that the bulk tests judge: the same pictures as a folder, tables and archives, with what is broken among them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from bulk.config import BulkConfig, ServiceConfig, SourceConfig
from tests.pictures import encoded, flat

BROKEN = b"\xff\xd8\xff not a picture"


def pictures(number: int) -> dict[str, bytes]:
    """Name -> file: plain pictures whose redness is their number, every tenth one broken."""
    return {
        f"{index % 3}/picture-{index:03d}.png": BROKEN
        if index % 10 == 9
        else encoded(flat((index % 256, 0, 0)))
        for index in range(number)
    }


def folder(root: Path, files: Mapping[str, bytes]) -> Path:
    """Write files below `root`."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def table(path: Path, columns: Mapping[str, list[Any]], **options: Any) -> Path:
    """Write a Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns)), path, **options)
    return path


def tar(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write an archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def bulk_config(source: object, out: object, url: str, *, shard_size: int = 7, **fields: Any) -> BulkConfig:
    """Options of a small backfill."""
    service = ServiceConfig(url=(url,), **fields.pop("service", {}))
    reading = SourceConfig(shard_size=shard_size, **fields.pop("reading", {}))
    return BulkConfig(source=str(source), out=str(out), service=service, reading=reading, **fields)


def rows_of(out: Path) -> list[dict[str, Any]]:
    """Result rows in order, read as anybody would read them: the folder as one data set."""
    found: list[dict[str, Any]] = pyarrow.dataset.dataset(out).to_table().to_pylist()
    return sorted(found, key=lambda row: (row["shard"], row["row"]))
