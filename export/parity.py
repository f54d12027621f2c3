"""How far a variant's scores and decisions are from the reference's on real held-out images: figures only, no judgement.

Decisions are counted under the recommended policy and, because a policy that sends everything to review agrees with anything,
at mid-range thresholds on every label as well.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from export.source import Scores, Source, Split
from moderation_client import Decision, Policy, Threshold

MID_THRESHOLDS = (0.25, 0.5, 0.75)
"""At each of these as every label's review threshold, decisions are compared too."""
NUM_WORST = 8


@dataclass(frozen=True, kw_only=True)
class Shift:
    """Distribution of the absolute score difference over all views and labels."""

    mean: float
    p50: float
    p99: float
    max: float
    histogram: tuple[int, ...]
    """Counts in the bins of `SHIFT_BINS`."""


SHIFT_BINS = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)


@dataclass(frozen=True, kw_only=True)
class Worst:
    """One of the images whose score moved most."""

    index: int
    """Image index in the test split."""
    name: str
    label: str
    reference: float
    variant: float


@dataclass(frozen=True, kw_only=True)
class AtBatch:
    """How a variant scores at one batch size."""

    batch: int
    num_views: int
    shift: float
    """Largest difference of any score to the reference's."""
    agreement: float
    """Share of views that this batch size costs no decision, under the policy where that is worst: the decision is the reference's,
    or it is not the reference's at the largest batch either, which is counted there."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Every figure of one variant."""

    num_images: int
    num_views: int
    shift: Shift
    batch_shift: Mapping[str, float]
    """Batch size -> largest score difference to the reference at that batch size."""
    batch_agreement: Mapping[str, float]
    """Batch size -> share of views whose decision is not lost at that batch size (`AtBatch`)."""
    agreement: Mapping[str, float]
    """`under the policy`, `at threshold 0.5`, ... -> share of images with the same decision."""
    disagreements: Mapping[str, int]
    """The same as counts."""
    ap_reference: Mapping[str, float]
    """Label -> average precision of the reference; labels without a positive or without labels are left out."""
    ap_variant: Mapping[str, float]
    worst: tuple[Worst, ...]

    @property
    def ap_drop(self) -> dict[str, float]:
        """Label -> reference's average precision minus the variant's."""
        return {label: value - self.ap_variant[label] for label, value in self.ap_reference.items()}

    @property
    def min_agreement(self) -> float:
        """The smallest share in `agreement`."""
        return min(self.agreement.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**dataclasses.asdict(self), "ap_drop": self.ap_drop, "shift_bins": list(SHIFT_BINS)}


def compare_batch(source: Source, batch: int, reference: Scores, largest: Scores, scores: Scores) -> AtBatch:
    """Compare scores of the same views at one batch size with the reference's and those at the largest; float32 [N, num_labels]."""
    kept = []
    for policy in policies(source).values():
        wanted = decisions(policy, reference)
        kept.append(
            float(((decisions(policy, scores) == wanted) | (decisions(policy, largest) != wanted)).mean())
        )
    shift = float(np.nan_to_num(np.abs(scores - reference), nan=np.inf).max())
    return AtBatch(batch=batch, num_views=len(scores), shift=shift, agreement=min(kept))


def compare(
    source: Source, split: Split, reference: Scores, variant: Scores, at_batch: Sequence[AtBatch]
) -> Parity:
    """Compare scores of views, both float32 [num_views, num_labels]."""
    labels = source.spec.labels
    ours, theirs = split.per_image(variant), split.per_image(reference)
    same = {where: _same(policy, ours, theirs) for where, policy in policies(source).items()}
    ap = [_average_precision(scores, split, labels) for scores in (theirs, ours)]
    return Parity(
        num_images=split.num_images,
        num_views=len(split.pixels),
        shift=_shift(np.abs(variant - reference)),
        batch_shift={str(each.batch): each.shift for each in at_batch},
        batch_agreement={str(each.batch): each.agreement for each in at_batch},
        agreement={where: float(equal.mean()) for where, equal in same.items()},
        disagreements={where: int((~equal).sum()) for where, equal in same.items()},
        ap_reference=ap[0],
        ap_variant=ap[1],
        worst=_worst(ours, theirs, split, labels),
    )


def policies(source: Source) -> dict[str, Policy]:
    """Give what decisions are compared under: the recommended policy, and every label at each mid-range threshold."""
    found = {} if source.policy is None else {"under the policy": source.policy}
    for value in MID_THRESHOLDS:
        thresholds = dict.fromkeys(source.spec.labels, Threshold(review=value))
        found[f"at threshold {value:g}"] = Policy(labels=source.spec.labels, thresholds=thresholds)
    return found


def decisions(policy: Policy, scores: Scores) -> NDArray[np.int64]:
    """Decision of each image as a number; a score that is no probability counts as a decision of its own."""
    found = []
    for row in scores:
        finite = np.isfinite(row).all() and (row >= 0).all() and (row <= 1).all()
        found.append(int(policy.decide(row).decision) if finite else int(max(Decision)) + 1)
    return np.array(found)


def _same(policy: Policy, ours: Scores, theirs: Scores) -> NDArray[np.bool_]:
    return np.asarray(decisions(policy, ours) == decisions(policy, theirs))


def _shift(differences: NDArray[np.float32]) -> Shift:
    flat = np.nan_to_num(differences.astype(float).ravel(), nan=1.0)
    return Shift(
        mean=float(flat.mean()),
        p50=float(np.quantile(flat, 0.5)),
        p99=float(np.quantile(flat, 0.99)),
        max=float(flat.max()),
        histogram=tuple(int(count) for count in np.histogram(flat, SHIFT_BINS)[0]),
    )


def _average_precision(scores: Scores, split: Split, labels: tuple[str, ...]) -> dict[str, float]:
    if split.targets is None:
        return {}
    ranking = np.nan_to_num(scores, nan=0.0)
    found = {}
    for column, label in enumerate(labels):
        truth = split.targets[:, column]
        if truth.any() and not truth.all():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                found[label] = float(average_precision_score(truth, ranking[:, column]))
    return found


def _worst(ours: Scores, theirs: Scores, split: Split, labels: tuple[str, ...]) -> tuple[Worst, ...]:
    moved = np.nan_to_num(np.abs(ours - theirs), nan=np.inf)
    order = np.argsort(-moved.max(axis=1), kind="stable")[:NUM_WORST]
    return tuple(
        Worst(
            index=int(index),
            name=split.names[index],
            label=labels[column],
            reference=float(theirs[index, column]),
            variant=float(ours[index, column]),
        )
        for index in order
        for column in [int(moved[index].argmax())]
    )
