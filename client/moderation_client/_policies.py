"""Which policy decides: the caller's (an object or a file that is read again when it changes), else the model's own.

A changed file takes effect within a second. One that is broken, or does not fit the labels of the model that answers, is
refused and logged, and the one before it stays in force.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from moderation_client._errors import PolicyError
from moderation_client.policy import Policy

PolicySource = Policy | str | os.PathLike[str]

logger = logging.getLogger("moderation_client")

REREAD_AFTER_S = 0.5
"""A policy file is looked at again when this much time has passed since the last look."""


class PolicyFile:
    """One file, the newest policy read from it, and the one in force (older when the newest does not fit)."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read it at once. Raises PolicyError."""
        self.path = Path(path)
        self._lock = threading.Lock()
        self._newest = self._in_force = Policy.load(self.path)
        self._content = self.path.read_bytes()
        self._read_at = time.monotonic()
        self._refused = ""

    def fitting(self, labels: Sequence[str]) -> Policy:
        """Newest good policy for `labels`. Raises PolicyError when none fits."""
        with self._lock:
            if time.monotonic() - self._read_at >= REREAD_AFTER_S:
                self._read_at = time.monotonic()
                self._reread()
            if self._newest.labels == tuple(labels):
                self._in_force = self._newest
            elif self._in_force.labels == tuple(labels):
                self._warn(f"{self.path}: does not fit the model's labels")
            else:
                self._newest.check_labels(labels)
            return self._in_force

    def _reread(self) -> None:
        """Take over changed content. Compared by content: mtime is too coarse for two writes in one tick."""
        try:
            content = self.path.read_bytes()
            if content == self._content:
                return
            policy = Policy.from_json(content)
        except (OSError, PolicyError) as error:
            self._warn(f"{self.path}: {error}")
            return
        self._content = content
        self._refused = ""
        self._newest = policy
        logger.info("policy %s: version %s was read", self.path, policy.version)

    def _warn(self, why: str) -> None:
        if why != self._refused:
            logger.warning("policy refused, the one before stays in force: %s", why)
            self._refused = why


class PolicyBook:
    """The caller's policies by name."""

    def __init__(self, source: PolicySource | Mapping[str, PolicySource] | None) -> None:
        """Read every file now, so that a bad one fails where it is given. Raises PolicyError."""
        self._named: dict[str, Policy | PolicyFile] = {}
        if isinstance(source, Mapping):
            self._named = {name: _opened(each) for name, each in source.items()}
        elif source is not None:
            self._named = {"default": _opened(source)}

    @property
    def names(self) -> tuple[str, ...]:
        """Names that a call can choose from."""
        return tuple(self._named)

    def select(self, choice: Policy | str | None) -> Policy | PolicyFile | None:
        """Policy for one call: an object, a name, or None for the default (None back: the model's own).

        Raises PolicyError for a name that is not there.
        """
        if isinstance(choice, Policy):
            return choice
        if choice is None and not self._named:
            return None
        try:
            return self._named["default" if choice is None else choice]
        except KeyError as error:
            raise PolicyError(
                f"no policy named {error}; this client has {', '.join(self._named) or 'none'}"
                + (': name one per call, or call one "default"' if choice is None else "")
            ) from error


def _opened(source: PolicySource) -> Policy | PolicyFile:
    return source if isinstance(source, Policy) else PolicyFile(source)


def policy_for(chosen: Policy | PolicyFile | None, own: Policy | None, labels: Sequence[str]) -> Policy:
    """Policy that decides for a model with `labels`: the chosen one, else the model's own. Raises PolicyError."""
    if isinstance(chosen, PolicyFile):
        return chosen.fitting(labels)
    policy = chosen if chosen is not None else own
    if policy is None:
        raise PolicyError("the server sends no policy with this model: give the client policy=")
    policy.check_labels(labels)
    return policy
