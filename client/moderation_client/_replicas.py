"""Which server gets the next request: the one that is least busy for its speed, in turn among equals, and none that has stopped answering.

A replica that lost its connection, hangs or has a dead backend is ejected for a time that doubles; it returns through a
health probe and one trial request. With nobody left the call goes to the one that is due first: a single server is always tried.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moderation_client._errors import ClientClosedError
from moderation_client._faults import Fault, Meaning
from moderation_client._names import Names
from moderation_client._urls import Url

logger = logging.getLogger("moderation_client")

FIRST_EJECTION_S = 0.25
LONGEST_EJECTION_S = 4.0
FAILURES_BEFORE_EJECTION = 3
"""Internal errors in a row: one may be the request's fault, three are the replica's."""
_NEWEST_SHARE = 0.2
"""Part that the newest answer has in a replica's latency."""
_NOTABLY_SLOWER = 2.0
"""Latency of replicas that differ by less counts as the same: batches differ, too."""


@dataclass(eq=False)
class Replica:
    """One server and what is known of it; every field is guarded by the lock of `Replicas`."""

    url: Url
    transport: Any
    in_flight: int = 0
    latency_s: float = 0.0
    """Smoothed; 0 before the first answer."""
    waited_s: float = 0.0
    """What all requests together have waited since the last answer: on the average, the latency of one (Little's law)."""
    counted_at: float = 0.0
    failures: int = 0
    ejections: int = 0
    ejected: bool = False
    on_trial: bool = False
    probing: bool = False
    retry_at: float = 0.0
    heard_at: float = float("-inf")
    image_spec: Any = None
    """How it wants pictures prepared, as far as it has said so."""
    last_error: str | None = None

    def silent_s(self) -> float:
        """Seconds since anything was heard from it."""
        return time.monotonic() - self.heard_at

    def count(self, change: int) -> None:
        """Take a request on or off."""
        now = time.monotonic()
        self.waited_s += self.in_flight * (now - self.counted_at)
        self.counted_at = now
        self.in_flight += change

    def take_latency(self) -> None:
        """Learn from an answer."""
        self.count(0)
        newest, self.waited_s = self.waited_s, 0.0
        self.latency_s += (_NEWEST_SHARE if self.latency_s else 1.0) * (newest - self.latency_s)


class Replicas:
    """All servers of one client."""

    def __init__(
        self,
        replicas: list[Replica],
        names: Names | None = None,
        connect: Callable[[Url], Replica] | None = None,
    ) -> None:
        """Start with everybody trusted. With `names`, `renew` follows their addresses and `connect` makes the new ones."""
        self._lock = threading.Lock()
        self.members = replicas
        self.names = names
        self._connect = connect
        self._gone: list[Replica] = []
        self.closed = False
        self._turn = 0
        self.num_losses = 0
        """Times a replica was lost: what comes back there may be another model."""

    def check_open(self) -> None:
        """Refuse to go on after `close`. Raises ClientClosedError."""
        if self.closed:
            raise ClientClosedError("the client was closed; make a new one")

    def close(self) -> list[Any]:
        """Refuse further requests; the transports to close."""
        self.closed = True
        with self._lock:
            return [each.transport for each in (*self.members, *self._gone)]

    def renew(self, urls: tuple[Url, ...]) -> list[Replica]:
        """Follow a look-up: addresses that are new join, the others leave; those that left and are idle, to be closed."""
        with self._lock:
            known = {each.url: each for each in self.members}
            if self._connect is None or self.closed or not urls:
                return []
            self.members = [known.get(url) or self._connect(url) for url in urls]
            left = [*self._gone, *(each for each in known.values() if each not in self.members)]
            self._gone = [each for each in left if each.in_flight]
            return [each for each in left if not each.in_flight]

    def choose(self, avoid: set[Replica], first: Replica | None = None) -> Replica:
        """Take a replica for one request: `first` if it is well, else not one of `avoid`; pair with `release`."""
        with self._lock:
            if first in self.members and first is not None and not first.ejected:
                first.count(1)
                return first
            self._turn += 1
            turned = (
                self.members[self._turn % len(self.members) :]
                + self.members[: self._turn % len(self.members)]
            )
            free = [each for each in turned if not each.ejected and not (each.on_trial and each.in_flight)]
            candidates = [each for each in free if each not in avoid] or free
            if candidates:
                fastest = min((each.latency_s for each in candidates if each.latency_s), default=0.0)
                chosen = min(candidates, key=lambda each: _load(each, fastest))
            else:
                chosen = min(turned, key=lambda each: (each in avoid, each.retry_at))
            chosen.count(1)
            return chosen

    def release(self, replica: Replica) -> None:
        """The request is over, one way or the other."""
        with self._lock:
            replica.count(-1)

    def answered(self, replica: Replica) -> None:
        """It judged a batch: trust it again."""
        with self._lock:
            replica.take_latency()
            replica.heard_at = time.monotonic()
            if replica.ejected or replica.on_trial:
                logger.info("%s answers again", replica.url)
            replica.failures = replica.ejections = 0
            replica.ejected = replica.on_trial = False
            replica.last_error = None

    def wants(self, replica: Replica, image_spec: Any) -> None:
        """It said how pictures must be prepared for it."""
        with self._lock:
            replica.image_spec = image_spec

    def image_specs(self) -> list[Any]:
        """What the well ones want, one entry for each that has said so."""
        with self._lock:
            well = [each.image_spec for each in self.members if not each.ejected]
            return [each for each in well if each is not None]

    def unfit(self, image_spec: Any) -> set[Replica]:
        """Those known to want pictures prepared differently: in a roll-out they have another version."""
        with self._lock:
            return {each for each in self.members if each.image_spec not in (None, image_spec)}

    def of_other_size(self, height: int, width: int) -> set[Replica]:
        """Those known to take pictures of another size."""
        with self._lock:
            said = [(each, each.image_spec) for each in self.members if each.image_spec is not None]
            return {each for each, spec in said if (spec.height, spec.width) != (height, width)}

    def heard(self, replica: Replica) -> None:
        """It said something, if only that it is alive or full."""
        with self._lock:
            replica.heard_at = time.monotonic()

    def failed(self, replica: Replica, fault: Fault, meaning: Meaning) -> None:
        """Count a failure, and eject the replica when that is one too many."""
        with self._lock:
            replica.failures += meaning.counts
            replica.last_error = str(fault)
            if not meaning.ejects and replica.failures < FAILURES_BEFORE_EJECTION:
                return
            self.num_losses += meaning.ejects
            if not replica.ejected:
                logger.warning("%s gets no requests until it is well again: %s", replica.url, fault)
                replica.ejections += 1
            replica.ejected, replica.on_trial = True, False
            replica.image_spec = None if meaning.ejects else replica.image_spec  # another model may come back
            pause = min(LONGEST_EJECTION_S, FIRST_EJECTION_S * 2 ** min(replica.ejections - 1, 8))
            replica.retry_at = time.monotonic() + pause

    def due_for_probe(self) -> list[Replica]:
        """Ejected replicas whose time has come; each is handed out once, pair with `probed`."""
        now = time.monotonic()
        with self._lock:
            due = [
                each for each in self.members if each.ejected and not each.probing and now >= each.retry_at
            ]
            for replica in due:
                replica.probing = True
            return due

    def probed(self, replica: Replica, *, healthy: bool) -> None:
        """Take a healthy one back on trial, leave the other out for longer."""
        with self._lock:
            replica.probing = False
            if healthy:
                replica.heard_at = time.monotonic()
                replica.ejected, replica.on_trial = False, True
                return
            replica.ejections += 1
            pause = min(LONGEST_EJECTION_S, FIRST_EJECTION_S * 2 ** min(replica.ejections - 1, 8))
            replica.retry_at = time.monotonic() + pause

    def has_other(self, replica: Replica) -> bool:
        """Whether another replica could take over."""
        with self._lock:
            return any(each is not replica and not each.ejected for each in self.members)


def _load(replica: Replica, fastest_s: float) -> float:
    """Requests in flight, each as heavy as the replica is slow. One that is idle weighs nothing, so a slow one gets one at a time."""
    slowness = replica.latency_s / fastest_s if replica.latency_s and fastest_s else 1.0
    return replica.in_flight * (slowness if slowness >= _NOTABLY_SLOWER else 1.0)
