"""Every step between an image and its verdict, as flows and pure functions on a session; the shells only perform them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from moderation_client._encoded import judge_files, read_encoded_config, read_file
from moderation_client._errors import (
    ContractError,
    DeadlineExceededError,
    InvalidImageError,
    ModerationError,
)
from moderation_client._faults import is_wrong_shape
from moderation_client._flow import Flow, Limits, Progress, call
from moderation_client._jobs import Batch, Job
from moderation_client._judging import JudgedView, error_verdict, judge_view
from moderation_client._policies import policy_for
from moderation_client._protocol import (
    ConfigRequest,
    HealthRequest,
    InferReply,
    InferRequest,
    Tensor,
    scores_of,
)
from moderation_client._replicas import Replica
from moderation_client._session import Session
from moderation_client._settings import CallOptions
from moderation_client._window import Window
from moderation_client.contract import IMAGE_INPUT, SCORES_OUTPUT, ModelSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Tell = Callable[[Window], None]
"""What a finished step says to the window, under the shell's lock."""


class OtherSpec(Exception):  # noqa: N818  a signal inside the client, never seen by users
    """The version that answered wants pictures prepared differently: these scores must not be used."""

    def __init__(self, error: ContractError) -> None:
        super().__init__(str(error))
        self.error = error


def needs_preparing(session: Session) -> bool:
    """Whether the model's configuration must be read before an image can be prepared."""
    return session.book.needs_reading


def prepare(session: Session, limits: Limits) -> Flow[None]:
    """Read the model's configuration if nobody has. Raises ModerationError."""
    if session.book.needs_reading:
        yield from read_config(session, limits)


def read_config(session: Session, limits: Limits, first: Replica | None = None) -> Flow[None]:
    """Read the model's configuration, from `first` if it is well. Raises ModerationError."""
    request, progress = ConfigRequest(model=session.settings.model), Progress()
    config = yield from call(session.replicas, request, limits, progress, first=first)
    if session.settings.decode == "server":
        session.book.learn_limit(read_encoded_config(config))
        return
    for spec in session.book.learn(config):
        session.telemetry.model(spec)
        if progress.replica is not None:
            session.replicas.wants(progress.replica, spec.image)


def is_ready(session: Session, limits: Limits) -> Flow[bool]:
    """Ask whether some server has the model loaded."""
    request = HealthRequest(model=session.settings.model)
    try:
        ready = yield from call(session.replicas, request, limits, Progress())
    except ModerationError:
        return False
    return bool(ready)


def taken(
    session: Session, source: Any, deadline: float, *, lent: bool
) -> tuple[Any, ModerationError | None]:
    """What to keep of a source, or why there is nothing to decode: it cannot be read, or the time is over."""
    if time.monotonic() >= deadline:
        return None, _too_late()
    try:
        return secure(session, source, lent=lent), None
    except InvalidImageError as error:
        return None, error


def secure(session: Session, source: Any, *, lent: bool) -> Any:
    """Take over what belongs to the caller's next step: an open file, a buffer, or a PIL image that depends on one.

    A generator may close its file as soon as it is asked for the next image, and refill an array or image that it has
    `lent`. Raises InvalidImageError.
    """
    if not lent and not isinstance(source, bytearray | memoryview) and not has_file(source):
        return source
    if isinstance(source, str | bytes | os.PathLike):
        return source
    from moderation_client import images  # noqa: PLC0415  loads Pillow and numpy
    from moderation_client._image_source import Encoded, own, read_source  # noqa: PLC0415  likewise

    content = read_source(source, session.settings.limits or images.DEFAULT_LIMITS)
    if isinstance(content, Encoded):
        return content.data
    return own(content) if lent else source


def has_file(source: Any) -> bool:
    return hasattr(source, "read") or (hasattr(source, "fp") and hasattr(source, "load"))


def refuse(session: Session, job: Job, error: ModerationError) -> Tell:
    """An image that is not even decoded: by its own fault, or because it is too late."""
    if not isinstance(error, InvalidImageError):
        return lambda window: window.undecoded(job, error)
    error.index = job.index
    verdict = error_verdict(job.id, error, session.settings.error_decision, timing=job.timing())
    return lambda window: window.refused(job, verdict)


def _too_late() -> DeadlineExceededError:
    return DeadlineExceededError("the deadline passed before the image was decoded")


def decode(session: Session, job: Job, options: CallOptions) -> Tell:
    """Get one image ready to be sent, in a decoder thread.

    Raises ContractError when no spec says how, DeadlineExceededError without decoding when it is too late.
    """
    from moderation_client import images  # noqa: PLC0415  loads Pillow and numpy

    started, source = time.monotonic(), job.source
    if job.outcome is not None:
        return lambda window: window.dropped()
    if started >= job.deadline:
        raise _too_late()
    limits = session.settings.limits or images.DEFAULT_LIMITS
    try:
        if session.settings.decode == "server":
            content, job.incomplete = read_file(source, limits)
            took_s = time.monotonic() - started
            return lambda window: window.prepared(job, content, 1, len(content), None, took_s)
        spec = session.image_spec(options.version)
        decoded = images.decode(source, spec, limits)
    except InvalidImageError as error:
        return refuse(session, job, error)
    decode_s = time.monotonic() - started
    return lambda window: window.decoded(job, decoded, spec, decode_s)


def infer(
    session: Session,
    request: InferRequest,
    limits: Limits,
    progress: Progress,
    context: Any = None,
    avoid: Collection[Replica] = (),
) -> Flow[InferReply]:
    """Send one batch, counted and traced, to those to `avoid` only when nobody else is well. Raises ModerationError."""
    trace = session.telemetry.request(context, request.model, request.tensor.shape[0])
    request = session.with_extras(request, trace.headers)
    try:
        reply: InferReply = yield from call(session.replicas, request, limits, progress, avoid=avoid)
    except ModerationError as error:
        session.counts.request(progress.attempts, type(error).__name__)
        trace.end(progress.attempts, error)
        raise
    session.counts.request(progress.attempts)
    trace.end(progress.attempts, None, version=reply.model_version)
    session.has_answered = True
    return reply


def spec_of(session: Session, reply: InferReply, limits: Limits, progress: Progress) -> Flow[ModelSpec]:
    """Spec of the version that answered; the configuration of the replica that did is read for one that is new.

    Raises ModerationError.
    """
    session.note_losses()
    if not session.book.knows(reply.model_version):
        yield from read_config(session, limits, progress.replica)
    return session.book.spec(reply.model_version)


def pixel_request(
    session: Session, chunks: Sequence[memoryview], num_views: int, shape: tuple[int, ...], version: str
) -> InferRequest:
    """Request for the scores of prepared pixels, which lie in `chunks` one behind the other."""
    tensor = Tensor(name=IMAGE_INPUT, datatype="UINT8", shape=(num_views, *shape), chunks=tuple(chunks))
    return InferRequest(
        model=session.settings.model, version=version, tensor=tensor, outputs=(SCORES_OUTPUT,)
    )


def judge(session: Session, batch: Batch, options: CallOptions, progress: Progress) -> Flow[Tell]:
    """Get a batch judged. Raises ModerationError or OtherSpec."""
    limits = session.limits(batch.deadline, options.timeout_s)
    if session.settings.decode == "server":
        outcomes = yield from judge_files(session, batch, options, limits, progress, infer)
        return lambda window: window.settled(batch, outcomes)
    views = yield from judge_pixels(session, batch, options, limits, progress)
    return lambda window: window.answered(batch, views, progress.attempts, progress.infer_s)


def judge_pixels(
    session: Session, batch: Batch, options: CallOptions, limits: Limits, progress: Progress
) -> Flow[list[JudgedView]]:
    """One view after the other, in the batch's order. Raises ModerationError or OtherSpec."""
    image_spec = batch.parts[0].image_spec
    chunks = [memoryview(part.pixels[part.start : part.stop]).cast("B") for part in batch.parts]
    shape = batch.parts[0].pixels.shape[1:]
    request = pixel_request(session, chunks, batch.num_views, shape, options.version)
    avoid = () if options.version else session.replicas.unfit(image_spec)
    try:
        reply = yield from infer(session, request, limits, progress, options.context, avoid)
    except ContractError as error:
        if session.book.is_local or options.version or not is_wrong_shape(error.__cause__):
            raise
        yield from read_config(session, limits, progress.replica)
        raise OtherSpec(error) from error
    spec = yield from spec_of(session, reply, limits, progress)
    version = reply.model_version
    if progress.replica is not None and not options.version:
        session.replicas.wants(progress.replica, spec.image)
    if spec.image != image_spec:
        raise OtherSpec(ContractError(f"version {version} wants pictures as {spec.image}, not {image_spec}"))
    scores = scores_of(reply, SCORES_OUTPUT, (batch.num_views, len(spec.labels)))
    policy = policy_for(options.policy, session.book.policy(version), spec.labels)
    places = (place for part in batch.parts for place in range(part.start, part.stop))
    return [
        judge_view(place, row, spec, version, policy)
        for place, row in zip(places, scores.tolist(), strict=True)
    ]


def score(
    session: Session, pixels: NDArray[np.uint8], version: str, limits: Limits
) -> Flow[NDArray[np.float32]]:
    """Scores, float32 [N, num_labels], of prepared pixels, uint8 [N, H, W, 3]; N at most the server's batch.

    In a roll-out to another picture size they go to the replicas that take theirs. Raises ContractError when none does.
    """
    chunks = [memoryview(pixels.data).cast("B")]
    request = pixel_request(session, chunks, len(pixels), pixels.shape[1:], version)
    follows = not version and not session.book.is_local
    progress, refused = Progress(), set[Replica]()
    while True:
        avoid = refused | session.replicas.of_other_size(*pixels.shape[1:3]) if follows else ()
        try:
            reply = yield from infer(session, request, limits, progress, avoid=avoid)
            break
        except ContractError as error:
            replica = progress.replica
            if not follows or replica is None or replica in refused or not is_wrong_shape(error.__cause__):
                raise
            refused.add(replica)
            if refused.issuperset(session.replicas.members):
                raise
            yield from read_config(session, limits, replica)
    spec = yield from spec_of(session, reply, limits, progress)
    if progress.replica is not None and follows:
        session.replicas.wants(progress.replica, spec.image)
    return scores_of(reply, SCORES_OUTPUT, (len(pixels), len(spec.labels)))
