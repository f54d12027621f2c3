"""The images of one call between the caller's iterator and the verdicts: what is decoded, waits, is sent, is judged.

No I/O and no threads: a shell feeds events in and asks what to do. It decides how far to read ahead (by count and by bytes,
so memory stays bounded), what goes into a batch, and in which order verdicts come out.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from moderation_client._errors import DeadlineExceededError, ModerationError, OverloadedError
from moderation_client._jobs import Batch, Job, Part
from moderation_client._judging import JudgedView, verdict_of
from moderation_client._pace import Pace
from moderation_client.results import Verdict

if TYPE_CHECKING:
    from moderation_client.images import DecodedImage

MAX_IMAGES = 256
"""Images between the iterator and the verdicts."""
MAX_BYTES = 32 * 1024 * 1024
"""Pixels and caller's bytes held for them; one more image is taken while less is held."""
GRACE_S = 0.25
"""The request itself reports a missed deadline with a better reason; the window only steps in after this."""
COMPANY = 16
"""Views that are worth a request: one costs as much CPU as four images in it."""
LINGER_S = 0.1
"""Longest wait of an image for company while others are being decoded."""
MAX_REDOS = 16
"""Times an image is prepared again because a version with another image spec answered: behind a proxy each try may meet either."""


class Window:
    """Images of one call, in order."""

    def __init__(self, *, max_in_flight: int, read_ahead: int) -> None:
        """`read_ahead` images may be with the decoders at once."""
        self._max_in_flight = max_in_flight
        self._read_ahead = read_ahead
        self._jobs: deque[Job] = deque()
        self._waiting: deque[Part] = deque()
        self._num_decoding = 0
        self._num_waiting_views = 0
        self._num_in_flight = 0
        self._pace = Pace()
        self._held_bytes = 0
        self._num_admitted = 0
        self.failed = False
        """Whether an image met trouble that is not its own."""

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def can_admit(self) -> bool:
        """Whether to take another image from the caller."""
        if not self._jobs:
            return True
        room = len(self._jobs) < MAX_IMAGES and self._held_bytes < MAX_BYTES
        return room and self._num_decoding < self._read_ahead

    @property
    def needs_caller(self) -> bool:
        """Whether the caller's thread has something to do: verdicts to hand out, or decoders that run dry."""
        return self.has_finished or self._num_decoding <= self._read_ahead // 2

    def admit(self, image_id: str | int, source: Any, deadline: float) -> Job:
        """Take an image in; the shell decodes it next."""
        job = Job(self._num_admitted, image_id, source, deadline, time.monotonic())
        self._num_admitted += 1
        self._num_decoding += 1
        self._hold(job, _source_bytes(source))
        self._jobs.append(job)
        return job

    def decoded(self, job: Job, image: DecodedImage, image_spec: Any, decode_s: float) -> None:
        """Its pixels are there."""
        job.info, job.views, job.incomplete = image.info, image.views, image.incomplete
        self.prepared(job, image.pixels, len(image.pixels), image.pixels.nbytes, image_spec, decode_s)

    def prepared(
        self, job: Job, pixels: Any, num_views: int, num_bytes: int, image_spec: Any, decode_s: float
    ) -> None:
        """There is something to send for it."""
        self._num_decoding -= 1
        job.decode_s += decode_s
        if job.outcome is not None:
            return
        job.pixels, job.image_spec, job.views_left = pixels, image_spec, num_views
        self._hold(job, num_bytes)
        self._num_waiting_views += num_views
        self._waiting.append(Part(job, 0, num_views, pixels, job.redos, time.monotonic(), image_spec))

    def refused(self, job: Job, verdict: Verdict) -> None:
        """It cannot be judged, by its own fault."""
        self._num_decoding -= 1
        self._finish(job, verdict)

    def undecoded(self, job: Job, error: ModerationError) -> None:
        """It could not be prepared, by no fault of its own."""
        self._num_decoding -= 1
        self.fail(job, error)

    def dropped(self) -> None:
        """An image was given up before its decoder came to it."""
        self._num_decoding -= 1

    def next_batch(self, max_views: int, max_bytes: int) -> Batch | None:
        """What to send now, if anything.

        `COMPANY` views go at once, fewer when nothing more is being decoded or when the first of them has waited
        `LINGER_S`. While all requests are in flight more gather, up to the full batch: busy servers get large requests.
        """
        if not self._waiting or self._num_in_flight >= self._max_in_flight:
            return None
        few = self._num_decoding > 0 and self._num_waiting_views < min(max_views, COMPANY)
        if few and time.monotonic() - self._waiting[0].since < LINGER_S:
            return None
        room = self._pace.room(min(max_views, self._num_waiting_views))
        if not room:
            return None
        parts = self._fill(room, max_bytes)
        self._take(parts)
        batch = Batch(tuple(parts))
        self._num_in_flight += 1
        self._pace.sent(batch.num_views)
        return batch

    def _fill(self, max_views: int, max_bytes: int) -> list[Part]:
        """Parts from the front of the queue that fit into one request and share one image spec."""
        parts: list[Part] = []
        num_views, num_bytes, image_spec = 0, 0, self._waiting[0].image_spec
        for part in self._waiting:
            per_view = _view_bytes(part.pixels)
            room = min(max_views - num_views, (max_bytes - num_bytes) // max(per_view, 1))
            if not parts:
                room = max(room, 1)
            if room < 1 or part.image_spec != image_spec:
                break
            stop = min(part.stop, part.start + room)
            parts.append(part if stop == part.stop else replace(part, stop=stop))
            num_views += stop - part.start
            num_bytes += per_view * (stop - part.start)
            if stop < part.stop:
                break
        return parts

    def _take(self, parts: list[Part]) -> None:
        """Remove from the queue what goes out; a part sent only in part leaves its rest in front."""
        for part in parts:
            queued = self._waiting.popleft()
            self._num_waiting_views -= part.stop - part.start
            if part.stop < queued.stop:
                self._waiting.appendleft(replace(queued, start=part.stop))

    def answered(self, batch: Batch, views: list[JudgedView], attempts: int, infer_s: float) -> None:
        """The batch was judged: `views` in its order."""
        self._returned(batch)
        offset = 0
        for part in batch.parts:
            job, size = part.job, part.stop - part.start
            judged, offset = views[offset : offset + size], offset + size
            job.infer_s, job.attempts = job.infer_s + infer_s, job.attempts + attempts
            if not part.is_current:
                continue
            job.judged += judged
            job.views_left -= size
            if job.views_left == 0:
                self._finish(job, _verdict(job))

    def settled(self, batch: Batch, outcomes: list[Verdict | ModerationError]) -> None:
        """The server decided for the batch itself: one outcome an image."""
        self._returned(batch)
        for part, outcome in zip(batch.parts, outcomes, strict=True):
            if part.is_current:
                self.failed |= isinstance(outcome, ModerationError)
                self._finish(part.job, outcome)

    def broke(self, batch: Batch, error: ModerationError, attempts: int = 0) -> None:
        """The batch could not be judged, by no fault of its images."""
        self._num_in_flight -= 1
        self._pace.failed(batch.num_views, overloaded=isinstance(error, OverloadedError))
        for part in batch.parts:
            part.job.attempts += attempts
            if part.is_current:
                self.fail(part.job, error)

    def _returned(self, batch: Batch) -> None:
        """An answer came."""
        self._num_in_flight -= 1
        self._pace.answered(batch.num_views, time.monotonic() - batch.since)

    def fail(self, job: Job, error: ModerationError) -> None:
        """One image met trouble that is not its own."""
        if job.outcome is None:
            self.failed = True
            self._finish(job, error)

    def undo(self, batch: Batch, error: ModerationError) -> list[Job]:
        """A version with another image spec answered: these images must be prepared again by the shell.

        Each at most `MAX_REDOS` times; after that `error` is its outcome.
        """
        self._returned(batch)
        again = []
        gone = dict.fromkeys(part.job for part in batch.parts if part.is_current)
        self._keep_waiting(lambda part: part.job not in gone)
        for job in gone:
            if job.redos >= MAX_REDOS:
                self.fail(job, error)
                continue
            job.redos += 1
            job.judged, job.pixels = [], None
            self._num_decoding += 1
            again.append(job)
        return again

    def expire(self) -> None:
        """Give up images whose deadline has passed while they were being decoded or held up."""
        now = time.monotonic()
        for job in self._open_jobs():
            if now > job.deadline + GRACE_S:
                self.fail(job, DeadlineExceededError("the deadline passed before the image was judged"))
        self._keep_waiting(lambda part: part.job.outcome is None)

    def next_wake(self) -> float | None:
        """When to look again though nothing happened: images wait long enough, or a deadline passes.

        Deadlines never decrease from one image to the next, so the first open one is the earliest.
        """
        times = [job.deadline + GRACE_S for job in itertools.islice(self._open_jobs(), 1)]
        may_send = self._num_in_flight < self._max_in_flight and self._pace.room(self._num_waiting_views)
        if self._waiting and may_send:  # else an answer makes the shell look again
            times.append(self._waiting[0].since + LINGER_S)
        return min(times, default=None)

    def _open_jobs(self) -> Iterator[Job]:
        return (job for job in self._jobs if job.outcome is None)

    @property
    def has_finished(self) -> bool:
        """Whether a verdict can be handed out."""
        return bool(self._jobs) and self._jobs[0].outcome is not None

    def pop_finished(self) -> list[Job]:
        """Images at the front that are done, in order."""
        finished = []
        while self._jobs and self._jobs[0].outcome is not None:
            finished.append(self._jobs.popleft())
        return finished

    def _keep_waiting(self, wanted: Callable[[Part], bool]) -> None:
        self._waiting = deque(part for part in self._waiting if wanted(part))
        self._num_waiting_views = sum(part.stop - part.start for part in self._waiting)

    def _hold(self, job: Job, num_bytes: int) -> None:
        job.held_bytes += num_bytes
        self._held_bytes += num_bytes

    def _finish(self, job: Job, outcome: Verdict | ModerationError) -> None:
        if job.outcome is not None:
            return
        job.outcome = outcome
        self._held_bytes -= job.held_bytes
        job.held_bytes = 0
        job.pixels = job.source = None


def _source_bytes(source: Any) -> int:
    """Memory that a source holds: bytes, an array's or a PIL image's pixels; a path holds none."""
    pixels = getattr(source, "pixels", source)
    if isinstance(pixels, (bytes, bytearray)):
        return len(pixels)
    if hasattr(pixels, "getbands"):
        return int(pixels.width * pixels.height * len(pixels.getbands()))
    return int(getattr(pixels, "nbytes", 0))


def _view_bytes(pixels: Any) -> int:
    return len(pixels) if isinstance(pixels, bytes) else int(pixels[0].nbytes)


def _verdict(job: Job) -> Verdict:
    return verdict_of(
        job.id, job.judged, incomplete=job.incomplete, info=job.info, looked=job.views, timing=job.timing()
    )
