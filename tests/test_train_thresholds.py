"""Thresholds from targets: exact bounds, and a guarantee that holds over many drawn policy splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest

from moderation_client.policy import Policy, Threshold
from train.errors import TrainError
from train.evaluate import Scored
from train.image_risk import derived, image_risk, risk_lines
from train.summary import evidence_lines
from train.targets import Target, Targets, read_targets
from train.thresholds import choose, examples_needed, make_policy, one_per_unit, upper_bound


def test_needed_examples_are_the_known_ones() -> None:
    """1 % at 95 % needs 299 positives without a miss, 10 % at 90 % needs 22."""
    assert examples_needed(0.01, 0.95) == 299
    assert examples_needed(0.10, 0.90) == 22


@pytest.mark.parametrize(("errors", "num"), [(0, 10), (1, 30), (7, 50), (50, 50)])
def test_upper_bound_is_clopper_pearsons(errors: int, num: int) -> None:
    """The bound is SciPy's exact one-sided one."""
    exact = binomtest(errors, num, alternative="less").proportion_ci(0.95, method="exact").high
    assert upper_bound(errors, num, 0.95) == pytest.approx(exact)


def test_choice_keeps_as_many_errors_as_the_bound_allows() -> None:
    """With 22 positives none may fall below the threshold, with 38 one may; with 21 nothing is proven."""
    rng = np.random.default_rng(0)
    for num, errors in ((22, 0), (38, 1), (52, 2)):
        scores = rng.uniform(0.1, 0.9, num).astype(np.float32)
        found = choose(scores, 0.10, 0.90, miss=True)
        assert found.threshold is not None
        assert found.num_errors == errors == int((scores < found.threshold).sum())
        assert found.bound is not None
        assert found.bound <= 0.10
    few = choose(rng.uniform(0.1, 0.9, 21).astype(np.float32), 0.10, 0.90, miss=True)
    assert few.threshold is None
    assert few.num_needed == 22


@pytest.mark.parametrize("miss", [True, False])
def test_guarantee_holds_over_drawn_splits(miss: bool) -> None:
    """The true error share exceeds the target in at most the stated share of draws (with room for 2,000 draws' noise)."""
    rng = np.random.default_rng(1)
    exceeded = 0
    for _ in range(2000):
        scores = rng.beta(4, 2, 60).astype(np.float32)
        found = choose(scores if miss else 1.0 - scores, 0.10, 0.90, miss=miss)
        assert found.threshold is not None
        edge = found.threshold if miss else 1.0 - found.threshold
        # Beta(4, 2): P(score < edge) = 5 edge^4 - 4 edge^5
        exceeded += 5 * edge**4 - 4 * edge**5 > 0.10
    assert exceeded / 2000 <= 0.10 + 3 * np.sqrt(0.1 * 0.9 / 2000)


def test_one_image_of_each_unit_is_drawn_without_scores() -> None:
    """Each unit among the candidates gives exactly one image, always the same."""
    units = ["a", "a", "b", "c", "c", "c"]
    candidates = np.array([True, True, False, True, True, True])
    first = one_per_unit(units, candidates)
    assert {units[index] for index in first} == {"a", "c"}
    assert len(first) == 2
    np.testing.assert_array_equal(first, one_per_unit(units, candidates))


def make(num: int, *, independent: bool = True) -> tuple[NDArray[np.float32], NDArray[np.float32], list[str]]:
    """Scores that separate well, truth, and units."""
    rng = np.random.default_rng(2)
    truth = np.zeros((2 * num, 1), np.float32)
    truth[:num] = 1.0
    scores = np.where(truth > 0.5, rng.beta(8, 2, truth.shape), rng.beta(2, 8, truth.shape)).astype(
        np.float32
    )
    units = [f"{index if independent else index % 5}" for index in range(2 * num)]
    return scores, truth, units


def test_policy_proves_or_does_not_decide() -> None:
    """Enough independent examples give both thresholds; the same images in five groups prove nothing."""
    targets = Targets(default=Target(missed=0.05, false_block=0.02, confidence=0.9))
    scores, truth, units = make(300)
    threshold = make_policy(scores, truth, units, ("star",), targets).thresholds["star"]
    assert 0.0 < threshold.review < (threshold.block or 0.0)
    assert threshold.evidence["missed"]["proven"]
    scores, truth, units = make(300, independent=False)
    undecided = make_policy(scores, truth, units, ("star",), targets).thresholds["star"]
    assert (undecided.review, undecided.block) == (0.0, None)
    assert undecided.evidence["missed"]["num_needed_without_error"] == 45
    assert undecided.evidence["missed"]["num_examples"] == 5


def test_separable_scores_leave_no_review_band() -> None:
    """Where both ranges of proven thresholds overlap, one threshold in between decides everything."""
    targets = Targets(default=Target(missed=0.1, false_block=0.1, confidence=0.9))
    truth = np.r_[np.ones(40), np.zeros(40)].astype(np.float32)[:, None]
    scores = np.where(truth > 0.5, 0.95, 0.05).astype(np.float32)
    threshold = make_policy(scores, truth, [str(i) for i in range(80)], ("star",), targets).thresholds["star"]
    assert threshold.block == threshold.review
    assert 0.05 < threshold.review < 0.95


def test_targets_file_is_checked(tmp_path: Path) -> None:
    """Labels override the default; unknown keys, labels and values are named."""
    path = tmp_path / "targets.toml"
    path.write_text("[default]\nmissed = 0.2\n[star]\nconfidence = 0.5\n[world]\nprevalence = 0.001\n")
    found = read_targets(path, ("star", "circle"))
    assert found.of("circle") == Target(missed=0.2)
    assert found.of("star") == Target(missed=0.2, confidence=0.5)
    assert found.prevalence == 0.001
    for text, message in (
        ("[moon]\nmissed = 0.1\n", "name moon; the labels are star, circle"),
        ("[star]\nmissed = 2.0\n", r"\[star\]: target missed must be between 0 and 1, got 2.0"),
        ("[star]\nmised = 0.1\n", r"\[star\] may hold confidence, false_block, missed"),
        ("[world]\nindependent = 'image'\n", "must be group or source, got 'image'"),
        ("[world]\nwords = ['drawings']\n", "must be two words"),
        ("star", "cannot be read"),
    ):
        path.write_text(text)
        with pytest.raises(TrainError, match=message):
            read_targets(path, ("star", "circle"))


def test_evidence_says_what_it_is_made_of() -> None:
    """Sources within groups: the sentence counts both and says that new groups are not covered; groups need no such words."""
    scores, truth, units = make(100)
    groups = [f"g{index % 4}" for index in range(200)]
    target = Target(missed=0.1, false_block=0.1, confidence=0.9)
    fine = Targets(default=target, independent="source", words=("drawings", "objects"))
    policy = make_policy(scores, truth, units, ("star",), fine, groups=groups)
    line, _ = evidence_lines("star", policy.thresholds["star"])
    assert line.endswith(
        "on 100 drawings of 4 objects; holds for new drawings of such objects, not for new objects"
    )
    plain = make_policy(scores, truth, units, ("star",), Targets(default=target))
    line, _ = evidence_lines("star", plain.thresholds["star"])
    assert line.endswith("with 90% confidence on 100 groups, one of the images of each")
    old = Threshold(review=0.1, block=None, evidence={"confidence": 0.9, "missed": dict(OLD)})
    assert "on 22 independent examples" in evidence_lines("star", old)[0]


OLD = {"target": 0.1, "proven": True, "num_examples": 22, "num_needed_without_error": 22}


def test_image_level_risk_is_the_sum_of_the_labels() -> None:
    """Two labels at 4 % and 97 % confidence: 8 % and 94 % for any of them; one that decides nothing adds nothing."""
    evidence = {"confidence": 0.97, "missed": {"target": 0.04, "proven": True}}
    undecided = {"confidence": 0.5, "missed": {"target": 0.9, "proven": False}}
    chosen = {"a": evidence, "b": evidence, "c": undecided}
    thresholds = {key: Threshold(review=0.5, block=None, evidence=value) for key, value in chosen.items()}
    policy = Policy(labels=("a", "b", "c"), thresholds=thresholds)
    found = derived(policy, "missed")
    assert found == {"bound": pytest.approx(0.08), "confidence": pytest.approx(0.94)}
    assert derived(policy, "false_block") == {"bound": 0.0, "confidence": 1.0}
    risk = {
        **found,
        "test_num_examples": 59,
        "test_num_errors": 0,
        "test_upper_bound": 0.05,
        "test_confidence": 0.95,
    }
    (line,) = risk_lines({"missed": risk})
    assert line.startswith("at most 8.0% of harmful images are missed in any label, with 94% confidence")
    assert line.endswith("on the test split 0 of 59, so at most 5.0% with 95% confidence")


def test_image_level_risk_is_measured_on_one_image_a_unit() -> None:
    """An image counts as missed when any label it shows is below its review threshold, though another one is not."""
    truth = np.array([[1, 1], [1, 0], [0, 0], [0, 0]], np.float32)
    scores = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.1], [0.95, 0.1]], np.float32)
    thresholds = {name: Threshold(review=0.5, block=0.92) for name in ("a", "b")}
    scored = Scored(
        labels=("a", "b"), scores=scores, raw=scores, truth=truth, groups=("0", "1", "2", "3"), harmful=np.ones(2, bool)
    )  # fmt: skip
    found = image_risk(Policy(labels=("a", "b"), thresholds=thresholds), scored, scored.groups)
    assert (found["missed"]["test_num_errors"], found["missed"]["test_num_examples"]) == (1, 2)
    assert (found["false_block"]["test_num_errors"], found["false_block"]["test_num_examples"]) == (1, 2)
