"""The hand-reviewed label table: one row per image, read and checked as a whole before anything is built from it.

What each label means, and what was left out because people would disagree, is written in `illustrated_policy.md`.
The table is the data set; the images are only its rendering.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from train.errors import LabelTableError
from train.illustrated_packages import Package

TABLE_FILE = Path(__file__).with_name("illustrated_labels.csv")
LABELS = ("weapon", "substance", "gambling")
Split = Literal["train", "early_stop", "calibration", "policy", "test", "unseen"]
SPLITS: tuple[Split, ...] = get_args(Split)
_SPLIT_OF: dict[str, Split] = {split: split for split in SPLITS}
_SAFE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")  # it becomes a file name


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image of the data set."""

    set: str
    """The artist's set."""
    version: str
    """Version of the package that was reviewed."""
    name: str
    """The image's name in the package."""
    labels: tuple[str, ...]
    """What a person saw in it; empty is neutral."""
    group: str
    """The object's name without words of style, number or suit, the same in every set; a group never straddles two splits
    of the seen sets."""
    kind: str
    """What sort of thing it is, wider than its name (`revolver` and `glock` are of the kind `pistol`): a column to report by."""
    split: Split
    """Which stage may use the image; `unseen` is the one set that is kept for testing only."""
    licence: str
    """SPDX identifier of the artwork's licence."""


def read_table(path: Path, packages: dict[str, Package]) -> list[Row]:
    """Read and check the label table; raises LabelTableError that names the line."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        expected = [field.name for field in fields(Row)]
        if reader.fieldnames != expected:
            raise LabelTableError(f"{path.name}: the columns are {reader.fieldnames}, expected {expected}.")
        rows = [
            _parse(f"{path.name} line {line}", record, packages)
            for line, record in enumerate(reader, start=2)
        ]
    _check_unique(path, rows)
    _check_splits(path, rows)
    return rows


def _parse(where: str, record: dict[str, str], packages: dict[str, Package]) -> Row:
    labels = tuple(label for label in record["labels"].split(";") if label)
    unknown = [label for label in labels if label not in LABELS]
    if unknown or len(set(labels)) != len(labels):
        raise LabelTableError(
            f"{where}: labels {record['labels']!r} are not among {', '.join(LABELS)}, each at most once."
        )
    split = _SPLIT_OF.get(record["split"])
    if split is None:
        raise LabelTableError(f"{where}: split {record['split']!r} is not one of {', '.join(SPLITS)}.")
    for column in ("name", "group", "kind"):
        if not _SAFE_NAME.fullmatch(record[column]):
            raise LabelTableError(f"{where}: {column} {record[column]!r} is not made of a-z, 0-9, - and _.")
    package = packages.get(record["set"])
    if package is None:
        raise LabelTableError(f"{where}: there is no package for the set {record['set']!r}.")
    if (record["version"], record["licence"]) != (package.version, package.licence):
        raise LabelTableError(
            f"{where}: version {record['version']} and licence {record['licence']} were reviewed, "
            f"but {package.pinned} under {package.licence} is pinned."
        )
    return Row(
        set=record["set"],
        version=record["version"],
        name=record["name"],
        labels=labels,
        group=record["group"],
        kind=record["kind"],
        split=split,
        licence=record["licence"],
    )


def _check_unique(path: Path, rows: Sequence[Row]) -> None:
    seen: set[tuple[str, str]] = set()
    for row in rows:
        if (row.set, row.name) in seen:
            raise LabelTableError(f"{path.name}: {row.set}/{row.name} stands there twice.")
        seen.add((row.set, row.name))


def _check_splits(path: Path, rows: Sequence[Row]) -> None:
    """Keep an object in one split, and an unseen artist unseen."""
    split_of: dict[str, str] = {}
    unseen = {row.set for row in rows if row.split == "unseen"}
    for row in rows:
        if row.set in unseen and row.split != "unseen":
            raise LabelTableError(
                f"{path.name}: {row.set} is an unseen set, but {row.name} is in split {row.split}."
            )
        if row.split != "unseen" and split_of.setdefault(row.group, row.split) != row.split:
            raise LabelTableError(
                f"{path.name}: group {row.group} is in both {split_of[row.group]} and {row.split}."
            )
