"""What ImageNet weights are worth: the demo's training with and without them, everything else the same.

Trains the demo preset from random weights (nothing frozen, since there is nothing worth keeping, and no probe), once a seed, and
writes its figures beside those of a run with ImageNet weights. The training report shows the committed result: `scratch.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro

from benchmarks.results import Bar, Point, make_result, write_result
from train import metrics
from train.config import PRESETS, TrainConfig
from train.errors import RunError
from train.evaluate import paired_difference
from train.pipeline import train
from train.record import ScoredImages, load_scores
from train.summary import figure as figure_text

FIGURES = ("auroc", "macro_ap")


@dataclass(frozen=True, kw_only=True)
class ScratchConfig:
    """Train the demo's network without ImageNet weights and compare."""

    data: Path = Path("data/illustrated/manifest.csv")
    """Manifest of the demo's images."""
    pretrained: Path = Path("runs/demo")
    """Finished run with ImageNet weights to compare with."""
    runs: Path = Path("runs/benchmarks")
    """Folder for the runs of this benchmark."""
    epochs: int | None = None
    """Passes over the training split; None takes the demo's."""
    seeds: tuple[int, ...] = (0,)
    """One run each."""
    out: Path = field(default=Path("benchmarks/results"))
    """Folder of the result file."""


def main() -> None:
    """Train, compare, print the bars, write the result."""
    config = tyro.cli(ScratchConfig, description=__doc__)
    points = [_point("ImageNet weights", None, _metrics(config.pretrained))]
    others = []
    for seed in config.seeds:
        run = train(scratch_run(config, seed))
        if run is None:  # on a helping process of several
            return
        others.append(run)
        points.append(_point("random weights", seed, _metrics(run)))
    bars = [
        _bar(config.pretrained, others, figure, split) for split in ("test", "unseen") for figure in FIGURES
    ]
    for bar in bars:
        print(bar)
    print(write_result(make_result("scratch", config, points, bars=bars), config.out, name="scratch.json"))


def scratch_run(config: ScratchConfig, seed: int) -> TrainConfig:
    """The demo's configuration without anything that only makes sense for pre-trained weights."""
    demo = PRESETS["demo"]
    return replace(
        demo,
        name=f"scratch-{seed}",
        runs=config.runs,
        data=config.data,
        weights="none",
        freeze=(),
        frozen_passes=0,
        train_sizes=(160,),  # nothing is frozen, so every epoch costs all of it: 224 would take twice as long
        freeze_norm=False,
        freeze_depthwise=False,
        probe_epochs=0,
        backbone_rate=1.0,
        average=(1.0,),
        epochs=config.epochs or demo.epochs,
        seed=seed,
    )


def _metrics(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return found


def _point(weights: str, seed: int | None, found: dict[str, Any]) -> Point:
    """Flatten the figures of both judged splits with their intervals."""
    values = {}
    for split in ("test", "unseen"):
        for figure in FIGURES:
            for end in ("value", "low", "high"):
                values[f"{split}_{figure}_{end}"] = found["splits"][split][figure][end]
    values["train_s"] = found["seconds"]["total"]
    return Point(settings={"weights": weights, "seed": seed}, values=values)


def _bar(pretrained: Path, others: Sequence[Path], figure: str, split: str) -> Bar:
    """ImageNet weights must be worth something: the paired gain over the best run without them, its lower end above 0."""
    ours = load_scores(pretrained)[split]
    gains = [gain(ours, load_scores(other)[split], figure) for other in others]
    least = min(gains, key=lambda each: each["value"] or 0.0)
    return Bar(
        name=f"{split} {figure}: lower end of the paired gain of ImageNet weights ({figure_text(least)})",
        measured=least["low"] or 0.0,
        limit=0.0,
        sense="at_least",
    )


def gain(ours: ScoredImages, other: ScoredImages, figure: str) -> dict[str, float | None]:
    """Figure of ours less that of another run on the same images, over the same resamples of groups. Raises RunError."""
    place = {path: index for index, path in enumerate(other.paths)}
    if set(place) != set(ours.paths):
        raise RunError("the two runs were judged on different images: train both on the same manifest")
    scores = other.scored.scores[[place[path] for path in ours.paths]]
    if figure == "macro_ap":
        return paired_difference(metrics.average_precision, ours.scored, scores)
    scored, weights = ours.scored, metrics.resampled(ours.scored.groups)
    theirs = replace(scored, scores=scores)
    return metrics.interval(
        metrics.auroc(scored.worst, scored.unsafe, weights)
        - metrics.auroc(theirs.worst, theirs.unsafe, weights)
    )


if __name__ == "__main__":
    main()
