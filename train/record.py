"""What a run remembers: how it was made, and the scores behind its figures, so that both can be checked later."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import platform
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from train.config import TrainConfig
from train.data import Example
from train.errors import RunError
from train.evaluate import Scored
from train.files import write_text


@dataclass(frozen=True, kw_only=True)
class ScoredImages:
    """One split out of scores.csv."""

    scored: Scored
    paths: tuple[Path, ...]
    shown: tuple[str, ...]
    """True labels of each image, separated by ";"."""
    sources: tuple[str, ...] = ()
    """Where each image comes from; empty in files that do not say."""


PACKAGES = ("torch", "torchvision", "lightning", "numpy", "pillow", "safetensors")
SCORES_FILE = "scores.csv"


def describe(config: TrainConfig, labels: Sequence[str], examples: Sequence[Example]) -> dict[str, Any]:
    """JSON-ready account of what was trained on what, with what."""
    return {
        "name": config.name,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "backbone": config.backbone,
        "labels": list(labels),
        "seed": config.seed,
        "config": json.loads(json.dumps(dataclasses.asdict(config), default=str)),
        "data": {
            "manifest": str(config.data),
            "sha256": file_sha256(config.data),
            "num_images": len(examples),
            "splits": dict(Counter(example.split for example in examples)),
            "sources": dict(Counter(example.source for example in examples if example.source)),
            "licences": dict(Counter(example.licence for example in examples if example.licence)),
            "split_labels": _split_labels(examples),
        },
        "packages": {package: version(package) for package in PACKAGES},
        "python": platform.python_version(),
    }


def _split_labels(examples: Sequence[Example]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for example in examples:
        counts.setdefault(example.split, Counter()).update(example.labels or ("harmless",))
    return {split: dict(found) for split, found in counts.items()}


def file_sha256(path: Path) -> str | None:
    """Hash of a file; None for a folder."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def digest(record: Mapping[str, Any]) -> str:
    """First 12 hex digits of the hash of a record, without what differs between equal runs."""
    kept = {key: value for key, value in record.items() if key not in {"created", "seconds", "name"}}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:12]


def commit() -> str | None:
    """Commit of the checkout this code runs from; None outside one."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607 - whichever git the user has
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def save_scores(run: Path, splits: Mapping[str, tuple[Sequence[Example], Scored]]) -> None:
    """Write scores.csv: one row an image of the held-out splits, with its truth, plain and calibrated scores."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    labels = next(iter(splits.values()))[1].labels
    before = [f"before calibration: {label}" for label in labels]
    writer.writerow(["split", "path", "group", "source", "labels", *labels, *before])
    for split, (examples, scored) in splits.items():
        for example, row in zip(examples, np.hstack([scored.scores, scored.raw]), strict=True):
            scores = [f"{value:.7g}" for value in row]
            shown = ";".join(example.labels)
            writer.writerow([split, example.path, example.group, example.source, shown, *scores])
    write_text(run / SCORES_FILE, file.getvalue())


def load_scores(run: Path, exempt: frozenset[str] = frozenset({"neutral"})) -> dict[str, ScoredImages]:
    """Read what `save_scores` wrote, by split. Raises RunError."""
    try:
        with (run / SCORES_FILE).open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file))
    except (OSError, ValueError) as error:
        raise RunError(f"{run / SCORES_FILE} cannot be read: {error}") from error
    num_labels = (len(header) - 5) // 2
    labels = tuple(header[5 : 5 + num_labels])
    found = {}
    for split in dict.fromkeys(row[0] for row in rows):
        chosen = [row for row in rows if row[0] == split]
        values = np.array([row[5:] for row in chosen], np.float32)
        truth = [[float(label in row[4].split(";")) for label in labels] for row in chosen]
        scored = Scored(
            labels=labels,
            scores=values[:, :num_labels],
            raw=values[:, num_labels:],
            truth=np.array(truth, np.float32),
            groups=tuple(row[2] for row in chosen),
            harmful=np.array([label not in exempt for label in labels]),
        )
        paths = tuple(Path(row[1]) for row in chosen)
        found[split] = ScoredImages(
            scored=scored,
            paths=paths,
            shown=tuple(row[4] for row in chosen),
            sources=tuple(row[3] for row in chosen),
        )
    return found


def load_scratch(path: Path | None) -> dict[str, dict[str, dict[str, float]]]:
    """Figures of the same network without pre-trained weights, by split, out of benchmarks/scratch.py's result; empty without one."""
    if path is None or not path.exists():
        return {}
    try:
        points = json.loads(path.read_bytes())["points"]
        values = next(point["values"] for point in points if point["settings"]["weights"] == "random weights")
        return {
            split: {
                figure: {end: values[f"{split}_{figure}_{end}"] for end in ("value", "low", "high")}
                for figure in ("auroc", "macro_ap")
            }
            for split in ("test", "unseen")
        }
    except (OSError, ValueError, KeyError, StopIteration, TypeError) as error:
        raise RunError(f"{path} is not a result of benchmarks/scratch.py: {error!r}") from error
