"""How many views of one call may be with the server at once, so that a call does not fill the server's queue with itself.

A request waits behind those sent before it. The limit follows the time that answers take: it shrinks when they take longer than
`TARGET_S`, half of the queue timeout that an exported model has, and grows while they are quicker and the limit is what holds images
back: doubling at first, then by a request at a time, as TCP does (slow start and congestion avoidance, Jacobson, 1988).
"""

from __future__ import annotations

TARGET_S = 1.0
"""Answer time to stay below."""
START_VIEWS = 32.0
"""Before anything is known of the server."""
LEAST_VIEWS = 4.0
STEEPEST = 0.5
"""An answer shrinks the limit at most by this factor."""


class Pace:
    """Views of one call that are with the server, and how many may be."""

    def __init__(self) -> None:
        self.limit = START_VIEWS
        self.num_views = 0
        self._doubling = True
        self._held_back = False
        self._settling = 0

    def room(self, wanted: int) -> int:
        """How many of `wanted` views may go now; 0 to wait. Nothing is with the server: something always may."""
        free = int(self.limit) - self.num_views
        if self.num_views and free < min(wanted, self.limit / 2):
            self._held_back = True
            return 0
        return max(1, min(wanted, free))

    def sent(self, num_views: int) -> None:
        """A request went out."""
        self.num_views += num_views

    def answered(self, num_views: int, took_s: float) -> None:
        """It was answered after `took_s`."""
        self.num_views -= num_views
        self._settling -= num_views
        if took_s > TARGET_S:
            self._shrink(TARGET_S / took_s)
        elif self._held_back:
            self.limit += num_views if self._doubling else min(num_views, num_views * num_views / self.limit)
            self._held_back = False

    def failed(self, num_views: int, *, overloaded: bool) -> None:
        """It was not answered, or refused by a full queue."""
        self.num_views -= num_views
        self._settling -= num_views
        if overloaded:
            self._shrink(STEEPEST)

    def _shrink(self, factor: float) -> None:
        """Once for all that is with the server now: those requests say the same thing."""
        self._doubling = False
        if self._settling <= 0:
            self.limit = max(LEAST_VIEWS, self.limit * max(factor, STEEPEST))
            self._settling = self.num_views
