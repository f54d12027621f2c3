"""Counting what a client did, for a snapshot that a metrics page can show."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from moderation_client._replicas import Replica
from moderation_client.results import Verdict


@dataclass(frozen=True, kw_only=True)
class ReplicaStats:
    """One server as the client sees it now."""

    url: str
    """Address."""
    ejected: bool
    """Whether it gets no requests because it stopped answering."""
    in_flight: int
    """Requests it has not answered yet."""
    last_error: str | None
    """What it failed with last, None after a success."""


@dataclass(frozen=True, kw_only=True)
class ClientStats:
    """Counts since the client was made."""

    images: int
    """Images that got a verdict, errors included."""
    decisions: Mapping[str, int]
    """Decision -> verdicts."""
    errors: Mapping[str, int]
    """Code of `Verdict.error` -> verdicts."""
    requests: int
    """Inference requests that were answered or given up."""
    attempts: int
    """Tries behind them; the difference to `requests` is retries."""
    failures: Mapping[str, int]
    """Error class -> requests given up."""
    replicas: tuple[ReplicaStats, ...]


class Counts:
    """Thread-safe counters behind `ClientStats`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._decisions: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._requests = 0
        self._attempts = 0

    def verdict(self, verdict: Verdict) -> None:
        """Count one."""
        with self._lock:
            self._decisions[str(verdict.decision)] += 1
            if verdict.error is not None:
                self._errors[verdict.error.code] += 1

    def request(self, attempts: int, failure: str | None = None) -> None:
        """Count one request, given up with `failure` or answered."""
        with self._lock:
            self._requests += 1
            self._attempts += attempts
            if failure is not None:
                self._failures[failure] += 1

    def snapshot(self, replicas: list[Replica]) -> ClientStats:
        """Counts as they are now."""
        states = tuple(
            ReplicaStats(
                url=str(each.url),
                ejected=each.ejected,
                in_flight=each.in_flight,
                last_error=each.last_error,
            )
            for each in replicas
        )
        with self._lock:
            return ClientStats(
                images=sum(self._decisions.values()),
                decisions=dict(self._decisions),
                errors=dict(self._errors),
                requests=self._requests,
                attempts=self._attempts,
                failures=dict(self._failures),
                replicas=states,
            )
