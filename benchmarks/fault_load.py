"""A steady load whose every answer is checked: callers that ask one image after the other, and a record of each call.

Nothing is lost when every image that was asked about has a record, nothing is wrong when its scores and decision are the known
ones, nothing failed when no call raised. Latency counts from the moment the call was due.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moderation_client import ModerationClient, ModerationError
from moderation_client.policy import Decision, Policy

OK, WRONG = "ok", "wrong"


@dataclass(frozen=True, kw_only=True)
class Known:
    """Images, and what must be said of them."""

    pixels: NDArray[np.uint8]
    """[num_images, height, width, 3]."""
    scores: NDArray[np.float64]
    """[num_images, num_labels]."""
    policy: Policy
    tolerance: float = 1e-3
    """Scores that the same model file gave on the same machine differ by no more, whatever they were batched with."""

    def outcome(self, index: int, verdict: Any) -> str:
        """`ok`, or `wrong` for scores or a decision that are not this image's."""
        expected = self.scores[index]
        found = np.array([verdict.scores.get(label, -1.0) for label in self.policy.labels])
        right = verdict.error is None and bool(np.all(np.abs(found - expected) <= self.tolerance))
        return OK if right and verdict.decision in self._decisions(expected) else WRONG

    def _decisions(self, scores: NDArray[np.float64]) -> set[Decision]:
        """Decision for these scores; two where a threshold is nearer than the tolerance."""
        moved = (np.clip(scores + shift, 0.0, 1.0) for shift in (-self.tolerance, 0.0, self.tolerance))
        return {self.policy.decide(each).decision for each in moved}


@dataclass(frozen=True)
class Call:
    """One image: when it was due and when it was answered, in seconds of the load, and what came of it."""

    index: int
    due_s: float
    done_s: float
    outcome: str

    @property
    def latency_ms(self) -> float:
        """From due to answered."""
        return (self.done_s - self.due_s) * 1000


class Load:
    """Runs inside a `with` block; `calls` grows as answers come."""

    def __init__(
        self,
        client: ModerationClient,
        known: Known,
        *,
        num_callers: int = 8,
        rate_per_s: float | None = None,
    ) -> None:
        """Without a rate each caller asks again as soon as it is answered: the load takes all that there is."""
        self.calls: list[Call] = []
        self.num_asked = 0
        self._client, self._known, self._rate = client, known, rate_per_s
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, name="caller") for _ in range(num_callers)]
        self._started_at = 0.0

    def __enter__(self) -> Load:
        """Begin."""
        self._started_at = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ask no more, and wait for what is still to be answered."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def now_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._started_at

    def wait(self, *, seconds: float = 0.0, num_calls: int = 0, timeout_s: float = 120.0) -> None:
        """Let it run so long, and until so many more calls were answered. Raises TimeoutError."""
        target, start = len(self.calls) + num_calls, time.monotonic()
        while time.monotonic() < start + seconds or len(self.calls) < target:
            if time.monotonic() > start + seconds + timeout_s:
                raise TimeoutError(f"{target - len(self.calls)} calls were not answered in {timeout_s:g} s")
            time.sleep(0.05)

    def _ask(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                number = next(self._numbers)
                self.num_asked += 1
            due_s = self._due(number)
            index = number % len(self._known.pixels)
            outcome = self._judge(index)
            self.calls.append(Call(number, due_s, self.now_s(), outcome))

    def _due(self, number: int) -> float:
        """Wait until a call is due; when that was."""
        if self._rate is None:
            return self.now_s()
        due_s = number / self._rate
        if due_s > self.now_s():
            time.sleep(due_s - self.now_s())
        return due_s

    def _judge(self, index: int) -> str:
        try:
            (verdict,) = self._client.moderate([self._known.pixels[index]], ids=[index])
        except ModerationError as error:
            return str(getattr(error, "code", type(error).__name__))
        return self._known.outcome(index, verdict) if verdict.id == index else WRONG

    def outcomes(self) -> dict[str, int]:
        """How many calls ended how; `lost` are those without an answer (after the block)."""
        found = Counter(call.outcome for call in self.calls)
        found["lost"] = self.num_asked - len(self.calls)
        return {key: value for key, value in found.items() if value}


def throughput(calls: Sequence[Call], from_s: float, to_s: float) -> float:
    """Right answers a second in a window."""
    num = sum(call.outcome == OK and from_s <= call.done_s < to_s for call in calls)
    return num / max(to_s - from_s, 1e-9)


def recovery_s(calls: Sequence[Call], fault_s: float, wanted_per_s: float, end_s: float) -> float:
    """Seconds from a fault to the end of the last full second before `end_s` with less than `wanted_per_s`; 0 without one."""
    done = np.sort([call.done_s for call in calls if call.outcome == OK])
    starts_s = np.arange(fault_s, end_s - 1.0 + 1e-9, 0.05)
    counts = np.searchsorted(done, starts_s + 1.0) - np.searchsorted(done, starts_s)
    bad = starts_s[counts < wanted_per_s]
    return float(bad[-1] + 1.0 - fault_s) if len(bad) else 0.0
