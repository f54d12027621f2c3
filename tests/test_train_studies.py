"""The studies of training: what the coverage bars ask for, and the paired gain over another run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.coverage import CoverageConfig, _bar, _naive_bar, _units, halves, known
from benchmarks.scratch import gain
from train.errors import RunError
from train.evaluate import Scored
from train.record import ScoredImages
from train.targets import Targets


def images(num: int = 60) -> ScoredImages:
    """One label, two images a group, scores that tell the truth."""
    truth = (np.arange(num)[:, None] % 3 == 0).astype(np.float32)
    scores = (0.1 + 0.7 * truth + np.arange(num)[:, None] / 1000).astype(np.float32)
    groups = tuple(str(index // 2) for index in range(num))
    scored = Scored(
        labels=("a",), scores=scores, raw=scores, truth=truth, groups=groups, harmful=np.ones(1, bool)
    )
    paths = tuple(Path(f"{index}.png") for index in range(num))
    return ScoredImages(scored=scored, paths=paths, shown=("",) * num, sources=("x", "y") * (num // 2))


def test_naive_choice_is_asked_to_fail() -> None:
    """On a known distribution the proof meets its bar, and the usual way exceeds the target more often than stated."""
    point = known(CoverageConfig(num_draws=150), num=60, share=0.1, confidence=0.9)
    assert _bar(point).met
    assert _naive_bar(point).met
    assert _naive_bar(point).sense == "at_least"


def test_halves_know_the_noise_of_a_small_truth() -> None:
    """Twelve images as the truth exceed any target now and then: what even scores do is the bar."""
    positives = np.random.default_rng(0).beta(4, 2, 40).astype(np.float32)
    point = halves(CoverageConfig(num_draws=100), positives, "run", 0.25, 0.9)
    assert point.settings["num"] == 20
    assert _bar(point).met
    assert _units(images(4), Targets(independent="source")) == ["0/x", "0/y", "1/x", "1/y"]
    assert _units(images(4), Targets()) == ["0", "0", "1", "1"]


@pytest.mark.parametrize("figure", ["auroc", "macro_ap"])
def test_gain_is_paired_by_path(figure: str) -> None:
    """The same scores in another order gain nothing; worse ones lose; other images are refused."""
    ours = images()
    turned = replace(
        ours,
        paths=ours.paths[::-1],
        scored=replace(ours.scored, scores=ours.scored.scores[::-1]),
    )
    assert gain(ours, turned, figure) == {"value": 0.0, "low": 0.0, "high": 0.0}
    worse = replace(ours, scored=replace(ours.scored, scores=1.0 - ours.scored.scores))
    assert (gain(ours, worse, figure)["low"] or 0.0) > 0.0
    with pytest.raises(RunError, match="judged on different images"):
        gain(ours, images(40), figure)
