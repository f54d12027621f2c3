"""What the thresholds of all labels together risk on one image, derived from what each label keeps.

A harmful image is missed in some label, or a harmless one blocked for some label, only if one of the labels fails on it: the chance
of that is at most the sum of the labels' shares (union bound), and it holds unless one of the proofs fails, which is at most the
sum of their error probabilities (Bonferroni). It needs no independence, and is loose; what the test split shows is put beside it, with
an exact bound over one image a unit. A label that is never decided automatically risks nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moderation_client.policy import Decision, Policy
from train.evaluate import Scored, decide
from train.thresholds import one_per_unit, upper_bound

LEVEL = 0.95
"""Confidence of the bound on the test split."""


def image_risk(policy: Policy, test: Scored, units: Sequence[str]) -> dict[str, Any]:
    """JSON-ready risks of an image: `missed` of harmful ones, `false_block` of harmless ones."""
    unsafe = test.unsafe > 0.5
    wrong = {
        "missed": (_any_missed(policy, test), unsafe),
        "false_block": (decide(test.scores, policy) == Decision.BLOCK, ~unsafe),
    }
    found = {}
    for kind, (error, of) in wrong.items():
        chosen = one_per_unit(units, of)
        errors = int(error[chosen].sum())
        found[kind] = {
            **derived(policy, kind),
            "test_num_examples": len(chosen),
            "test_num_errors": errors,
            "test_upper_bound": upper_bound(errors, len(chosen), LEVEL) if len(chosen) else None,
            "test_confidence": LEVEL,
        }
    return found


def _any_missed(policy: Policy, test: Scored) -> NDArray[np.bool_]:
    """Whether an image shows a label whose score is below where review begins, [num_images]."""
    columns = np.flatnonzero(test.harmful)
    review = np.array([policy.thresholds[test.labels[column]].review for column in columns])
    missed = (test.truth[:, columns] > 0.5) & (test.scores[:, columns] < review)
    return np.asarray(missed.any(1))


def derived(policy: Policy, kind: str) -> dict[str, float]:
    """Bound of an image's risk and the confidence it holds with, out of the labels' evidence."""
    rows = [(each.evidence.get(kind, {}), each.evidence) for each in policy.thresholds.values()]
    proven = [(row["target"], 1.0 - evidence["confidence"]) for row, evidence in rows if row.get("proven")]
    shares, failures = np.array(proven).reshape(-1, 2).sum(0)
    return {"bound": min(1.0, float(shares)), "confidence": max(0.0, 1.0 - float(failures))}


def risk_lines(risk: dict[str, Any]) -> list[str]:
    """Sentences on an image's risk."""
    words = {
        "missed": "of harmful images are missed in any label",
        "false_block": "of harmless images are blocked for any label",
    }
    return [_line(risk[kind], what) for kind, what in words.items() if kind in risk]


def _line(found: dict[str, Any], what: str) -> str:
    if found["confidence"] > 0.0 and found["bound"] < 1.0:
        bound = f"at most {found['bound']:.1%} {what}, with {found['confidence']:.0%} confidence (sum over the labels)"
    else:
        bound = f"the labels' bounds together prove nothing on what share {what}"
    if found["test_upper_bound"] is None:
        return bound
    return (
        f"{bound}; on the test split {found['test_num_errors']} of {found['test_num_examples']}, so at most "
        f"{found['test_upper_bound']:.1%} with {found['test_confidence']:.0%} confidence"
    )
