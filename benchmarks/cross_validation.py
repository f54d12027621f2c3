"""How good the demo's training is on objects it has not seen, over all images instead of one test split: cross-validation by object.

The test split has nine objects of gambling, so its figures depend on which objects fell into it. Here the objects are dealt out to
folds, label by label. Each fold is judged by a run that learnt from the others, with one of them held back for early stopping,
calibration and thresholds; the scores of all folds, calibrated each by its own run, are judged together. Splits for evaluation only
(the artist whose drawings training never sees) stay what they are.
"""

from __future__ import annotations

import csv
import json
import math
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.results import Bar, Point, Scalar, make_result, write_result
from benchmarks.subject import fail
from train import metrics
from train.config import PRESETS
from train.data import SPLITS, Example, read_manifest
from train.evaluate import Scored
from train.pipeline import train
from train.record import load_scores

HELD_BACK = (("early_stop", 0.2), ("calibration", 0.55), ("policy", 1.0))
"""What the held-back fold is for: each split with the end of its part."""
MACRO_AP, AUROC = 0.80, 0.92


@dataclass(frozen=True, kw_only=True)
class CrossValidationConfig:
    """Deal the objects out, train once a fold, judge all images together."""

    data: Path = Path("data/illustrated/manifest.csv")
    """Manifest with groups and splits."""
    runs: Path = Path("runs/benchmarks")
    """Folder for the runs and the manifests of the folds."""
    num_folds: int = 5
    """One training each."""
    seed: int = 0
    """Of the deal."""
    resume: bool = False
    """Go on with the trainings of a call that was interrupted."""
    out: Path = Path("benchmarks/results")
    """Folder of the result file."""

    def __post_init__(self) -> None:
        """Check the values. Raises ValueError that names the field."""
        if self.num_folds < 3:
            raise ValueError(
                f"num_folds must be 3 or more: to learn, to hold back, to judge; got {self.num_folds}"
            )


@dataclass(frozen=True)
class Seat:
    """Where a group was dealt to."""

    fold: int
    place: float
    """Between 0 and 1, in the order of the deal among the fold's groups of its label."""


def main() -> None:
    """Train, judge, print the bars, write the result."""
    config = tyro.cli(CrossValidationConfig, description=__doc__)
    examples = read_manifest(config.data)
    if any(example.content is not None for example in examples):
        fail(f"{config.data} holds the images themselves: give a manifest of files")
    seats = deal(examples, config.num_folds, config.seed)
    points, judged = [], []
    for fold in range(config.num_folds):
        name = f"fold-{fold}"
        manifest = config.runs / f"{name}.csv"
        write_manifest(manifest, examples, splits(examples, seats, fold, config.num_folds))
        run = train(
            replace(
                PRESETS["demo"],
                name=name,
                runs=config.runs,
                data=manifest,
                resume=config.resume,
                scratch_result=None,
            )
        )
        if run is None:  # on a helping process of several
            return
        judged.append(load_scores(run)["test"].scored)
        points.append(_point(fold, judged[-1], _frozen(run)))
    points.append(_point("all", together(judged)))
    bars = bars_of(points)
    for bar in bars:
        print(bar)
    print(write_result(make_result("cross_validation", config, points, bars=bars), config.out))


def deal(examples: Iterable[Example], num_folds: int, seed: int) -> dict[str, Seat]:
    """Give each group that is learnt from, or judged by the demo's splits, a fold: those of one label go round in a random order."""
    labels: defaultdict[str, set[str]] = defaultdict(set)
    for example in examples:
        if example.split in SPLITS:
            labels[example.group].update(example.labels)
    alike: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for group in sorted(labels):
        alike[tuple(sorted(labels[group]))].append(group)
    rng, seats = random.Random(seed), {}
    for _, groups in sorted(alike.items()):
        rng.shuffle(groups)
        for number, group in enumerate(groups):
            place = (number // num_folds + 0.5) / math.ceil(len(groups) / num_folds)
            seats[group] = Seat(number % num_folds, place)
    return seats


def splits(examples: Iterable[Example], seats: Mapping[str, Seat], fold: int, num_folds: int) -> list[str]:
    """Split of each example when `fold` is judged: the next one is held back, the others are learnt from."""

    def split(example: Example) -> str:
        if example.split not in SPLITS:
            return example.split
        seat = seats[example.group]
        if seat.fold == (fold + 1) % num_folds:
            return next(name for name, end in HELD_BACK if seat.place < end)
        return "test" if seat.fold == fold else "train"

    return [split(example) for example in examples]


def write_manifest(path: Path, examples: Sequence[Example], assigned: Sequence[str]) -> None:
    """Write the same images with other splits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        extra = sorted(set(chain.from_iterable(example.columns for example in examples)))
        writer.writerow(["path", "labels", "group", "split", "weight", "source", "licence", "name", *extra])
        for example, split in zip(examples, assigned, strict=True):
            row = [example.path.resolve(), ";".join(example.labels), example.group, split, example.weight]
            row += [example.source, example.licence, example.name]
            writer.writerow([*row, *(example.columns.get(column, "") for column in extra)])


def together(judged: Sequence[Scored]) -> Scored:
    """All folds as if they were one split. Each image is in one of them."""
    first = judged[0]

    def joined(name: str) -> Any:
        return np.concatenate([getattr(each, name) for each in judged])

    return replace(
        first,
        scores=joined("scores"),
        raw=joined("raw"),
        truth=joined("truth"),
        groups=tuple(chain.from_iterable(each.groups for each in judged)),
    )


def _frozen(run: Path) -> dict[str, Scalar]:
    """What logistic regression on frozen features gives on the same fold, and the paired gain over it."""
    found = json.loads((run / "metrics.json").read_text())["frozen_features"]["test"]
    return {f"frozen_{name}_{end}": value for name, each in found.items() for end, value in each.items()}


def _point(fold: int | str, scored: Scored, others: Mapping[str, Scalar] | None = None) -> Point:
    """Figures with their intervals, and `others`."""
    weights = metrics.resampled(scored.groups)
    columns = np.flatnonzero(scored.harmful)
    scores, truth = scored.scores[:, columns], scored.truth[:, columns]
    figures = {
        "macro_ap": metrics.macro(metrics.average_precision, scores, truth, weights),
        "auroc": metrics.auroc(scored.worst, scored.unsafe, weights),
    }
    for column, label in enumerate(scored.labels[each] for each in columns):
        figures[f"{label}_ap"] = metrics.average_precision(scores[:, column], truth[:, column], weights)
        figures[f"{label}_auroc"] = metrics.auroc(scores[:, column], truth[:, column], weights)
    values: dict[str, Scalar] = {"num_images": len(scores), "num_harmful": int(scored.unsafe.sum())}
    for name, drawn in figures.items():
        values |= {f"{name}_{end}": value for end, value in metrics.interval(drawn).items()}
    return Point(settings={"fold": fold}, values=values | dict(others or {}))


def bars_of(points: Sequence[Point]) -> list[Bar]:
    """What is asked of the demo's training: against frozen features in every fold, and over all images, which the last point is of."""
    *folds, point = points
    worst = min(each.number("frozen_macro_ap_gain_low") for each in folds)
    asked = (
        ("macro AP, gain over frozen features, paired: lower end in the worst fold", worst, 0.0),
        ("macro AP over all folds", point.number("macro_ap_value"), MACRO_AP),
        ("AUROC, harmful against harmless, over all folds", point.number("auroc_value"), AUROC),
    )
    return [
        Bar(name=name, measured=measured, limit=limit, sense="at_least") for name, measured, limit in asked
    ]


if __name__ == "__main__":
    main()
