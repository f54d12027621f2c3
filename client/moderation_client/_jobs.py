"""An image on its way through a call, and the batches that its views travel in."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from moderation_client._errors import ModerationError
from moderation_client._judging import JudgedView
from moderation_client.results import ImageInfo, Timing, Verdict, Views


@dataclass(eq=False)
class Job:
    """One image on its way."""

    index: int
    id: str | int
    source: Any
    deadline: float
    started: float
    held_bytes: int = 0
    pixels: Any = None
    """uint8 [num_views, H, W, 3], or the file's bytes when the server decodes; None when there is nothing to send."""
    image_spec: Any = None
    incomplete: str | None = None
    info: ImageInfo | None = None
    views: Views | None = None
    views_left: int = 0
    judged: list[JudgedView] = field(default_factory=list)
    outcome: Verdict | ModerationError | None = None
    decode_s: float = 0.0
    infer_s: float = 0.0
    attempts: int = 0
    redos: int = 0

    def timing(self) -> Timing:
        """Where the time went so far."""
        return Timing(
            decode_ms=self.decode_s * 1e3,
            infer_ms=self.infer_s * 1e3 if self.attempts else None,
            total_ms=(time.monotonic() - self.started) * 1e3,
            attempts=self.attempts,
        )


@dataclass(frozen=True)
class Part:
    """Views `start` to `stop` of one image."""

    job: Job
    start: int
    stop: int
    pixels: Any
    """Of the whole image; kept here because a job that is given up lets go of its own."""
    redo: int
    """Which preparation of the image they are from."""
    since: float
    """When they were ready to be sent."""
    image_spec: Any = None
    """How they were prepared; the job's own changes when it is prepared again."""

    @property
    def is_current(self) -> bool:
        """Whether the image still waits for these views."""
        return self.job.outcome is None and self.redo == self.job.redos


@dataclass(frozen=True)
class Batch:
    """What goes into one request."""

    parts: tuple[Part, ...]
    since: float = field(default_factory=time.monotonic)
    """When it was put together."""

    @property
    def num_views(self) -> int:
        """Size of the batch dimension."""
        return sum(part.stop - part.start for part in self.parts)

    @property
    def deadline(self) -> float:
        """Earliest deadline of its images."""
        return min(part.job.deadline for part in self.parts)
