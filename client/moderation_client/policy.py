"""Thresholds as an artefact of their own: what scores mean, apart from the model that gives them.

A `Policy` binds per label a `review` and a `block` threshold to a label list, with the evidence they were chosen from and a
version that is the hash of its content. `Policy.decide` is the only place in the product where a score becomes a decision.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moderation_client._errors import ContractError, PolicyError
from moderation_client.contract import _json_object, labels_sha256

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

POLICY_SCHEMA_VERSION = 1


class Decision(enum.IntEnum):
    """What to do with an image; ordered, so that `max` picks the worst."""

    ALLOW = 0
    REVIEW = 1
    BLOCK = 2

    def __str__(self) -> str:
        """`allow`, `review` or `block`: the word used in JSON and on the command line."""
        return self.name.lower()

    @classmethod
    def parse(cls, word: str) -> Decision:
        """Read the word that `str` gives. Raises ValueError that names the three words."""
        try:
            return cls[word.upper()]
        except KeyError as error:
            raise ValueError(f"decision {word!r} is not one of allow, review, block") from error


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Where one label turns: a score at or above `review` goes to a person, at or above `block` is blocked."""

    review: float
    """Lowest score that is not allowed automatically, 0..1; 0 means nothing is allowed automatically."""
    block: float | None = None
    """Lowest score that is blocked automatically, at least `review`; None means never automatically."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """What the two were chosen from: target, confidence, number of examples, bounds."""

    def __post_init__(self) -> None:
        """Check the values. Raises PolicyError."""
        if not 0.0 <= self.review <= 1.0:
            raise PolicyError(f"review threshold must be 0..1, got {self.review!r}")
        if self.block is not None and not self.review <= self.block <= 1.0:
            raise PolicyError(
                f"block threshold must be between review ({self.review}) and 1, got {self.block!r}"
            )

    def decide(self, score: float) -> tuple[Decision, float]:
        """Decision for one score, and the threshold it was measured against."""
        if self.block is not None and score >= self.block:
            return Decision.BLOCK, self.block
        return (Decision.REVIEW if score >= self.review else Decision.ALLOW), self.review


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A decision with its reason: the label that led to it, its score, the threshold, and how far apart they are."""

    decision: Decision
    label: str
    score: float
    threshold: float

    @property
    def margin(self) -> float:
        """Score minus threshold: negative when allowed."""
        return self.score - self.threshold


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Per label two thresholds, for one list of labels.

    Labels without a threshold are not moderated (a `neutral` class, say). At least one label must have one.
    """

    labels: tuple[str, ...]
    """The model's labels, in output order."""
    thresholds: Mapping[str, Threshold]
    """Label -> its two thresholds."""
    name: str = "default"
    """What the platform calls it: a surface, a region, an age group."""

    def __post_init__(self) -> None:
        """Check that every threshold has its label. Raises PolicyError."""
        unknown = sorted(set(self.thresholds) - set(self.labels))
        if unknown:
            raise PolicyError(
                f"policy {self.name!r} has thresholds for {', '.join(unknown)}; the labels are {', '.join(self.labels)}"
            )
        if not self.thresholds:
            raise PolicyError(f"policy {self.name!r} has no thresholds: it would allow everything")

    @property
    def version(self) -> str:
        """First 12 hex digits of the hash of labels and thresholds (name and evidence do not change a decision)."""
        content = {
            "labels": list(self.labels),
            "thresholds": {
                label: [threshold.review, threshold.block] for label, threshold in self.thresholds.items()
            },
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def check_labels(self, labels: Sequence[str]) -> None:
        """Refuse a model whose labels are not the ones this policy was made for. Raises PolicyError."""
        if tuple(labels) != self.labels:
            raise PolicyError(
                f"policy {self.name!r} is for the labels {list(self.labels)}, the model has {list(labels)}; "
                "give a policy made for this model"
            )

    def decide(self, scores: Sequence[float] | NDArray[np.float32]) -> Outcome:
        """Decide for one image from `scores`, float [num_labels] in the order of `labels`; the worst label wins.

        Ties between labels of the same decision go to the larger margin. Raises PolicyError for a wrong
        number of scores or a score that is not a number in 0..1 (which must never pass as harmless).
        """
        if len(scores) != len(self.labels):
            raise PolicyError(f"policy {self.name!r} needs {len(self.labels)} scores, got {len(scores)}")
        outcomes = []
        for label, value in zip(self.labels, scores, strict=True):
            score = float(value)
            if not 0.0 <= score <= 1.0:
                raise PolicyError(f"score of {label!r} must be 0..1, got {score!r}")
            if label in self.thresholds:
                decision, threshold = self.thresholds[label].decide(score)
                outcomes.append(Outcome(decision=decision, label=label, score=score, threshold=threshold))
        return max(outcomes, key=lambda outcome: (outcome.decision, outcome.margin))

    def to_json(self, *, indent: int | None = None) -> str:
        """Serialise with `schema_version`, `version` and `labels_sha256`."""
        payload = {
            "schema_version": POLICY_SCHEMA_VERSION,
            "name": self.name,
            "version": self.version,
            "labels": list(self.labels),
            "labels_sha256": labels_sha256(self.labels),
            "thresholds": {
                label: {"review": each.review, "block": each.block, "evidence": dict(each.evidence)}
                for label, each in self.thresholds.items()
            },
        }
        return json.dumps(payload, indent=indent, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Policy:
        """Read what `to_json` wrote, or what a person edited: `version` is always computed anew.

        Raises PolicyError that names what is wrong.
        """
        try:
            payload = _json_object(text, "policy")
            labels = tuple(payload["labels"])
            if payload.get("labels_sha256", labels_sha256(labels)) != labels_sha256(labels):
                raise PolicyError(
                    "policy's labels_sha256 does not match its labels: the label list was edited"
                )
            thresholds = {label: Threshold(**each) for label, each in payload["thresholds"].items()}
            return cls(labels=labels, thresholds=thresholds, name=payload.get("name", "default"))
        except ContractError as error:
            raise PolicyError(str(error)) from error
        except (KeyError, TypeError, AttributeError) as error:
            raise PolicyError(f"policy is not usable: {error!r}") from error

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """Read a policy file. Raises PolicyError with the path in it."""
        try:
            return cls.from_json(Path(path).read_bytes())
        except OSError as error:
            raise PolicyError(f"policy {path}: {error.strerror or error}") from error
        except PolicyError as error:
            raise PolicyError(f"policy {path}: {error}") from error
