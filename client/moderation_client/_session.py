"""What both clients share: settings, servers, specs, policies, counts. No I/O happens here.

The two shells drive the flows of `_calls` and `_encoded` on it, one with threads, one with asyncio.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from moderation_client._errors import BadArrayError, ClientClosedError, ModerationError
from moderation_client._flow import Limits
from moderation_client._jobs import Batch, Job
from moderation_client._judging import error_verdict
from moderation_client._names import Names
from moderation_client._policies import PolicyBook, PolicySource
from moderation_client._protocol import InferRequest
from moderation_client._replicas import Replica, Replicas
from moderation_client._settings import CallOptions, OnError, Settings
from moderation_client._spec import SpecBook
from moderation_client._stats import ClientStats, Counts
from moderation_client._telemetry import Telemetry
from moderation_client._transports import Connection
from moderation_client._urls import Url
from moderation_client._window import COMPANY, Window
from moderation_client.contract import ImageSpec, ModelSpec
from moderation_client.policy import Policy
from moderation_client.results import Verdict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Session:
    """State of one client."""

    def __init__(
        self,
        settings: Settings,
        policy: PolicySource | Mapping[str, PolicySource] | None,
        spec: ModelSpec | None,
        max_batch: int | None,
        connect: Callable[[Url, Connection], Any],
        telemetry: Telemetry,
    ) -> None:
        """Nothing is connected yet. Raises PolicyError for a policy that cannot be read."""
        self.settings = settings
        self.policies = PolicyBook(policy)
        self.book = SpecBook(spec, max_batch)
        self.counts = Counts()
        self.telemetry = telemetry
        self.closed = False
        self.has_answered = False
        self._connect = connect
        self._replicas: Replicas | None = None
        self._seen_losses = 0
        self._num_prepared = itertools.count()
        self.starting = threading.Lock()
        """Two threads that make the first call start the client's threads once."""
        self._lock = threading.Lock()
        self._pid = os.getpid()

    @property
    def replicas(self) -> Replicas:
        """The servers, connected on first use. Raises ClientClosedError."""
        self.check_usable()
        with self._lock:
            if self._replicas is None:
                self._replicas = self._connected()
            return self._replicas

    def _connected(self) -> Replicas:
        """Every server by the name that was given; addresses behind names are looked up with the first request."""

        def connect(url: Url) -> Replica:
            return Replica(url, self._connect(url, self.settings.connection))

        names = Names(self.settings.urls) if self.settings.resolve_names else None
        return Replicas([connect(url) for url in self.settings.urls], names, connect)

    def check_usable(self) -> None:
        """Refuse calls after `close`. Raises ClientClosedError."""
        if self.closed:
            raise ClientClosedError("the client was closed; make a new one")

    @contextlib.contextmanager
    def usable(self) -> Iterator[None]:
        """Turn what closed threads and futures raise into ClientClosedError, when it was `close` that closed them."""
        try:
            yield
        except (RuntimeError, CancelledError) as error:
            self.check_usable()
            raise error

    @property
    def was_forked(self) -> bool:
        """Whether this process inherited the client from its parent: its connections and threads are not ours."""
        return self._pid != os.getpid()

    def reconnect(self) -> None:
        """Forget connections that belong to another process or event loop, without touching them."""
        self._lock = threading.Lock()  # a parent may have held the old one while it forked
        self._replicas = None
        self._seen_losses = 0
        self._pid = os.getpid()

    def close(self) -> list[Any]:
        """Refuse further calls; the transports that the shell must close."""
        self.closed = True
        return self._replicas.close() if self._replicas is not None and not self.was_forked else []

    def options(
        self,
        timeout_s: float | None,
        policy: Policy | str | None,
        model_version: int | str | None,
        on_error: OnError,
        *,
        per_image: bool,
    ) -> CallOptions:
        """Check what a call asks for. Raises ValueError or PolicyError."""
        chosen_s = self.settings.timeout_s if timeout_s is None else timeout_s
        if not chosen_s > 0:
            raise ValueError(f"timeout_s must be positive, got {timeout_s!r}")
        if on_error not in ("raise", "verdict"):
            raise ValueError(f"on_error must be 'raise' or 'verdict', got {on_error!r}")
        if policy is not None and self.settings.decode == "server":
            raise ValueError("with decode='server' the server's policy decides: policy= has no effect there")
        return CallOptions(
            timeout_s=chosen_s,
            deadline=None if per_image else time.monotonic() + chosen_s,
            policy=self.policies.select(policy),
            version="" if model_version is None else str(model_version),
            on_error=on_error,
            context=self.telemetry.context(),
        )

    def limits(self, deadline: float, timeout_s: float) -> Limits:
        """Bounds for one request."""
        return Limits(
            deadline=deadline,
            timeout_s=timeout_s,
            attempt_timeout_s=self.settings.attempt_timeout_s,
            retry_overload=self.settings.retry_overload,
            patient=self.has_answered,
        )

    def limits_in(self, timeout_s: float | None) -> Limits:
        """Bounds for one request that starts now. Raises ValueError."""
        options = self.options(timeout_s, None, None, "raise", per_image=False)
        return self.limits(options.deadline_now(), options.timeout_s)

    def score_call(
        self, pixels: Any, model_version: int | str | None, timeout_s: float | None
    ) -> tuple[Limits, str, NDArray[np.uint8]]:
        """Check the arguments of `score`. Raises BadArrayError or ValueError."""
        import numpy as np  # noqa: PLC0415  keeps `import moderation_client` quick

        shape: tuple[int, ...] = getattr(pixels, "shape", ())
        if getattr(pixels, "dtype", None) != np.uint8 or len(shape) != 4 or shape[3] != 3 or not len(pixels):
            kind = f"{getattr(pixels, 'dtype', type(pixels).__name__)} {list(shape)}"
            raise BadArrayError(f"score needs pixels as uint8 [N, H, W, 3] with N >= 1, got {kind}")
        version = "" if model_version is None else str(model_version)
        return self.limits_in(timeout_s), version, np.ascontiguousarray(pixels)

    def chunks(self, pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """Pixels in pieces that one request may hold."""
        size = max(1, min(self.book.max_batch, self.settings.max_message_bytes // pixels[0].nbytes))
        return [pixels[start : start + size] for start in range(0, len(pixels), size)]

    def window(self) -> Window:
        """A window for one call."""
        return Window(max_in_flight=self.settings.max_in_flight, read_ahead=8 * self.settings.decode_threads)

    def next_batch(self, window: Window) -> Batch | None:
        """What to send now."""
        return window.next_batch(self.book.max_batch, self.settings.max_message_bytes)

    def with_extras(self, request: InferRequest, headers: Mapping[str, str]) -> InferRequest:
        """A request with the client's priority and the trace's headers."""
        if not headers and not self.settings.priority:
            return request
        parameters = {"priority": self.settings.priority} if self.settings.priority else {}
        return replace(request, parameters=parameters, headers=headers)

    def image_spec(self, version: str) -> ImageSpec:
        """How to prepare the next image: as the replicas want it, in turn where a roll-out makes them differ.

        Raises ContractError when no spec says how.
        """
        current = self.book.current(version).image
        wanted = [] if version or self.book.is_local else self.replicas.image_specs()
        if not wanted:
            return current
        turn = next(self._num_prepared) // COMPANY  # neighbours share requests
        chosen: ImageSpec = wanted[turn % len(wanted)]
        return chosen

    def note_losses(self) -> None:
        """After a lost connection the server may be another one: its configuration is read again."""
        losses = self.replicas.num_losses
        if losses != self._seen_losses:
            self._seen_losses = losses
            self.book.mark_stale()

    def settle(self, job: Job, options: CallOptions) -> Verdict | ModerationError:
        """What the caller gets for a finished image: its verdict, or the trouble when the call asked to raise."""
        outcome = job.outcome
        assert outcome is not None
        if isinstance(outcome, ModerationError):
            if options.on_error == "raise":
                return outcome
            outcome = error_verdict(
                job.id,
                outcome,
                self.settings.error_decision,
                info=job.info,
                looked=job.views,
                timing=job.timing(),
            )
        self.counts.verdict(outcome)
        self.telemetry.verdict(outcome)
        return outcome

    def stats(self) -> ClientStats:
        """Counts and server states now."""
        return self.counts.snapshot(self._replicas.members if self._replicas else [])
