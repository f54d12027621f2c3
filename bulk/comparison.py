"""What differs between two results over the same images: decisions, labels, scores. Read shard by shard, so memory stays bounded."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bulk.errors import ShadowError
from bulk.places import Place
from bulk.plan import part_name, read_plan
from moderation_client import Decision

NUM_BINS = 4000
EDGES = np.linspace(-1.0, 1.0, NUM_BINS + 1)
"""Score shifts are counted in bins 0.0005 wide."""
COLUMNS = [
    "id",
    "shard",
    "row",
    "decision",
    "label",
    "score",
    "scores",
    "error",
    "model_version",
    "policy_version",
]
Row = Mapping[str, Any]


@dataclass(kw_only=True)
class Shift:
    """How one label's score moved: candidate minus live."""

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(NUM_BINS, np.int64))
    total: float = 0.0

    def add(self, differences: NDArray[np.float64]) -> None:
        """Count more images."""
        self.counts += np.histogram(np.clip(differences, -1.0, 1.0), EDGES)[0]
        self.total += float(differences.sum())

    def quantile(self, share: float) -> float:
        """Shift that this share of the images does not exceed, to within a bin."""
        reached = np.cumsum(self.counts)
        return float((EDGES[:-1] + EDGES[1:])[np.searchsorted(reached, share * reached[-1])] / 2)

    def to_dict(self) -> dict[str, float]:
        """Mean and quantiles."""
        number = int(self.counts.sum())
        quantiles = {f"p{100 * share:g}": self.quantile(share) for share in (0.01, 0.05, 0.5, 0.95, 0.99)}
        return {"num_images": number, "mean": self.total / number, **quantiles}


@dataclass(frozen=True, order=True)
class Flip:
    """An image whose decision differs; the gravest sorts last."""

    gravity: tuple[int, int, float]
    """Laxer before stricter, steps between the decisions, change of the deciding score."""
    shard: int
    row: int
    live: Row = field(compare=False)
    candidate: Row = field(compare=False)


@dataclass(kw_only=True)
class Comparison:
    """Two versions on the same images."""

    versions: dict[str, str] = field(default_factory=dict)
    """Side -> model and policy versions that answered."""
    transitions: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(live decision, candidate decision) -> images that both judged."""
    stricter: Counter[str] = field(default_factory=Counter)
    """Label on which the candidate decided more strictly -> images."""
    laxer: Counter[str] = field(default_factory=Counter)
    """Label on which live had decided more strictly -> images."""
    errors: Counter[str] = field(default_factory=Counter)
    """Images that could not be judged: by `both`, by `live` or `candidate` alone."""
    shifts: dict[str, Shift] = field(default_factory=dict)
    examples: list[Flip] = field(default_factory=list)

    @property
    def num_compared(self) -> int:
        """Images that both judged."""
        return sum(self.transitions.values())

    @property
    def flip_share(self) -> float:
        """Share of them whose decision differs."""
        return (sum(self.stricter.values()) + self.num_laxer) / max(self.num_compared, 1)

    @property
    def num_laxer(self) -> int:
        """Images that the candidate judges less strictly."""
        return sum(self.laxer.values())

    @property
    def laxer_share(self) -> float:
        """Share of those."""
        return self.num_laxer / max(self.num_compared, 1)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without anything that names an image."""
        return {
            "schema_version": 1,
            "versions": self.versions,
            "num_compared": self.num_compared,
            "flip_share": self.flip_share,
            "laxer_share": self.laxer_share,
            "transitions": [
                {"live": live, "candidate": candidate, "num_images": number}
                for (live, candidate), number in sorted(self.transitions.items())
            ],
            "stricter": dict(self.stricter),
            "laxer": dict(self.laxer),
            "errors": dict(self.errors),
            "shifts": {label: shift.to_dict() for label, shift in self.shifts.items()},
        }

    def text(self) -> str:
        """Lines for a terminal."""
        lines = [
            f"compared   {self.num_compared:,} images: live {self.versions['live']}, candidate {self.versions['candidate']}",
            f"flips      {self.flip_share:.3%}; laxer {self.laxer_share:.3%}",
        ]
        for label in sorted({*self.stricter, *self.laxer}):
            lines.append(f"  {label}: {self.stricter[label]:,} stricter, {self.laxer[label]:,} laxer")
        for label, shift in self.shifts.items():
            found = shift.to_dict()
            lines.append(
                f"shift      {label}: mean {found['mean']:+.4f}, p1 {found['p1']:+.4f}, p99 {found['p99']:+.4f}"
            )
        if self.errors:
            lines.append(
                f"errors     {', '.join(f'{number:,} {who}' for who, number in sorted(self.errors.items()))}"
            )
        return "\n".join(lines)


def compare(live: Place, candidate: Place, num_examples: int) -> Comparison:
    """Compare two complete results. Raises ShadowError when they are not of the same images."""
    found = Comparison()
    for pairs in _shards(live, candidate):
        judged = []
        for one, other in pairs:
            if one["error"] or other["error"]:
                found.errors[
                    "both" if one["error"] and other["error"] else "live" if one["error"] else "candidate"
                ] += 1
            else:
                judged.append((one, other))
        _count(found, judged, num_examples)
    found.examples.sort(reverse=True)
    return found


def _shards(live: Place, candidate: Place) -> Iterator[list[tuple[Row, Row]]]:
    plans = read_plan(live), read_plan(candidate)
    if plans[0] is None or plans[1] is None or plans[0].num_shards != plans[1].num_shards:
        raise ShadowError(
            f"{live.url} and {candidate.url} are not backfills of one source: they have other shards"
        )
    for index in range(plans[0].num_shards):
        sides = [_rows(place.child(part_name(index))) for place in (live, candidate)]
        if [row["id"] for row in sides[0]] != [row["id"] for row in sides[1]]:
            raise ShadowError(
                f"the source changed between the two: shard {index} has other images. Use another --out"
            )
        yield list(zip(*sides, strict=True))


def _rows(place: Place) -> list[Row]:
    try:
        with place.open() as stream:
            rows: list[Row] = pq.read_table(stream, columns=COLUMNS).to_pylist()
            return rows
    except (OSError, pa.ArrowException) as error:
        raise ShadowError(f"{place.url} cannot be read: {error}") from error


def _count(found: Comparison, judged: list[tuple[Row, Row]], num_examples: int) -> None:
    for one, other in judged:
        for name, row in (("live", one), ("candidate", other)):
            found.versions.setdefault(name, f"version {row['model_version']}, policy {row['policy_version']}")
        found.transitions[one["decision"], other["decision"]] += 1
        step = Decision.parse(other["decision"]) - Decision.parse(one["decision"])
        if step:
            (found.stricter if step > 0 else found.laxer)[str((other if step > 0 else one)["label"])] += 1
            gravity = (int(step < 0), abs(step), abs(other["score"] - one["score"]))
            _keep(found.examples, Flip(gravity, one["shard"], one["row"], one, other), num_examples)
    _shift(found, judged)


def _keep(examples: list[Flip], flip: Flip, number: int) -> None:
    """Keep the gravest: a heap, the least grave first."""
    if len(examples) < number:
        heapq.heappush(examples, flip)
    elif number:
        heapq.heappushpop(examples, flip)


def _shift(found: Comparison, judged: list[tuple[Row, Row]]) -> None:
    """Labels that both versions have."""
    differences: dict[str, list[float]] = {}
    for one, other in judged:
        before = dict(one["scores"])
        for label, score in other["scores"]:
            if label in before:
                differences.setdefault(label, []).append(score - before[label])
    for label, values in differences.items():
        found.shifts.setdefault(label, Shift()).add(np.asarray(values))
