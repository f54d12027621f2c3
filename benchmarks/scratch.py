"""What ImageNet weights are worth: the demo's training with and without them, everything else the same.

Trains the demo preset from random weights (nothing frozen, since there is nothing worth keeping, and no probe), once a seed, and
writes its figures beside those of a run with ImageNet weights. The training report shows the committed result: `scratch.json`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro

from benchmarks.results import Bar, Point, make_result, write_result
from train.config import PRESETS, TrainConfig
from train.pipeline import train

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
    for seed in config.seeds:
        run = train(scratch_run(config, seed))
        if run is not None:  # None on a helping process of several
            points.append(_point("random weights", seed, _metrics(run)))
    bars = [_bar(points, figure, split) for split in ("test", "unseen") for figure in FIGURES]
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


def _bar(points: list[Point], figure: str, split: str) -> Bar:
    """ImageNet weights must be worth something: the margin over the best run without them."""
    name = f"{split}_{figure}_value"
    best = max(point.number(name) for point in points[1:])
    margin = points[0].number(name) - best
    return Bar(
        name=f"{split} {figure}: gain of ImageNet weights", measured=margin, limit=0.0, sense="at_least"
    )


if __name__ == "__main__":
    main()
