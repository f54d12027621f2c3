"""What `moderate` answers with: one frozen `Verdict` an image, complete enough to be the audit record of an appeal."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moderation_client._errors import InvalidImageError, ModerationError
from moderation_client.policy import Decision

VERDICT_SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """What the file said of itself."""

    format: str | None
    """`JPEG`, `PNG`, ...; None for an array."""
    width: int
    """Columns as stored, before EXIF orientation."""
    height: int
    """Rows as stored, before EXIF orientation."""
    mode: str
    """Pillow's name of the pixel format, or the array's dtype."""
    exif_turned: bool = False
    """Whether the EXIF orientation turned or mirrored the picture."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """How much of the picture was looked at: frames x tiles x backgrounds."""

    total: int
    """Views that the picture has."""
    looked_at: int
    """Views that were judged, at most the cap."""
    worst: int | None = None
    """Index of the view that decided."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Where this image's time went, in milliseconds; None where it was not measured."""

    decode_ms: float | None = None
    """Reading, decoding and resizing."""
    infer_ms: float | None = None
    """From sending the request that held the (last) view to its answer."""
    total_ms: float | None = None
    """From taking the image to its verdict."""
    attempts: int = 0
    """Requests sent for it, retries included."""


@dataclass(frozen=True, kw_only=True)
class VerdictError:
    """Why an image could not be judged."""

    code: str
    """Stable word: `truncated`, `too_large`, `overloaded`, `deadline_exceeded`, ..."""
    message: str
    """Sentence for a person."""
    kind: str
    """Name of the error class."""
    value: float | None = None
    """Number that broke a limit, where one did."""
    limit: float | None = None
    """That limit."""

    @classmethod
    def of(cls, error: ModerationError) -> VerdictError:
        """Describe an error."""
        message = error.message if isinstance(error, InvalidImageError) else str(error)
        return cls(
            code=getattr(error, "code", "error"),
            message=message,
            kind=type(error).__name__,
            value=getattr(error, "value", None),
            limit=getattr(error, "limit", None),
        )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The decision for one image, with everything it rests on.

    `error` is set when the image could not be judged; `decision` is then REVIEW (or BLOCK, if so set), never
    ALLOW. `reason` is set when the decision is not the label's alone: the views exceeded the cap, say.
    """

    id: str | int
    """The caller's id, else the index in the call."""
    decision: Decision
    label: str | None = None
    """Label that led to the decision; for an allowed image the one that came nearest."""
    score: float | None = None
    """Score of that label, 0..1."""
    threshold: float | None = None
    """Threshold it was measured against."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Label -> calibrated probability; the worst view's where there are several."""
    reason: str | None = None
    """Why the decision is stricter than the scores ask for."""
    error: VerdictError | None = None
    """Why the image could not be judged."""
    model_name: str | None = None
    model_version: str | None = None
    policy_name: str | None = None
    policy_version: str | None = None
    image: ImageInfo | None = None
    views: Views | None = None
    timing: Timing = field(default_factory=Timing)

    @property
    def flagged(self) -> bool:
        """Whether the image is not simply allowed."""
        return self.decision is not Decision.ALLOW

    @property
    def margin(self) -> float | None:
        """Score minus threshold: negative when allowed."""
        return None if self.score is None or self.threshold is None else self.score - self.threshold

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready audit record with `schema_version`."""
        record = dataclasses.asdict(self)
        record["decision"] = str(self.decision)
        return {
            "schema_version": VERDICT_SCHEMA_VERSION,
            **record,
            "flagged": self.flagged,
            "margin": self.margin,
        }
