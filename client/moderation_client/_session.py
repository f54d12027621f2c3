"""What both clients share: settings, servers, specs, policies, counts, and every step between an image and its verdict as a flow.

No I/O happens here. The two shells drive these flows, one with threads, one with asyncio.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from moderation_client._errors import (
    BadArrayError,
    ClientClosedError,
    ContractError,
    InvalidImageError,
    ModerationError,
)
from moderation_client._faults import Fault
from moderation_client._flow import Flow, Limits, Progress, call
from moderation_client._judging import JudgedView, error_verdict, judge_view
from moderation_client._policies import PolicyBook, PolicyFile, PolicySource, policy_for
from moderation_client._protocol import (
    ConfigRequest,
    HealthRequest,
    InferReply,
    InferRequest,
    Tensor,
    scores_of,
)
from moderation_client._replicas import Replica, Replicas
from moderation_client._spec import SpecBook
from moderation_client._stats import ClientStats, Counts
from moderation_client._transports import Connection
from moderation_client._urls import Url, parse_urls, resolve
from moderation_client._window import Batch, Job, Window
from moderation_client.contract import IMAGE_INPUT, SCORES_OUTPUT, ModelSpec
from moderation_client.policy import Decision, Policy
from moderation_client.results import Verdict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from moderation_client.images import ImageLimits

OnError = Literal["raise", "verdict"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a client was asked to be; checked once, at the door."""

    urls: tuple[Url, ...]
    model: str
    connection: Connection
    limits: ImageLimits | None
    timeout_s: float
    attempt_timeout_s: float
    max_message_bytes: int
    max_in_flight: int
    decode_threads: int
    error_decision: Decision
    retry_overload: bool
    resolve_names: bool
    priority: int

    def __post_init__(self) -> None:
        """Check the values. Raises ValueError that names the parameter."""
        for name in (
            "timeout_s",
            "attempt_timeout_s",
            "max_message_bytes",
            "max_in_flight",
            "decode_threads",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}")
        if self.error_decision is Decision.ALLOW:
            raise ValueError(
                "error_decision must be REVIEW or BLOCK: an image that was not judged is never allowed"
            )


@dataclass(frozen=True, kw_only=True)
class CallOptions:
    """What one call chose."""

    timeout_s: float
    deadline: float | None
    """On the monotonic clock; None when every image has its own."""
    policy: Policy | PolicyFile | None
    version: str
    on_error: OnError

    def deadline_now(self) -> float:
        """Deadline of an image that is taken now."""
        return self.deadline if self.deadline is not None else time.monotonic() + self.timeout_s


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What came of a batch."""

    views: list[JudgedView]
    progress: Progress


class OtherSpec(Exception):  # noqa: N818  a signal inside the client, never seen by users
    """The version that answered wants pictures prepared differently: these scores must not be used."""

    def __init__(self, error: ContractError) -> None:
        super().__init__(str(error))
        self.error = error


class Session:
    """State and flows of one client."""

    def __init__(
        self,
        settings: Settings,
        policy: PolicySource | Mapping[str, PolicySource] | None,
        spec: ModelSpec | None,
        max_batch: int | None,
        connect: Callable[[Url, Connection], Any],
    ) -> None:
        """Nothing is connected yet. Raises PolicyError for a policy that cannot be read."""
        self.settings = settings
        self.policies = PolicyBook(policy)
        self.book = SpecBook(spec, max_batch)
        self.counts = Counts()
        self.closed = False
        self._connect = connect
        self._replicas: Replicas | None = None
        self._seen_losses = 0
        self._has_answered = False
        self._pid = os.getpid()

    @property
    def replicas(self) -> Replicas:
        """The servers, connected on first use. Raises ClientClosedError."""
        self.check_usable()
        if self._replicas is None:
            urls = self.settings.urls
            if self.settings.resolve_names:
                urls = tuple(found for url in urls for found in resolve(url))
            self._replicas = Replicas(
                [Replica(url, self._connect(url, self.settings.connection)) for url in urls]
            )
        return self._replicas

    def check_usable(self) -> None:
        """Raises ClientClosedError after `close`."""
        if self.closed:
            raise ClientClosedError("the client was closed; make a new one")

    @property
    def was_forked(self) -> bool:
        """Whether this process inherited the client from its parent: its connections and threads are not ours."""
        return self._pid != os.getpid()

    def reconnect(self) -> None:
        """Forget connections that belong to another process or event loop, without touching them."""
        self._replicas = None
        self._pid = os.getpid()

    def close(self) -> list[Any]:
        """Refuse further calls; the transports that the shell must close."""
        self.closed = True
        members = self._replicas.members if self._replicas is not None and not self.was_forked else []
        return [each.transport for each in members]

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
        return CallOptions(
            timeout_s=chosen_s,
            deadline=None if per_image else time.monotonic() + chosen_s,
            policy=self.policies.select(policy),
            version="" if model_version is None else str(model_version),
            on_error=on_error,
        )

    def limits(self, deadline: float, timeout_s: float) -> Limits:
        """Bounds for one request."""
        return Limits(
            deadline=deadline,
            timeout_s=timeout_s,
            attempt_timeout_s=self.settings.attempt_timeout_s,
            retry_overload=self.settings.retry_overload,
            patient=self._has_answered,
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
        return Window(max_in_flight=self.settings.max_in_flight, read_ahead=2 * self.settings.decode_threads)

    def next_batch(self, window: Window) -> Batch | None:
        """What to send now."""
        return window.next_batch(self.book.max_batch, self.settings.max_message_bytes)

    def prepare(self, limits: Limits) -> Flow[None]:
        """Read the model's configuration if nobody has. Raises ModerationError."""
        if self.book.needs_reading:
            config = yield from call(
                self.replicas, ConfigRequest(model=self.settings.model), limits, Progress()
            )
            self.book.learn(config)

    def is_ready(self, limits: Limits) -> Flow[bool]:
        """Ask whether some server has the model loaded."""
        try:
            ready = yield from call(
                self.replicas, HealthRequest(model=self.settings.model), limits, Progress()
            )
        except (Fault, ModerationError):
            return False
        return bool(ready)

    def infer(
        self, tensor: Tensor, version: str, limits: Limits, progress: Progress
    ) -> Flow[tuple[InferReply, ModelSpec]]:
        """Send one batch; the answer comes with the spec of the version that gave it. Raises ModerationError."""
        parameters = {"priority": self.settings.priority} if self.settings.priority else {}
        request = InferRequest(
            model=self.settings.model,
            version=version,
            tensor=tensor,
            outputs=(SCORES_OUTPUT,),
            parameters=parameters,
        )
        try:
            reply = yield from call(self.replicas, request, limits, progress)
            if self.replicas.num_losses != self._seen_losses:
                self._seen_losses = self.replicas.num_losses
                self.book.mark_stale()
            if not self.book.knows(reply.model_version):
                config = ConfigRequest(model=self.settings.model)
                self.book.learn((yield from call(self.replicas, config, limits, Progress())))
            spec = self.book.spec(reply.model_version)
        except ModerationError as error:
            self.counts.request(progress.attempts, type(error).__name__)
            raise
        self.counts.request(progress.attempts)
        self._has_answered = True
        return reply, spec

    def judge(self, batch: Batch, options: CallOptions, progress: Progress) -> Flow[list[JudgedView]]:
        """Get a batch judged: one view after the other, in its order. Raises ModerationError or OtherSpec."""
        limits = self.limits(batch.deadline, options.timeout_s)
        image_spec = batch.parts[0].job.image_spec
        chunks = tuple(memoryview(part.pixels[part.start : part.stop]).cast("B") for part in batch.parts)
        tensor = pixel_tensor(chunks, batch.num_views, batch.parts[0].pixels.shape[1:])
        reply, spec = yield from self.infer(tensor, options.version, limits, progress)
        if spec.image != image_spec:
            raise OtherSpec(
                ContractError(
                    f"version {reply.model_version} wants pictures as {spec.image}, not {image_spec}"
                )
            )
        scores = scores_of(reply, SCORES_OUTPUT, (batch.num_views, len(spec.labels)))
        policy = policy_for(options.policy, self.book.policy(reply.model_version), spec.labels)
        places = (place for part in batch.parts for place in range(part.start, part.stop))
        return [
            judge_view(place, row, spec, reply.model_version, policy)
            for place, row in zip(places, scores, strict=True)
        ]

    def score(self, pixels: NDArray[np.uint8], version: str, limits: Limits) -> Flow[NDArray[np.float32]]:
        """Scores, float32 [N, num_labels], of prepared pixels, uint8 [N, H, W, 3]; N at most the server's batch."""
        tensor = pixel_tensor((memoryview(pixels.data).cast("B"),), len(pixels), pixels.shape[1:])
        reply, spec = yield from self.infer(tensor, version, limits, Progress())
        return scores_of(reply, SCORES_OUTPUT, (len(pixels), len(spec.labels)))

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
        return outcome

    def decode(self, job: Job, options: CallOptions) -> Callable[[Window], None]:
        """Decode one image, in a decoder thread; the answer tells the window, under the shell's lock.

        Raises ContractError when no spec says how.
        """
        from moderation_client import images  # noqa: PLC0415  loads Pillow and numpy

        started, source = time.monotonic(), job.source
        if job.outcome is not None:
            return lambda window: window.dropped()
        spec = self.book.current(options.version).image
        try:
            decoded = images.decode(source, spec, self.settings.limits or images.DEFAULT_LIMITS)
        except InvalidImageError as error:
            verdict = error_verdict(job.id, error, self.settings.error_decision, timing=job.timing())
            return lambda window: window.refused(job, verdict)
        decode_s = time.monotonic() - started
        return lambda window: window.decoded(job, decoded, spec, decode_s)

    def stats(self) -> ClientStats:
        """Counts and server states now."""
        return self.counts.snapshot(self._replicas.members if self._replicas else [])


def pixel_tensor(chunks: Sequence[memoryview], num_views: int, shape: tuple[int, ...]) -> Tensor:
    """The model's input from pieces of prepared pixels."""
    return Tensor(name=IMAGE_INPUT, datatype="UINT8", shape=(num_views, *shape), chunks=tuple(chunks))


def build_settings(
    urls: str | Sequence[str],
    *,
    headers: Mapping[str, str] | None,
    token: str | Callable[[], str] | None,
    ca_file: str | None,
    cert_file: str | None,
    key_file: str | None,
    keepalive_s: float,
    decode_threads: int | None,
    max_in_flight: int,
    **rest: Any,
) -> Settings:
    """Settings from the constructor's parameters. Raises ValueError."""
    connection = Connection(
        headers=headers or {},
        token=token,
        ca_file=ca_file,
        cert_file=cert_file,
        key_file=key_file,
        keepalive_s=keepalive_s,
        max_in_flight=max_in_flight,
    )
    return Settings(
        urls=parse_urls(urls),
        connection=connection,
        decode_threads=min(8, os.cpu_count() or 1) if decode_threads is None else decode_threads,
        max_in_flight=max_in_flight,
        **rest,
    )
