"""What a call gives back, or raises, once its images are done: no verdict that was reached is ever lost."""

from __future__ import annotations

import contextlib

from moderation_client._errors import ModerationError
from moderation_client._jobs import Job
from moderation_client._session import Session
from moderation_client._settings import CallOptions
from moderation_client.results import Verdict


class Outcomes:
    """Verdicts of a call, in order, with the first trouble among them."""

    def __init__(self, session: Session, options: CallOptions) -> None:
        self._session = session
        self._options = options
        self._verdicts: list[Verdict | None] = []
        self._trouble: ModerationError | None = None

    def add(self, job: Job) -> Verdict | None:
        """Take a finished image; its verdict, or None from the first trouble of a raising call on."""
        outcome = self._session.settle(job, self._options)
        if isinstance(outcome, ModerationError):
            self._trouble = self._trouble or outcome
            self._verdicts.append(None)
        else:
            self._verdicts.append(outcome)
        return None if self._trouble is not None else self._verdicts[-1]

    def forget(self) -> None:
        """The caller has the verdicts so far."""
        self._verdicts.clear()

    def attach(self, error: Exception) -> None:
        """Let an exception of the caller's own iterable carry the verdicts reached."""
        with contextlib.suppress(AttributeError, TypeError):  # some exceptions take no attributes
            error.verdicts = tuple(self._verdicts)  # type: ignore[attr-defined]

    def result(self) -> list[Verdict]:
        """Every verdict. Raises the first trouble, carrying what was reached."""
        if self._trouble is not None:
            self._trouble.verdicts = tuple(self._verdicts)
            raise self._trouble
        return [verdict for verdict in self._verdicts if verdict is not None]
