"""Whether the thresholds keep their promise: how often the true error share exceeds the target, over many drawn policy splits.

From known distributions, where the true share is computed, and on a run's own held-out scores, split in two again and again: one half
chooses, the other is the truth. So small a truth has noise of its own; what it alone gives is drawn beside it, from even scores.
Beside it the usual way, "take the threshold that keeps the target on the validation images", which must be seen to fail.
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
from train.config import PRESETS
from train.record import ScoredImages, load_scores
from train.targets import Targets, read_targets
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
    bars += [_naive_bar(point) for point in points if point.settings["kind"] == "known"]
    for bar in bars:
        print(bar)
    for point in points:
        print(f"{point.settings['data']}: picked on validation {point.number('naive_exceeded'):.3f}")
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
    return _point({"kind": "known", "data": "Beta(4, 2)", "num": num}, share, confidence, missed)


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
    settings: dict[str, Scalar] = {
        "kind": "known",
        "data": f"60 groups of {group} that score alike",
        "num": 60,
    }
    return _point(settings, share, confidence, missed)


def on_run(config: CoverageConfig, run: Path) -> list[Point]:
    """Each label's held-out positives, one image a unit of the demo's targets: half of the units choose, the others are the truth."""
    images = load_scores(run)
    both = [images[name] for name in ("policy", "test")]
    labels = both[0].scored.labels
    targets = read_targets(PRESETS["demo"].targets, labels)
    scores, truth = (
        np.concatenate([getattr(each.scored, name) for each in both]) for name in ("scores", "truth")
    )
    units = [unit for each in both for unit in _units(each, targets)]
    points = []
    for column in np.flatnonzero(both[0].scored.harmful):
        target = targets.of(labels[column])
        shows = one_per_unit(units, truth[:, column] > 0.5)
        name = f"run {run.name}: {labels[column]}"
        points.append(halves(config, scores[shows, column], name, target.missed, target.confidence))
    return points


def _units(images: ScoredImages, targets: Targets) -> list[str]:
    groups = images.scored.groups
    if targets.independent == "group":
        return list(groups)
    return [f"{group}/{source}" for group, source in zip(groups, images.sources, strict=True)]


def halves(
    config: CoverageConfig, positives: NDArray[np.float32], name: str, share: float, confidence: float
) -> Point:
    """Independent scores, shuffled and cut in two; and even scores, as many, cut the same way."""
    rng = np.random.default_rng([config.seed, 2])
    missed: dict[str, list[float]] = {"proven": [], "picked": [], "even": []}
    half = len(positives) // 2
    for _ in tqdm(range(config.num_draws), name, leave=False):
        for kind, scores in (
            ("real", rng.permutation(positives)),
            ("even", rng.random(len(positives)).astype(np.float32)),
        ):
            pool, true = scores[:half], scores[half:]
            for word, chooser in _choosers().items() if kind == "real" else (("even", proven),):
                missed[word].append(float((true < chooser(pool, share, confidence)).mean()))
    settings: dict[str, Scalar] = {"kind": "run", "data": name, "num": half}
    return _point(settings, share, confidence, missed)


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
    # What a truth of a few images exceeds by its own noise; a computed truth has none.
    allowed = exceeded.get("even", 1.0 - confidence)
    quantile = float(np.quantile(missed["proven"], confidence))
    return Point(
        settings={**settings, "target": share, "confidence": confidence},
        values={
            "num_draws": len(missed["proven"]),
            "exceeded": exceeded["proven"],
            "allowed": allowed,
            "naive_exceeded": exceeded["picked"],
            "missed_at_confidence": quantile,
        },
    )


def _limit(point: Point) -> float:
    """The stated share of the draws, and three standard errors of counting them (of both counts, where both were drawn)."""
    allowed = point.number("allowed")
    counts = 1.0 if point.settings["kind"] == "known" else 2.0
    room = 3.0 * (counts * allowed * (1.0 - allowed) / point.number("num_draws")) ** 0.5
    return round(float(allowed + room), 4)


def _name(point: Point) -> str:
    return f"{point.settings['data']}, n = {point.settings['num']}: draws above the target of {point.settings['target']}"


def _bar(point: Point) -> Bar:
    return Bar(name=_name(point), measured=point.number("exceeded"), limit=_limit(point), sense="at_most")


def _naive_bar(point: Point) -> Bar:
    """The usual way exceeds the target more often than stated; if it did not, the proofs would not be worth their price."""
    return Bar(
        name=f"{_name(point)}, the usual way",
        measured=point.number("naive_exceeded"),
        limit=_limit(point),
        sense="at_least",
    )


if __name__ == "__main__":
    main()
