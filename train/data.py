"""What a labelled data set is: a manifest whose rows say where an image is, what it shows, and which split may see it.

A manifest is a CSV or Parquet table with the columns `path` (relative to the table; or `bytes` in Parquet) and `labels`
(separated by ";", empty means harmless), and optionally `group` (variants of one thing, never split up), `split`, `weight`,
`source`, `licence`, `name` and any others, by which evaluation can slice. A folder of class folders works as well, with or without
folders of splits above them (ImageNet's layout).
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.errors import DataError

SPLITS = ("train", "early_stop", "calibration", "policy", "test")
"""Five sets for five purposes; what was chosen on one is proved on another."""
SHARES = (0.6, 0.07, 0.1, 0.11, 0.12)
"""Of the groups, for manifests without a split column."""
VALIDATION = "validation"
"""Folder of images held out for no stated purpose: shared out to the splits that have no folder of their own."""
SPLIT_FOLDERS = {
    **{split: split for split in (*SPLITS, "unseen")},
    **dict.fromkeys(("val", "valid", "validation"), VALIDATION),
    "training": "train",
    "testing": "test",
}
"""Names that the folders of splits may have."""
HARMLESS_FOLDERS = {"neutral", "harmless", "safe", "none", "ok"}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
KNOWN = {"path", "bytes", "labels", "group", "split", "weight", "source", "licence", "name"}


@dataclass(frozen=True, kw_only=True)
class Example:
    """One labelled image."""

    path: Path
    """The file; for images kept as bytes in a Parquet table a name for messages."""
    labels: tuple[str, ...] = ()
    """What it shows; empty means harmless."""
    group: str = ""
    """Variants of one object, one user's uploads: never on two sides of a split."""
    split: str = ""
    """`train`, `early_stop`, `calibration`, `policy`, `test`, or a further set for evaluation only."""
    weight: float = 1.0
    """Factor on its loss."""
    source: str = ""
    """Where it comes from: an artist's set, a surface."""
    licence: str = ""
    name: str = ""
    content: bytes | None = field(default=None, repr=False)
    """The file's bytes, where the table holds them."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Every other column, for slices."""

    @property
    def image(self) -> Path | bytes:
        """What to decode."""
        return self.path if self.content is None else self.content


def read_manifest(path: str | Path) -> list[Example]:
    """Read a CSV or Parquet manifest, or a folder of class folders.

    Raises DataError that names the row or the column; files are not opened here (see `train.checks`).
    """
    path = Path(path)
    if path.is_dir():
        return _read_folders(path)
    if not path.exists():
        raise DataError(
            f"manifest {path} does not exist; build the demo's data with: python -m train.illustrated"
        )
    rows = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    examples = [_example(row, number, path) for number, row in enumerate(rows, start=2)]
    if not examples:
        raise DataError(f"manifest {path} has no rows")
    return _assign_splits(examples)


def _read_csv(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"manifest {path} cannot be read: {error}") from error
    missing = {"path", "labels"} - set(reader.fieldnames or ())
    if missing:
        raise DataError(
            f"manifest {path} lacks the column(s) {', '.join(sorted(missing))}; it has {reader.fieldnames}"
        )
    return rows


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow  # noqa: PLC0415 - only Parquet users pay for its import
    import pyarrow.parquet  # noqa: PLC0415

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"manifest {path} cannot be read: {error}") from error
    if "labels" not in table.column_names or not {"path", "bytes"} & set(table.column_names):
        raise DataError(
            f"manifest {path} needs the columns labels and path (or bytes); it has {table.column_names}"
        )
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _example(row: Mapping[str, Any], number: int, manifest: Path) -> Example:
    """Turn one row into an example. Raises DataError with the row's number as an editor shows it."""
    where = row.get("path") or f"row-{number}"
    content = row.get("bytes")
    if not row.get("path") and content is None:
        raise DataError(f"manifest {manifest}, row {number}: path is empty")
    if None in row or row.get("labels", "") is None:
        raise DataError(f"manifest {manifest}, row {number}: has not as many fields as the header")
    try:
        weight = float(_text(row.get("weight")) or 1.0)
    except ValueError as error:
        raise DataError(
            f"manifest {manifest}, row {number}: weight {row['weight']!r} is not a number"
        ) from error
    if not weight >= 0.0:
        raise DataError(f"manifest {manifest}, row {number}: weight must be 0 or more, got {weight}")
    text = {key: _text(row.get(key)) for key in ("group", "split", "source", "licence", "name")}
    if not text["group"]:  # its own; named by what it is, not by its row, so that rows may be added before it
        text["group"] = f"image:{row.get('path') or hashlib.sha256(content or b'').hexdigest()}"
    return Example(
        path=manifest.parent / str(where),
        labels=_labels(row["labels"]),
        weight=weight,
        content=content,
        columns={str(key): _text(value) for key, value in row.items() if key not in KNOWN},
        **text,
    )


def _text(value: object) -> str:
    """A cell as text; only an empty cell is empty: group 0 is a group, weight 0 a weight."""
    return "" if value is None else str(value)


def _labels(value: str | Iterable[str]) -> tuple[str, ...]:
    words = value.split(";") if isinstance(value, str) else value
    return tuple(sorted({word.strip() for word in words if word.strip()}))


def _read_folders(root: Path) -> list[Example]:
    """ImageNet's layout: root/label/file, or root/split/label/file; `neutral` and its like mean no label."""
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise DataError(
            f"folder {root} holds no images in class folders (root/label/file or root/split/label/file)"
        )
    places = [path.relative_to(root).parts for path in files]
    firsts = {parts[0].lower() for parts in places if len(parts) > 1}
    by_split = bool(firsts & set(SPLIT_FOLDERS))
    examples = []
    for path, parts in zip(files, places, strict=True):
        _check_place(path, parts, by_split=by_split)
        label, group = parts[1 if by_split else 0], "image:" + "/".join(parts)
        among = _splits_of_folder(parts[0].lower(), firsts) if by_split else SPLITS
        labels = () if label.lower() in HARMLESS_FOLDERS else (label,)
        examples.append(Example(path=path, labels=labels, group=group, split=_split_of(group, among)))
    return examples


def _check_place(path: Path, parts: Sequence[str], *, by_split: bool) -> None:
    """Raise DataError for an image whose label or split its folders do not tell."""
    if len(parts) < 2:
        raise DataError(f"{path} lies beside the class folders: its label is unknown")
    if by_split and parts[0].lower() not in SPLIT_FOLDERS:
        raise DataError(
            f"{path}: {parts[0]!r} is no folder of a split ({', '.join(SPLIT_FOLDERS)}) but lies beside such folders"
        )
    if by_split and len(parts) < 3:
        raise DataError(
            f"{path} lies in the folder of a split, beside its class folders: its label is unknown"
        )
    if not by_split and len(parts) > 2:
        raise DataError(
            f"{path}: is {parts[0]!r} a label or a split? Folders must be root/label/file, or root/split/label/file "
            f"with a split out of {', '.join(SPLIT_FOLDERS)}"
        )


def _splits_of_folder(name: str, folders: set[str]) -> tuple[str, ...]:
    """Splits that images in the folder of a split may go to: its own, and those without a folder when it is the one to give.

    Held-out splits that have no folder are taken from the validation folder; where there is none, from the training folder.
    """
    named = {SPLIT_FOLDERS[folder] for folder in folders if folder in SPLIT_FOLDERS}
    own, missing = SPLIT_FOLDERS[name], tuple(split for split in SPLITS[1:] if split not in named)
    if own == VALIDATION:
        return missing or (SPLITS[1],)
    return (own, *missing) if own == SPLITS[0] and VALIDATION not in named else (own,)


def ignored_files(root: Path) -> list[str]:
    """Sentences on the files in class folders that are not taken for images; none for a manifest."""
    others = [
        path for path in root.rglob("*") if path.is_file() and path.suffix.lower() not in IMAGE_SUFFIXES
    ]
    counts = Counter(path.suffix or path.name for path in others)
    return [
        f"{number} file(s) {suffix!r} in {root} are not taken for images ({', '.join(sorted(IMAGE_SUFFIXES))} are)"
        for suffix, number in sorted(counts.items())
    ]


def _assign_splits(examples: Sequence[Example]) -> list[Example]:
    """Fill in missing splits, by a hash of the group, so that rows may be added."""
    return [replace(each, split=each.split or _split_of(each.group, SPLITS)) for each in examples]


def _split_of(group: str, among: Sequence[str]) -> str:
    """One of some splits, each as often as its share of them; a set for evaluation only stands alone."""
    if len(among) == 1:
        return among[0]
    shares = np.array([SHARES[SPLITS.index(split)] for split in among])
    position = int.from_bytes(hashlib.sha256(group.encode()).digest()[:4], "big") / 2**32
    for split, edge in zip(among, np.cumsum(shares / shares.sum()), strict=True):
        if position < edge:
            return split
    return among[-1]


def label_names(examples: Iterable[Example]) -> tuple[str, ...]:
    """Every label that occurs, sorted: the model's output order."""
    return tuple(sorted({label for example in examples for label in example.labels}))


def targets(examples: Sequence[Example], labels: Sequence[str]) -> NDArray[np.float32]:
    """Label matrix, float32 [num_images, num_labels] of 0 and 1."""
    matrix = np.zeros((len(examples), len(labels)), np.float32)
    columns = {label: column for column, label in enumerate(labels)}
    for row, example in enumerate(examples):
        for label in example.labels:
            if label in columns:
                matrix[row, columns[label]] = 1.0
    return matrix


def in_split(examples: Iterable[Example], split: str) -> list[Example]:
    """Pick the examples of one split, in the manifest's order."""
    return [example for example in examples if example.split == split]


def column_values(examples: Sequence[Example], column: str) -> list[str]:
    """One column of the manifest. Raises DataError that names those there are."""
    own = {"source", "group", "split", "licence", "name"}
    if column in own:
        return [str(getattr(example, column)) for example in examples]
    if not all(column in example.columns for example in examples):
        known = sorted(
            {"source", "group", "split", "licence", "name"}.union(*(each.columns for each in examples))
        )
        raise DataError(f"the manifest has no column {column!r}; it has {', '.join(known)}")
    return [example.columns[column] for example in examples]
