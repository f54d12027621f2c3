"""Scores become decisions in one place, and never the wrong way round."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moderation_client import Decision, Policy, PolicyError, Threshold

LABELS = ("weapon", "substance", "neutral")
POLICY = Policy(
    labels=LABELS,
    thresholds={
        "weapon": Threshold(review=0.3, block=0.9, evidence={"num_positives": 120}),
        "substance": Threshold(review=0.5),
    },
)


@pytest.mark.parametrize(
    ("scores", "decision", "label", "threshold"),
    [
        ((0.0, 0.0, 1.0), Decision.ALLOW, "weapon", 0.3),
        ((0.3, 0.0, 0.0), Decision.REVIEW, "weapon", 0.3),
        ((0.9, 1.0, 0.0), Decision.BLOCK, "weapon", 0.9),
        ((0.0, 1.0, 0.0), Decision.REVIEW, "substance", 0.5),
        ((0.31, 0.9, 0.0), Decision.REVIEW, "substance", 0.5),
    ],
)
def test_worst_label_wins(
    scores: tuple[float, ...], decision: Decision, label: str, threshold: float
) -> None:
    """The strictest decision is taken, and the label that led to it is named."""
    outcome = POLICY.decide(scores)
    assert (outcome.decision, outcome.label, outcome.threshold) == (decision, label, threshold)


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.integers(0, 2), st.floats(0, 1))
def test_higher_score_is_never_more_lenient(scores: list[float], index: int, higher: float) -> None:
    """Raising one score cannot turn a decision milder."""
    raised = list(scores)
    raised[index] = max(scores[index], higher)
    assert POLICY.decide(raised).decision >= POLICY.decide(scores).decision


@pytest.mark.parametrize("bad", [float("nan"), -0.1, 1.1, float("inf")])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_score_that_is_no_probability_is_refused(bad: float, index: int) -> None:
    """A broken score must not pass as harmless, whichever label it belongs to."""
    scores = [0.1, 0.1, 0.1]
    scores[index] = bad
    with pytest.raises(PolicyError, match=LABELS[index]):
        POLICY.decide(scores)


def test_wrong_number_of_scores_is_refused() -> None:
    """Two scores cannot be read with three labels."""
    with pytest.raises(PolicyError, match="needs 3 scores, got 2"):
        POLICY.decide([0.1, 0.2])


def test_policy_survives_json(tmp_path: Path) -> None:
    """Thresholds, evidence and version come back from a file."""
    path = tmp_path / "policy.json"
    path.write_text(POLICY.to_json(indent=2))
    assert (Policy.load(path), Policy.load(path).version) == (POLICY, POLICY.version)


def test_version_follows_the_thresholds_only() -> None:
    """A changed threshold is another version; a changed name is not."""
    stricter = dataclasses.replace(
        POLICY, thresholds={**POLICY.thresholds, "substance": Threshold(review=0.4)}
    )
    renamed = dataclasses.replace(POLICY, name="minors")
    assert (stricter.version != POLICY.version, renamed.version == POLICY.version) == (True, True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"thresholds": {}}, "allow everything"),
        ({"thresholds": {"nudity": {"review": 0.1}}}, "nudity"),
        ({"thresholds": {"weapon": {"review": 0.9, "block": 0.1}}}, "block threshold"),
        ({"thresholds": {"weapon": {"review": 2}}}, "review threshold"),
        ({"thresholds": {"weapon": {"revue": 0.1}}}, "revue"),
        ({"labels": ["weapon", "substance"]}, "labels_sha256"),
        ({"schema_version": 9}, "schema_version 9"),
    ],
)
def test_edited_policy_is_refused_with_the_reason(
    change: dict[str, object], words: str, tmp_path: Path
) -> None:
    """A mistake in the file names the file and the value."""
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({**json.loads(POLICY.to_json()), **change}))
    with pytest.raises(PolicyError, match=words) as caught:
        Policy.load(path)
    assert str(path) in str(caught.value)


def test_missing_file_is_a_policy_error(tmp_path: Path) -> None:
    """No file, no decision."""
    with pytest.raises(PolicyError, match="No such file"):
        Policy.load(tmp_path / "absent.json")


def test_policy_of_other_labels_is_refused() -> None:
    """Thresholds are never applied to another model's scores."""
    with pytest.raises(PolicyError, match="give a policy made for this model"):
        POLICY.check_labels(("weapon", "substance"))
