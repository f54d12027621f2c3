"""Names of servers and the addresses behind them: when to look again, and what holds while a look-up fails.

Addresses come and go in a cluster: a name is looked up before the first request, when a server was lost, and twice a minute. No
I/O happens under a lock, and nothing here runs in an event loop.
"""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import replace

from moderation_client._urls import Url

EVERY_S = 30.0
"""Time between look-ups of servers that are well."""
AGAIN_S = 1.0
"""Shortest time between two, after a loss or a failure."""


def resolve(url: Url) -> tuple[Url, ...]:
    """Every address behind a name, in a stable order. Raises OSError."""
    found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    hosts = sorted({str(entry[4][0]) for entry in found})
    return tuple(replace(url, host=host, name=url.host) for host in hosts)


class Names:
    """The names of one client's servers."""

    def __init__(self, urls: tuple[Url, ...]) -> None:
        """Nothing is looked up yet: each name stands for itself."""
        self._lock = threading.Lock()
        self._found: dict[Url, tuple[Url, ...]] = {url: (url,) for url in urls}
        self._next_at = self._soonest_at = float("-inf")
        self._seen_losses = 0
        self._busy = False
        self._fresh: tuple[Url, ...] | None = None
        self.is_first = True
        """Whether nothing was looked up so far."""

    def claim(self, num_losses: int) -> bool:
        """Whether the caller is to look up now; said to one at a time, pair with `look_up`."""
        now = time.monotonic()
        with self._lock:
            due = now >= self._next_at or (num_losses != self._seen_losses and now >= self._soonest_at)
            if self._busy or not due:
                return False
            self._busy, self._seen_losses = True, num_losses
            return True

    def take(self) -> tuple[Url, ...] | None:
        """What the last look-up found, once: every address without repeats."""
        with self._lock:
            fresh, self._fresh = self._fresh, None
            return fresh

    def look_up(self) -> None:
        """Look every name up; one that cannot be looked up keeps the addresses that it had."""
        found: dict[Url, tuple[Url, ...]] = {}
        failed = False
        for url, before in self._found.items():
            try:
                found[url] = resolve(url) or before
            except (OSError, UnicodeError):  # UnicodeError: no name can be like this
                found[url], failed = before, True
        now = time.monotonic()
        with self._lock:
            self._found = found
            self._next_at, self._soonest_at = now + (AGAIN_S if failed else EVERY_S), now + AGAIN_S
            self._busy = self.is_first = False
            self._fresh = tuple(dict.fromkeys(address for each in found.values() for address in each))
