"""Whether the thresholds keep their promise: how often the true error share exceeds the target, over many drawn policy splits.

From known distributions, where the true share is computed, and on a run's own held-out scores, split in two again and again.
Beside it the usual way, "take the threshold that keeps the target on the validation images", which fails about half of the time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray
from scipy.stats import beta
from tqdm import tqdm

from benchmarks.results import Bar, Point, Scalar, make_result, write_result
from train.record import load_scores
from train.thresholds import GRID, choose, one_per_unit

Chooser = Callable[[NDArray[np.float32], float, float], float]


@dataclass(frozen=True, kw_only=True)
class CoverageConfig:
    """Draw policy splits, choose thresholds, and count how often the target is exceeded."""

    num_draws: int = 2000
    """Policy splits drawn for each setting."""
    run: Path | None = None
    """Finished run whose held-out scores are split again and again as well."""
    seed: int = 0
    """Start of the draws."""
    out: Path = Path("benchmarks/results")
    """Folder of the result file."""


def main() -> None:
    """Run all settings, print the bars, write coverage.json."""
    config = tyro.cli(CoverageConfig, description=__doc__)
    points = [
        *(
            known(config, num=num, share=share, confidence=confidence)
            for num, share, confidence in (
                (60, 0.1, 0.9),
                (120, 0.05, 0.95),
                (400, 0.01, 0.95),
                (1000, 0.01, 0.95),
            )
        ),
        *(grouped(config, group=size) for size in (5, 20)),
    ]
    if config.run is not None:
        points += on_run(config, config.run)
    bars = [_bar(point) for point in points]
    for point, bar in zip(points, bars, strict=True):
        print(f"{bar}; picked on validation: {point.number('naive_exceeded'):.3f}")
    print(write_result(make_result("coverage", config, points, bars=bars), config.out, name="coverage.json"))


def proven(scores: NDArray[np.float32], share: float, confidence: float) -> float:
    """Threshold of fixed-sequence testing; 0 (nothing is allowed) when nothing is proven."""
    found = choose(scores, share, confidence, miss=True).threshold
    return 0.0 if found is None else found


def picked(scores: NDArray[np.float32], share: float, _: float) -> float:
    """The usual way: the largest threshold whose share of misses on these images is within the target."""
    missed = np.searchsorted(np.sort(scores), GRID, side="left") / len(scores)
    return float(GRID[np.flatnonzero(missed <= share)[-1]])


def known(config: CoverageConfig, *, num: int, share: float, confidence: float) -> Point:
    """Independent positives with Beta(4, 2) scores."""
    rng = np.random.default_rng([config.seed, num])
    missed: dict[str, list[float]] = {"proven": [], "picked": []}
    for _ in tqdm(range(config.num_draws), f"n = {num}, target {share:.0%}", leave=False):
        scores = rng.beta(4, 2, num).astype(np.float32)
        for name, chooser in _choosers().items():
            missed[name].append(float(beta.cdf(chooser(scores, share, confidence), 4, 2)))
    return _point({"data": "Beta(4, 2)", "num": num}, share, confidence, missed)


def grouped(config: CoverageConfig, *, group: int, share: float = 0.1, confidence: float = 0.9) -> Point:
    """Sixty groups of variants that score alike: one image a group keeps the promise, all images as if independent do not."""
    rng = np.random.default_rng([config.seed, group, 1])
    missed: dict[str, list[float]] = {"proven": [], "picked": []}
    units = [str(index // group) for index in range(60 * group)]
    everyone = np.ones(60 * group, bool)
    for _ in tqdm(range(config.num_draws), f"groups of {group}", leave=False):
        scores = np.repeat(rng.beta(4, 2, 60), group).astype(np.float32)
        single = scores[one_per_unit(units, everyone)]
        missed["proven"].append(float(beta.cdf(proven(single, share, confidence), 4, 2)))
        missed["picked"].append(float(beta.cdf(proven(scores, share, confidence), 4, 2)))
    return _point(
        {"data": "60 groups, images taken for independent", "num": 60 * group}, share, confidence, missed
    )


def on_run(config: CoverageConfig, run: Path, *, share: float = 0.15, confidence: float = 0.9) -> list[Point]:
    """Half of a label's held-out positives choose, the other half is what the truth is measured on."""
    images = load_scores(run)
    scored = [images[name].scored for name in ("policy", "test")]
    scores, truth = (np.concatenate([getattr(each, name) for each in scored]) for name in ("scores", "truth"))
    rng = np.random.default_rng([config.seed, 2])
    points = []
    for column, label in enumerate(scored[0].labels):
        positives = scores[truth[:, column] > 0.5, column]
        missed: dict[str, list[float]] = {"proven": [], "picked": []}
        for _ in tqdm(range(config.num_draws), f"{run.name}: {label}", leave=False):
            order = rng.permutation(positives)
            # The true share is that of all positives: the halves of so few would add their own noise.
            chosen = rng.choice(order, len(order) // 2)
            for name, chooser in _choosers().items():
                missed[name].append(float((positives < chooser(chosen, share, confidence)).mean()))
        settings: dict[str, Scalar] = {"data": f"run {run.name}: {label}", "num": len(positives) // 2}
        points.append(_point(settings, share, confidence, missed))
    return points


def _choosers() -> dict[str, Chooser]:
    return {"proven": proven, "picked": picked}


def _point(
    settings: dict[str, Scalar],
    share: float,
    confidence: float,
    missed: dict[str, list[float]],
) -> Point:
    """Count how often the true share exceeded the target."""
    exceeded = {name: float((np.array(found) > share + 1e-9).mean()) for name, found in missed.items()}
    quantile = float(np.quantile(missed["proven"], confidence))
    return Point(
        settings={**settings, "target": share, "confidence": confidence},
        values={
            "num_draws": len(missed["proven"]),
            "exceeded": exceeded["proven"],
            "naive_exceeded": exceeded["picked"],
            "missed_at_confidence": quantile,
        },
    )


def _bar(point: Point) -> Bar:
    """At most 1 - confidence of the draws, and three standard errors of counting them."""
    allowed = 1.0 - float(point.settings["confidence"] or 0.0)
    room = 3.0 * (allowed * (1.0 - allowed) / point.number("num_draws")) ** 0.5
    name = f"{point.settings['data']}, n = {point.settings['num']}: draws above the target of {point.settings['target']}"
    return Bar(name=name, measured=point.number("exceeded"), limit=round(allowed + room, 4), sense="at_most")


if __name__ == "__main__":
    main()
