"""A policy from targets: thresholds whose error rates hold with a stated confidence in finite samples.

Every threshold on a grid that was fixed beforehand is a hypothesis "its error share is above the target". They are tested from the
safest on, in order, by the exact binomial tail, until the first that cannot be refuted (fixed-sequence testing): the last refuted one
is taken, and the chance that its true error share is above the target is at most 1 - confidence although it was chosen among many.
"Learn then Test", Angelopoulos et al., 2021, https://arxiv.org/abs/2110.01052; the tail is Clopper and Pearson's, 1934.

One image a unit (a group, say) is used, drawn by a hash, since variants of one object are not independent evidence.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom

from moderation_client.policy import Policy, Threshold
from train.targets import Target, Targets

GRID: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-np.linspace(-9.0, 9.0, 3601)))
"""Thresholds that are tried, even in the logit; fixed, so that choosing among them is covered by the test."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What one test found."""

    threshold: float | None
    """The threshold taken; None when the data refute nothing."""
    num_examples: int
    """Independent examples it rests on."""
    num_errors: int
    """Errors among them at the threshold taken."""
    bound: float | None
    """Clopper-Pearson upper bound of the error share at the threshold taken."""
    num_needed: int
    """Examples that would suffice if none were an error."""


def examples_needed(share: float, confidence: float) -> int:
    """Count how many examples without an error prove that at most `share` are errors, with `confidence`."""
    return math.ceil(math.log(1.0 - confidence) / math.log(1.0 - share))


def upper_bound(num_errors: int, num_examples: int, confidence: float) -> float:
    """Bound the true share of errors from above, exactly (Clopper and Pearson, one-sided)."""
    if num_errors >= num_examples:
        return 1.0
    return float(beta.ppf(confidence, num_errors + 1, num_examples - num_errors))


def choose(scores: NDArray[np.float32], share: float, confidence: float, *, miss: bool) -> Choice:
    """Find the last threshold, from the safest on, whose error share is provably at most `share`.

    With `miss`, `scores` are of true positives and an error is a score below the threshold: safe thresholds are low. Otherwise
    they are of harmless images, an error is a score at or above it, and safe thresholds are high.
    """
    num = len(scores)
    ordered = np.sort(scores.astype(np.float64))
    below = np.searchsorted(ordered, GRID, side="left")
    errors = below if miss else (num - below)[::-1]
    refuted = binom.cdf(errors, num, share) <= 1.0 - confidence if num else np.zeros(len(GRID), bool)
    passed = int(np.argmin(refuted)) if not refuted.all() else len(GRID)
    needed = examples_needed(share, confidence)
    if not passed:
        return Choice(threshold=None, num_examples=num, num_errors=0, bound=None, num_needed=needed)
    grid = GRID if miss else GRID[::-1]
    found = int(errors[passed - 1])
    bound = upper_bound(found, num, confidence)
    return Choice(
        threshold=float(grid[passed - 1]), num_examples=num, num_errors=found, bound=bound, num_needed=needed
    )


def one_per_unit(units: Sequence[str], candidates: NDArray[np.bool_], seed: int = 0) -> NDArray[np.int64]:
    """Index of one image of each unit among the candidates, drawn by a hash that knows nothing of the scores."""
    chosen: dict[str, tuple[bytes, int]] = {}
    for index in np.flatnonzero(candidates):
        rank = hashlib.sha256(f"{seed}/{units[index]}/{index}".encode()).digest()
        if units[index] not in chosen or rank < chosen[units[index]][0]:
            chosen[units[index]] = (rank, int(index))
    return np.array(sorted(index for _, index in chosen.values()), np.int64)


def make_policy(
    scores: NDArray[np.float32],
    truth: NDArray[np.float32],
    units: Sequence[str],
    labels: tuple[str, ...],
    targets: Targets,
    *,
    name: str = "default",
    exempt: frozenset[str] = frozenset(),
    groups: Sequence[str] | None = None,
) -> Policy:
    """Choose all thresholds from the policy split: scores and truth [num_images, num_labels].

    `units` says which images are one piece of evidence; `groups`, where units are finer than groups, what they are pieces of. Labels
    in `exempt` (a `neutral` class) get none. A label whose data prove nothing is not decided automatically.
    """
    harmful = np.array([label not in exempt for label in labels])
    of, harmless = np.asarray(units if groups is None else groups), truth[:, harmful].sum(1) == 0
    clean = one_per_unit(units, harmless)
    thresholds = {}
    for column, label in enumerate(labels):
        if label in exempt:
            continue
        target = targets.of(label)
        shows = one_per_unit(units, truth[:, column] > 0.5)
        missed = choose(scores[shows, column], target.missed, target.confidence, miss=True)
        blocked = choose(scores[clean, column], target.false_block, target.confidence, miss=False)
        counted = {"missed": len(set(of[shows])), "false_block": len(set(of[clean]))}
        thresholds[label] = _threshold(target, targets, missed, blocked, counted)
    return Policy(labels=labels, thresholds=thresholds, name=name)


def _threshold(
    target: Target, targets: Targets, missed: Choice, blocked: Choice, num_groups: Mapping[str, int]
) -> Threshold:
    """Put the two choices together; both stay proven when review falls and when block rises."""
    review, block = missed.threshold, blocked.threshold
    if review is not None and block is not None and block < review:
        review = block = _middle(block, review)  # the two ranges overlap: nothing needs a person's look
    evidence: dict[str, Any] = {
        "method": "fixed-sequence testing with exact binomial tails, one image a unit, on the policy split",
        "unit": targets.independent,
        "words": list(targets.words),
        "confidence": target.confidence,
        **{
            kind: {"target": share, "num_groups": num_groups[kind], **_evidence(choice)}
            for kind, share, choice in (
                ("missed", target.missed, missed),
                ("false_block", target.false_block, blocked),
            )
        },
    }
    return Threshold(review=0.0 if review is None else review, block=block, evidence=evidence)


def _middle(low: float, high: float) -> float:
    logit = sum(math.log(value / (1.0 - value)) for value in (low, high)) / 2.0
    return 1.0 / (1.0 + math.exp(-logit))


def _evidence(choice: Choice) -> dict[str, Any]:
    return {
        "proven": choice.threshold is not None,
        "num_examples": choice.num_examples,
        "num_errors": choice.num_errors,
        "upper_bound": choice.bound,
        "num_needed_without_error": choice.num_needed,
    }
