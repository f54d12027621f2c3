"""One call of the blocking client: decoders and senders are threads, the caller's thread pulls images and hands out verdicts.

The caller's iterable is only ever advanced in the caller's thread (database cursors and the like belong to it); while it
blocks there, images already taken are decoded, sent and judged.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from moderation_client._calls import OtherSpec, decode, judge, needs_preparing, prepare, refuse, taken
from moderation_client._drive import drive
from moderation_client._errors import ClientClosedError, ModerationError
from moderation_client._flow import Flow, Progress
from moderation_client._jobs import Batch, Job
from moderation_client._session import Session
from moderation_client._settings import CallOptions
from moderation_client._sources import Named

T = TypeVar("T")


class Pools:
    """Threads of one client, started when needed."""

    def __init__(self, decode_threads: int, max_in_flight: int) -> None:
        self.decoders = ThreadPoolExecutor(decode_threads, thread_name_prefix="moderation-decode")
        self.senders = ThreadPoolExecutor(max_in_flight, thread_name_prefix="moderation-send")
        self._probes = ThreadPoolExecutor(4, thread_name_prefix="moderation-probe")

    def drive(self, flow: Flow[T]) -> T:
        """Run a flow in this thread."""
        return drive(flow, self._spawn)

    def _spawn(self, flow: Flow[None]) -> None:
        """Run a side flow, a health probe, in a thread; one that fails in any way has said "not healthy" already."""
        self._probes.submit(self.drive, flow)

    def close(self) -> None:
        """Drop what has not begun; what runs ends by itself, a probe within its half second."""
        self.decoders.shutdown(wait=False, cancel_futures=True)
        self.senders.shutdown(wait=False, cancel_futures=True)
        self._probes.shutdown(wait=True, cancel_futures=True)


class ThreadRun:
    """One `moderate` or `moderate_stream`."""

    def __init__(self, session: Session, pools: Pools, options: CallOptions, *, lent: bool) -> None:
        """`lent`: whether an image may change once the next is taken."""
        self._session = session
        self._lent = lent
        self._pools = pools
        self._options = options
        self._window = session.window()
        self._changed = threading.Condition()
        self._broken: BaseException | None = None
        self._stopped = False

    def run(self, items: Iterator[Named]) -> Iterator[Job]:
        """Finished images in order. What `items` raises comes out after everything taken before it.

        After trouble that is not an image's own, no more images are taken in a call that raises.
        """
        trouble: BaseException | None = None
        try:
            while True:
                yield from self._until(lambda: self._window.can_admit)
                if self._window.failed and self._options.on_error == "raise":
                    break
                try:
                    pair = next(items)
                except StopIteration:
                    break
                except Exception as error:  # noqa: BLE001  the caller's own: raised again below, unchanged
                    trouble = error
                    break
                self._admit(pair)
                yield from self._finished()
            yield from self._until(lambda: len(self._window) == 0)
            if trouble is not None:
                raise trouble
        finally:
            self._stopped = True

    def _admit(self, pair: Named) -> None:
        image_id, source = pair
        deadline = self._options.deadline_now()
        source, trouble = taken(self._session, source, deadline, lent=self._lent)
        with self._changed:
            job = self._window.admit(image_id, source, deadline)
            if trouble is not None:
                refuse(self._session, job, trouble)(self._window)
                return
        self._submit(self._pools.decoders, self._decode, job)

    def _submit(self, pool: ThreadPoolExecutor, act: Callable[[Any], None], what: Job | Batch) -> None:
        """Have something done in a thread. Raises ClientClosedError, now or to the caller who waits for it."""
        with self._session.usable():
            pool.submit(act, what).add_done_callback(self._left)

    def _left(self, future: Future[None]) -> None:
        """A closed pool drops what has not begun: nobody must wait for it."""
        if future.cancelled():
            self.abort(ClientClosedError("the client was closed during the call"))

    def _finished(self) -> list[Job]:
        with self._changed:
            if self._broken is not None:
                raise self._broken
            return self._window.pop_finished()

    def _until(self, condition: Any) -> Iterator[Job]:
        """Hand out what finishes until the condition holds."""
        while True:
            yield from self._finished()
            with self._changed:
                if condition():
                    return
                if self._window.has_finished or self._broken is not None:
                    continue
                wake = self._window.next_wake()
                if not self._changed.wait(None if wake is None else max(0.001, wake - time.monotonic())):
                    self._window.expire()
                    self._pump()

    def _decode(self, job: Job) -> None:
        with self._guard():
            try:
                if needs_preparing(self._session):
                    limits = self._session.limits(job.deadline, self._options.timeout_s)
                    self._pools.drive(prepare(self._session, limits))
                tell = decode(self._session, job, self._options)
            except ModerationError as error:
                trouble = error
                tell = lambda window: window.undecoded(job, trouble)  # noqa: E731
            with self._changed:
                tell(self._window)
                self._pump()
                if self._window.needs_caller:  # waking it for every image would cost more than it gains
                    self._changed.notify_all()

    def _pump(self) -> None:
        """Send what can be sent; the lock is held."""
        while not self._stopped and (batch := self._session.next_batch(self._window)) is not None:
            self._submit(self._pools.senders, self._send, batch)

    def _send(self, batch: Batch) -> None:
        with self._guard():
            progress, again = Progress(), list[Job]()
            try:
                tell = self._pools.drive(judge(self._session, batch, self._options, progress))
            except OtherSpec as other:
                with self._changed:
                    again = self._window.undo(batch, other.error)
            except ModerationError as error:
                with self._changed:
                    self._window.broke(batch, error, progress.attempts)
            else:
                with self._changed:
                    tell(self._window)
            for job in again:
                self._submit(self._pools.decoders, self._decode, job)
            with self._changed:
                self._pump()
                self._changed.notify_all()

    def _guard(self) -> _Guard:
        return _Guard(self)

    def abort(self, error: BaseException) -> None:
        """A defect, not a fault: the caller must see it rather than wait for ever."""
        with self._changed:
            self._broken = error
            self._changed.notify_all()


class _Guard:
    """Hands an unexpected exception of a worker thread to the caller."""

    def __init__(self, run: ThreadRun) -> None:
        self._run = run

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if error is not None:
            self._run.abort(error)
        return True
