"""A verdict as a row: the columns people query, and the whole audit record beside them."""

from __future__ import annotations

import dataclasses
import datetime
import io
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moderation_client import Verdict

COUNTS = b"moderation_counts"
"""Metadata of a part's footer: how many rows of each kind, so that a summary need not read them."""
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("shard", pa.int64()),
        ("row", pa.int64()),
        ("decision", pa.string()),
        ("label", pa.string()),
        ("score", pa.float64()),
        ("threshold", pa.float64()),
        ("scores", pa.map_(pa.string(), pa.float64())),
        ("reason", pa.string()),
        ("error", pa.string()),
        ("error_message", pa.string()),
        ("model_name", pa.string()),
        ("model_version", pa.string()),
        ("policy_name", pa.string()),
        ("policy_version", pa.string()),
        ("judged_at", pa.timestamp("ms", tz="UTC")),
        ("json", pa.string()),
    ]
)
COPIED = (
    "decision",
    "label",
    "score",
    "threshold",
    "reason",
    "model_name",
    "model_version",
    "policy_name",
    "policy_version",
)


def row_of(verdict: Verdict, shard: int, row: int) -> dict[str, Any]:
    """One row; `shard` and `row` tell inputs apart that share an id."""
    record = verdict.to_dict()
    return {
        "id": str(verdict.id),
        "shard": shard,
        "row": row,
        **{name: record[name] for name in COPIED},
        "scores": list(verdict.scores.items()),
        "error": verdict.error.code if verdict.error else None,
        "error_message": verdict.error.message if verdict.error else None,
        "judged_at": datetime.datetime.now(datetime.timezone.utc),
        "json": json.dumps(record, separators=(",", ":")),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """What came out of one shard, or of many."""

    num_images: int = 0
    num_errors: int = 0
    decisions: dict[str, int] = dataclasses.field(default_factory=dict)
    model_versions: dict[str, int] = dataclasses.field(default_factory=dict)
    policy_versions: dict[str, int] = dataclasses.field(default_factory=dict)

    def __add__(self, other: Counts) -> Counts:
        """Both together."""
        added: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            added[field.name] = (
                dict(Counter(mine) + Counter(theirs)) if isinstance(mine, dict) else mine + theirs
            )
        return Counts(**added)


def count(rows: Sequence[dict[str, Any]]) -> Counts:
    """Count rows."""

    def of(name: str) -> dict[str, int]:
        return dict(Counter(row[name] for row in rows if row[name] is not None))

    return Counts(
        num_images=len(rows),
        num_errors=sum(row["error"] is not None for row in rows),
        decisions=of("decision"),
        model_versions=of("model_version"),
        policy_versions=of("policy_version"),
    )


def to_parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    """A part's content."""
    counts = json.dumps(dataclasses.asdict(count(rows))).encode()
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA.with_metadata({COUNTS: counts}))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_counts(stream: Any) -> Counts:
    """Counts in a part's footer. Raises OSError or ArrowException."""
    return Counts(**json.loads(pq.read_schema(stream).metadata[COUNTS]))
