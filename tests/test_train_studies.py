"""The studies of training: what the coverage bars ask for, and the paired gain over another run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import cross_validation
from benchmarks.coverage import CoverageConfig, _bar, _naive_bar, _units, halves, known
from benchmarks.scratch import gain
from train.data import Example, read_manifest
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


def examples(num: int = 180) -> list[Example]:
    """Two images a group, every third group of label a, every fifth of b; one artist for evaluation only."""
    found = []
    for index in range(num):
        group = index // 2
        labels = tuple(label for label, step in (("a", 3), ("b", 5)) if group % step == 0)
        split = "unseen" if index >= num - 4 else "train"
        path = Path(f"/pictures/{index}.png")
        found.append(Example(path=path, labels=labels, group=str(group), split=split, columns={"kind": "k"}))
    return found


def test_every_object_is_judged_once_and_never_learnt_from_then(tmp_path: Path) -> None:
    """Over the folds each image is in one test split; no group straddles; each label is in each fold; the unseen stay unseen."""
    images, judged = examples(), []
    seats = cross_validation.deal(images, 5, seed=0)
    for fold in range(5):
        path = tmp_path / f"{fold}.csv"
        cross_validation.write_manifest(path, images, cross_validation.splits(images, seats, fold, 5))
        found = read_manifest(path)
        assert [each.path for each in found] == [each.path for each in images]
        assert {each.split for each in found} == {
            "train",
            "early_stop",
            "calibration",
            "policy",
            "test",
            "unseen",
        }
        assert len({(each.group, each.split) for each in found}) == len({each.group for each in found})
        judged += [each for each in found if each.split == "test"]
        assert {label for each in found if each.split == "test" for label in each.labels} == {"a", "b"}
    assert sorted(int(each.path.stem) for each in judged) == list(range(176))
    assert all(each.columns == {"kind": "k"} for each in judged)


def test_folds_are_judged_together() -> None:
    """Scores that rank well in each fold but not across them are worth less together, and groups keep their images."""
    high, low = images(30).scored, images(30).scored
    low = replace(low, scores=low.scores / 10, groups=tuple(f"other {group}" for group in low.groups))
    together = cross_validation.together([high, low])
    assert (len(together.scores), len(set(together.groups))) == (60, 30)
    point = cross_validation._point("all", together)
    assert point.number("auroc_value") < cross_validation._point(0, high).number("auroc_value") == 1.0
    fold = cross_validation._point(0, high, {"frozen_macro_ap_gain_low": -0.1})
    bars = cross_validation.bars_of([fold, cross_validation._point("all", high)])
    assert [bar.met for bar in bars] == [False, True, True]
    with pytest.raises(ValueError, match="num_folds must be 3 or more"):
        cross_validation.CrossValidationConfig(num_folds=2)
