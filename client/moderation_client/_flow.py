"""The retry loop, once for every client and transport: a generator that says what to do next and is told what came of it.

A shell performs the effects (send, wait, probe, sleep) with threads or with asyncio; it decides nothing. Retries stay inside
the deadline, go to another replica first, and never repeat what an overloaded server has refused. The last real error is kept.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from moderation_client._errors import (
    DeadlineExceededError,
    ModelNotReadyError,
    ModerationError,
    OverloadedError,
)
from moderation_client._faults import HUNG, Fault, Meaning, Retry, meaning_of
from moderation_client._names import Names
from moderation_client._protocol import HealthRequest, InferRequest, Request
from moderation_client._replicas import Replica, Replicas

logger = logging.getLogger("moderation_client")
T = TypeVar("T")

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0
FEW_ATTEMPTS = 4
PATIENCE_S = 0.4
"""Silence of a replica that owes an answer before it is asked whether the model is ready: one whose process died is loaded anew."""
PROBE_TIMEOUT_S = 0.5
LOOK_UP_S = 5.0
"""Longest look-up of a name whose result is still wanted."""
QUEUE_SHARE = 0.8
"""Part of an attempt's time that the request may wait in the server's queue: an overloaded server then says so in time."""


@dataclass(frozen=True)
class Send:
    """Start a request; the answer is a handle."""

    replica: Replica
    request: Request
    timeout_s: float


@dataclass(frozen=True)
class Wait:
    """Wait for a handle; the answer is the reply, or None when the time has passed. Throws Fault."""

    handle: Any
    timeout_s: float


@dataclass(frozen=True)
class Cancel:
    """Give a handle up."""

    handle: Any


@dataclass(frozen=True)
class Sleep:
    """Do nothing for a while."""

    seconds: float


@dataclass(frozen=True)
class Spawn:
    """Run another flow beside this one and forget it."""

    flow: Flow[None]


@dataclass(frozen=True)
class Run:
    """Run a function that blocks, where that holds nothing up; the answer is its result, or None when it takes too long."""

    act: Callable[[], Any]
    timeout_s: float


@dataclass(frozen=True)
class Close:
    """Close a transport that gets no more requests."""

    transport: Any


Effect = Send | Wait | Cancel | Sleep | Spawn | Run | Close
Flow = Generator[Effect, Any, T]


@dataclass
class Progress:
    """What became of one call so far; filled in as it goes, so that it is there after a failure too."""

    attempts: int = 0
    infer_s: float = 0.0
    replica: Replica | None = None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What bounds one call."""

    deadline: float
    """On the monotonic clock."""
    timeout_s: float
    """What the caller asked for, for the message."""
    attempt_timeout_s: float
    retry_overload: bool = False
    patient: bool = False
    """The model has answered before: `unknown model` means that a server is going down or coming up."""


def call(
    replicas: Replicas,
    request: Request,
    limits: Limits,
    progress: Progress,
    *,
    first: Replica | None = None,
    avoid: Collection[Replica] = (),
) -> Flow[Any]:
    """Get one answer, whatever it takes within the deadline; `first` is asked first, if it is well, and those to `avoid` last.

    Raises the ModerationError that the last real fault means; the fault is its cause.
    """
    last: Fault | None = None
    tried = set(avoid)
    while True:
        if (left := limits.deadline - time.monotonic()) <= 0:
            raise expired(limits, last, progress)
        yield from look_after(replicas, left)
        replica = progress.replica = replicas.choose(tried, None if progress.attempts else first)
        progress.attempts += 1
        started = time.monotonic()
        try:
            reply = yield from attempt(replicas, replica, request, min(left, limits.attempt_timeout_s))
            replicas.answered(replica)
            progress.infer_s = time.monotonic() - started
            return reply
        except Fault as fault:
            meaning = judge_fault(replicas, replica, fault)
            if not may_retry(meaning, progress.attempts, limits):
                raise meaning.error(_sentence(fault, progress)) from fault
            logger.info("%s: trying again: %s", replica.url, fault)
            last = fault if last is None or meaning.error is not DeadlineExceededError else last
        finally:
            replicas.release(replica)
        tried.add(replica)
        if len(tried) >= len(replicas.members):
            tried = set()
            yield Sleep(max(0.0, min(pause_s(progress.attempts), limits.deadline - time.monotonic())))


def look_after(replicas: Replicas, left_s: float) -> Flow[None]:
    """Before a request: probe who is due, and look names up; before the first request wait for that. Raises ClientClosedError."""
    replicas.check_open()
    if replicas.names is not None:
        yield from follow_names(replicas, replicas.names, min(left_s, LOOK_UP_S))
    for due in replicas.due_for_probe():
        yield Spawn(probe(replicas, due))


def follow_names(replicas: Replicas, names: Names, timeout_s: float) -> Flow[None]:
    """Use the addresses that were found, and look again when it is time; what takes too long is used by a later call."""
    if names.claim(replicas.num_losses):
        if names.is_first:
            yield Run(names.look_up, timeout_s)
        else:
            yield Spawn(look_up(names, timeout_s))
    urls = names.take()
    for gone in replicas.renew(urls) if urls else ():
        yield Close(gone.transport)


def look_up(names: Names, timeout_s: float) -> Flow[None]:
    """Look names up beside the calls."""
    yield Run(names.look_up, timeout_s)


def judge_fault(replicas: Replicas, replica: Replica, fault: Fault) -> Meaning:
    """Look a fault up and hold it against the replica if it is the replica's. Raises ClientClosedError."""
    replicas.check_open()
    meaning = meaning_of(fault)
    if meaning.ejects or meaning.counts:
        replicas.failed(replica, fault, meaning)
    elif meaning.error is not DeadlineExceededError:
        replicas.heard(replica)
    return meaning


def attempt(replicas: Replicas, replica: Replica, request: Request, timeout_s: float) -> Flow[Any]:
    """One try at one replica, given up early when the replica is silent, fails a health check and another could do it.

    Raises Fault.
    """
    handle = yield Send(replica, _with_queue_timeout(request, timeout_s), timeout_s)
    end, hung = time.monotonic() + timeout_s, False
    while True:
        try:
            reply = yield Wait(handle, max(0.0, min(PATIENCE_S, end - time.monotonic())))
        except Fault as fault:
            if hung and fault.status == "DEADLINE_EXCEEDED":
                raise _hung(replica) from fault
            raise
        if reply is not None:
            return reply
        if not hung and not replica.ejected and replica.silent_s() >= PATIENCE_S:
            left_s = min(PROBE_TIMEOUT_S, end - time.monotonic())
            hung = not (yield from is_alive(replicas, replica, left_s, request.model))
        given_up = (hung or replica.ejected) and replicas.has_other(replica)
        if given_up or time.monotonic() >= end:
            reply = yield Wait(handle, 0.0)
            if reply is not None:
                return reply
            yield Cancel(handle)
            if hung or given_up:
                raise _hung(replica)
            raise Fault("DEADLINE_EXCEEDED", f"no answer within {timeout_s:.3g} s")


def _hung(replica: Replica) -> Fault:
    return Fault(HUNG, f"{replica.url.address} took the request and stopped answering")


def is_alive(replicas: Replicas, replica: Replica, timeout_s: float, model: str = "") -> Flow[bool]:
    """Ask whether the server answers, or whether it has this model ready. Being refused is an answer: somebody is there."""
    handle = yield Send(replica, HealthRequest(model=model), max(timeout_s, 0.01))
    try:
        reply = yield Wait(handle, max(timeout_s, 0.01))
    except Fault as fault:
        meaning = meaning_of(fault)
        alive = not meaning.ejects and meaning.error is not DeadlineExceededError
        if alive:
            replicas.heard(replica)
        return alive
    if reply is None:
        yield Cancel(handle)
        return False
    replicas.heard(replica)
    return bool(reply)


def probe(replicas: Replicas, replica: Replica) -> Flow[None]:
    """Find out whether an ejected replica may have a trial request."""
    healthy = False
    try:
        with contextlib.suppress(ModerationError):  # no token: a call will say so
            healthy = yield from is_alive(replicas, replica, PROBE_TIMEOUT_S)
    finally:
        replicas.probed(replica, healthy=healthy)


def pause_s(attempts: int) -> float:
    """Back-off before the next round: doubling, with full jitter above half."""
    longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(attempts - 1, 10))
    return longest * (0.5 + 0.5 * random.random())


def expired(limits: Limits, last: Fault | None, progress: Progress) -> ModerationError:
    """Error for a deadline that passed: what really went wrong, if anything did."""
    if last is None:
        return DeadlineExceededError(f"no verdict within {limits.timeout_s:.3g} s")
    error = meaning_of(last).error(f"{_sentence(last, progress)}; gave up after {limits.timeout_s:.3g} s")
    error.__cause__ = last
    return error


def may_retry(meaning: Meaning, attempts: int, limits: Limits) -> bool:
    """Whether another try is allowed after a fault of this meaning."""
    if meaning.retry is Retry.NEVER:
        return limits.retry_overload and meaning.error is OverloadedError
    if meaning.retry is Retry.UNTIL_DEADLINE or attempts < FEW_ATTEMPTS:
        return True
    return limits.patient and meaning.error is ModelNotReadyError


def _sentence(fault: Fault, progress: Progress) -> str:
    tries = f" (after {progress.attempts} attempts)" if progress.attempts > 1 else ""
    return f"{progress.replica.url if progress.replica else '?'}: {fault.message or fault.status}{tries}"


def _with_queue_timeout(request: Request, timeout_s: float) -> Request:
    """The server need not keep what nobody waits for."""
    if not isinstance(request, InferRequest):
        return request
    timeout_us = max(1, int(timeout_s * QUEUE_SHARE * 1e6))
    return replace(request, parameters={**request.parameters, "timeout": timeout_us})
