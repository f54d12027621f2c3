"""Metrics against scikit-learn, intervals against known spreads, calibration against simulated truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, roc_auc_score

from train import metrics
from train.backbones import build_backbone
from train.calibrate import calibrate
from train.evaluate import Scored, _in_the_world, share, slices
from train.model import ModerationModel
from train.reliability import calibration_error
from train.summary import left_out, percent


def draw(num: int = 300, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scores with ties, and targets that go with them."""
    rng = np.random.default_rng(seed)
    target = (rng.random(num) < 0.2).astype(np.float32)
    scores = np.round(rng.normal(target, 1.0), 1).astype(np.float32)
    return scores, target


def test_metrics_are_scikit_learns() -> None:
    """AUROC and average precision agree with scikit-learn on tied scores, also with weights."""
    scores, target = draw()
    weights = np.stack([np.ones(300), np.random.default_rng(1).integers(0, 4, 300).astype(float)])
    for metric, reference in (
        (metrics.auroc, roc_auc_score),
        (metrics.average_precision, average_precision_score),
    ):
        expected = [reference(target, scores, sample_weight=row) for row in weights]
        np.testing.assert_allclose(metric(scores, target, weights), expected, rtol=1e-9)


def test_metrics_without_both_kinds_are_not_defined() -> None:
    """No positives: NaN, None in JSON, and macro leaves the label out."""
    scores, target = draw()
    ones = np.ones((3, 300))
    assert np.isnan(metrics.auroc(scores, np.zeros(300, np.float32), ones)).all()
    assert metrics.interval(np.full(5, np.nan)) == {"value": None, "low": None, "high": None}
    both = np.stack([target, np.zeros(300, np.float32)], 1)
    macro = metrics.macro(metrics.average_precision, np.stack([scores, scores], 1), both, ones)
    assert macro[0] == pytest.approx(average_precision_score(target, scores))


def test_recall_at_false_positive_rate() -> None:
    """With ten negatives at most one may be flagged at 10 %."""
    scores = np.r_[np.linspace(0.1, 1.0, 10), [0.95, 0.85, 0.05]].astype(np.float32)
    target = np.r_[np.zeros(10), np.ones(3)].astype(np.float32)
    assert metrics.recall_at(0.1)(scores, target, np.ones((1, 13)))[0] == pytest.approx(1 / 3)


def test_intervals_resample_groups() -> None:
    """Ten copies of each image in a group do not make an interval narrower; as images of their own they would."""
    scores, target = draw(120)
    repeated = np.repeat(scores, 10), np.repeat(target, 10)
    groups = [str(index // 10) for index in range(1200)]
    grouped = metrics.interval(metrics.auroc(*repeated, metrics.resampled(groups)))
    single = metrics.interval(metrics.auroc(scores, target, metrics.resampled([str(i) for i in range(120)])))
    naive = metrics.interval(metrics.auroc(*repeated, metrics.resampled([str(i) for i in range(1200)])))

    def width(found: dict[str, float | None]) -> float:
        assert found["high"] is not None
        assert found["low"] is not None
        return found["high"] - found["low"]

    assert width(grouped) == pytest.approx(width(single), rel=0.25)
    assert width(naive) < 0.5 * width(grouped)


def test_calibration_error_takes_chance_off() -> None:
    """Calibrated scores: plain ECE is above zero, the debiased one near it, the test does not object; halved scores: it does."""
    rng = np.random.default_rng(3)
    scores = rng.beta(0.4, 1.6, 400).astype(np.float32)
    truth = (rng.random(400) < scores).astype(np.float32)
    fine = calibration_error(scores, truth)
    assert fine["ece"] > 0.015
    assert fine["ece_debiased"] < 0.015
    assert fine["p_value"] > 0.05
    assert calibration_error(scores**2, truth)["p_value"] < 0.01


def test_calibration_is_judged_by_groups() -> None:
    """Calibrated scores of variants that share their truth: the test by groups objects as rarely as it says, one by images does not.

    Scores twice too sure are still found.
    """
    rng = np.random.default_rng(6)
    share, distance = 0.15, 2.0
    objections = {"by groups": 0, "by images": 0, "too sure": 0}
    for _ in range(100):
        kind = (rng.random(100) < share).astype(np.float64)
        group = np.repeat(np.arange(100), rng.integers(1, 7, 100))
        seen = distance * kind[group] + rng.normal(0.0, 1.0, 100)[group] + rng.normal(0.0, 0.7, len(group))
        logit = np.log(share / (1.0 - share)) + (seen * distance - distance**2 / 2.0) / (1.0 + 0.7**2)
        scores, sure = (1.0 / (1.0 + np.exp(-factor * logit)) for factor in (1.0, 2.0))
        truth, names = kind[group].astype(np.float32), [str(number) for number in group]
        for name, values, each in (
            ("by groups", scores, names),
            ("by images", scores, None),
            ("too sure", sure, names),
        ):
            p_value = calibration_error(values.astype(np.float32), truth, each)["p_value"]
            objections[name] += p_value < 0.05
    assert objections["by groups"] <= 12
    assert objections["by images"] >= 20
    assert objections["too sure"] >= 75


def test_calibration_finds_slope_and_offset() -> None:
    """Logits that were stretched and shifted come back as probabilities that hold; slopes stay positive on noise."""
    rng = np.random.default_rng(4)
    z = rng.normal(-1.0, 2.0, (4000, 2))
    truth = (rng.random(z.shape) < 1.0 / (1.0 + np.exp(-z))).astype(np.float32)
    truth[:, 1] = rng.random(4000) < 0.3
    model = ModerationModel(build_backbone("squeezenet1_1"), num_labels=2)
    calibrate(model, (3.0 * z + 2.0).astype(np.float32), truth)
    assert float(model.scale[0]) == pytest.approx(1 / 3, rel=0.1)
    assert float(model.bias[0]) == pytest.approx(-2 / 3, abs=0.15)
    assert float(model.scale.min()) > 0.0
    scores = model.scores(torch.from_numpy(3.0 * z + 2.0)).numpy()
    assert scores[:, 0].mean() == pytest.approx(truth[:, 0].mean(), abs=0.02)


def test_calibration_takes_the_method_that_is_better_on_held_out_groups() -> None:
    """Logits that were only stretched need no offset, shifted ones do; a label without positives takes their temperature."""
    rng = np.random.default_rng(5)
    z = rng.normal(0.0, 2.0, (600, 3))
    truth = (rng.random(z.shape) < 1.0 / (1.0 + np.exp(-z))).astype(np.float32)
    truth[:, 2] = 0.0
    groups = [str(index // 3) for index in range(600)]
    shifted = (2.0 * z + np.array([0.0, 3.0, 0.0])).astype(np.float32)
    model = ModerationModel(build_backbone("squeezenet1_1"), num_labels=3)
    found = calibrate(model, shifted, truth, groups)
    assert [each["method"] for each in found] == ["temperature", "platt", "shared"]
    assert found[2]["scale"] != 1.0
    assert found[0]["bias"] == 0.0
    assert found[0]["scale"] == pytest.approx(0.5, rel=0.15)


def test_label_of_few_things_takes_the_temperature_of_the_others() -> None:
    """Twenty drawings of two things, one of them scored low, say nothing of a slope; alone, such a label keeps its plain scores."""
    rng = np.random.default_rng(8)
    z = rng.normal(0.0, 2.0, (2000, 2))
    truth = (rng.random(z.shape) < 1.0 / (1.0 + np.exp(-z))).astype(np.float32)
    truth[:, 1], z[:, 1] = 0.0, -5.0
    truth[:20, 1], z[:10, 1], z[10:20, 1] = 1.0, 3.0, -4.0
    groups = [str(index // 10) for index in range(2000)]
    model = ModerationModel(build_backbone("squeezenet1_1"), num_labels=2)
    logits = (2.0 * z).astype(np.float32)
    found = calibrate(model, logits, truth, groups)
    assert [each["method"] for each in found] == ["temperature", "shared"]
    assert found[1]["bias"] == 0.0
    assert found[1]["scale"] == pytest.approx(found[0]["scale"], rel=0.15)
    alone = ModerationModel(build_backbone("squeezenet1_1"), num_labels=1)
    (kept,) = calibrate(alone, logits[:, 1:], truth[:, 1:], groups)
    assert (kept["scale"], kept["bias"]) == (1.0, 0.0)


def test_share_without_errors_has_an_exact_interval() -> None:
    """0 of 40 is not 0 for sure: the interval is Clopper and Pearson's, and counts groups, not images."""
    of, none = np.ones(80, bool), np.zeros(80, bool)
    groups = [str(index // 2) for index in range(80)]
    found = share(none, of, metrics.resampled(groups, num=50), groups)
    exact = binomtest(0, 40).proportion_ci(0.95, method="exact")
    assert found == {"value": 0.0, "low": 0.0, "high": pytest.approx(exact.high)}
    assert metrics.exact(1.0, 40)["low"] == pytest.approx(1.0 - exact.high)


def test_precision_of_nothing_is_not_zero() -> None:
    """A policy that never blocks has no precision of blocking."""
    rates = {
        f"{kind}_{decision}": {"value": float(decision == "allow")}
        for kind in ("harmful", "harmless")
        for decision in ("allow", "review", "block")
    }
    world = _in_the_world(rates, 0.01)
    assert world["block_precision"] is None
    assert percent(world["block_precision"]) == "-"


def test_slices_without_a_figure_are_named() -> None:
    """A value with few images, or of one kind only, stands last with the reason."""
    scores, target = draw(60)
    target[40:] = 0.0
    scored = Scored(
        labels=("x",), scores=scores[:, None], raw=scores[:, None], truth=target[:, None],
        groups=tuple(map(str, range(60))), harmful=np.array([True]),
    )  # fmt: skip
    rows = slices(scored, ["a"] * 35 + ["few"] * 5 + ["harmless"] * 20)
    assert [row["name"] for row in rows] == ["a", "few", "harmless"]
    assert "few (5: fewer than 20 images), harmless (20: all its images are harmless)" in left_out(rows)
