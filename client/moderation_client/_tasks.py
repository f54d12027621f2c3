"""One call of the asyncio client: decoders are threads, requests are tasks, the caller's loop does everything else."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from moderation_client._adrive import adrive, cancel
from moderation_client._calls import (
    OtherSpec,
    decode,
    has_file,
    judge,
    needs_preparing,
    prepare,
    refuse,
    taken,
)
from moderation_client._errors import ClientClosedError, ModerationError
from moderation_client._flow import Flow, Progress
from moderation_client._jobs import Batch, Job
from moderation_client._session import Session
from moderation_client._settings import CallOptions
from moderation_client._sources import ImageId, Named


class TaskRun:
    """One `moderate` or `moderate_stream`."""

    def __init__(
        self,
        session: Session,
        decoders: ThreadPoolExecutor,
        slots: asyncio.Semaphore,
        options: CallOptions,
        spawn: Callable[[Flow[None]], None],
        *,
        lent: bool,
    ) -> None:
        """`lent`: whether an image may change once the next is taken."""
        self._session = session
        self._lent = lent
        self._decoders = decoders
        self._slots = slots
        self._options = options
        self._spawn = spawn
        self._window = session.window()
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken: BaseException | None = None

    async def run(self, items: AsyncIterator[Named]) -> AsyncGenerator[Job, None]:
        """Finished images in order. What `items` raises comes out after everything taken before it.

        After trouble that is not an image's own, no more images are taken in a call that raises. The next image is awaited
        beside the work, so a slow source holds nothing up.
        """
        pull: asyncio.Task[Named] | None = None
        trouble: BaseException | None = None
        more = True
        try:
            while more or len(self._window):
                for job in self._window.pop_finished():
                    yield job
                more = more and not (self._window.failed and self._options.on_error == "raise")
                if more and pull is None and self._window.can_admit:
                    pull = asyncio.ensure_future(_next(items))
                if pull is not None and (pull.done() or not more):
                    more, trouble = await self._take(pull, more)
                    pull = None
                elif more or len(self._window):
                    await self._wait(pull)
            if trouble is not None:
                raise trouble
        finally:
            await self._stop(pull)

    async def _take(self, pull: asyncio.Task[Named], more: bool) -> tuple[bool, BaseException | None]:
        """Admit what was pulled: whether there may be more, and what the source raised."""
        if not more:
            await cancel(pull)
            return False, None
        try:
            image_id, source = pull.result()
        except _EndError:
            return False, None
        except Exception as error:  # noqa: BLE001  the caller's own: raised again at the end, unchanged
            return False, error
        await self._admit(image_id, source)
        return True, None

    async def _admit(self, image_id: ImageId, source: Any) -> None:
        deadline = self._options.deadline_now()
        take = functools.partial(taken, self._session, source, deadline, lent=self._lent)
        if has_file(source):  # read in a thread: behind a file object there may be a slow disk or a network
            source, trouble = await asyncio.get_running_loop().run_in_executor(self._decoders, take)
        else:
            source, trouble = take()
        job = self._window.admit(image_id, source, deadline)
        if trouble is not None:
            refuse(self._session, job, trouble)(self._window)
        else:
            self._start(self._decode(job))

    async def _wait(self, pull: asyncio.Task[Named] | None) -> None:
        """Until something happens: an image comes, a request ends, a deadline passes."""
        if self._broken is not None:
            raise self._broken
        if self._window.has_finished:
            return
        wake = self._window.next_wake()
        timeout = None if wake is None else max(0.001, wake - time.monotonic())
        self._changed.clear()
        changed = asyncio.ensure_future(self._changed.wait())
        waited: set[asyncio.Future[Any]] = {changed} if pull is None else {changed, pull}
        done, _ = await asyncio.wait(waited, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        changed.cancel()
        if not done:
            self._window.expire()
            self._pump()

    async def _decode(self, job: Job) -> None:
        loop = asyncio.get_running_loop()
        try:
            if needs_preparing(self._session):
                limits = self._session.limits(job.deadline, self._options.timeout_s)
                await adrive(prepare(self._session, limits), self._spawn)
            tell = await loop.run_in_executor(self._decoders, decode, self._session, job, self._options)
        except ModerationError as error:
            self._window.undecoded(job, error)
        else:
            tell(self._window)
        self._pump()

    def _pump(self) -> None:
        """Send what can be sent."""
        while (batch := self._session.next_batch(self._window)) is not None:
            self._start(self._send(batch))
        self._changed.set()

    async def _send(self, batch: Batch) -> None:
        progress = Progress()
        try:
            async with self._slots:
                tell = await adrive(judge(self._session, batch, self._options, progress), self._spawn)
        except OtherSpec as other:
            for job in self._window.undo(batch, other.error):
                self._start(self._decode(job))
        except ModerationError as error:
            self._window.broke(batch, error, progress.attempts)
        else:
            tell(self._window)
        self._pump()

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A defect, not a fault: the caller must see it rather than wait for ever."""
        self._tasks.discard(task)
        broken = None if task.cancelled() else task.exception()
        if self._session.closed and (task.cancelled() or isinstance(broken, RuntimeError)):
            broken = ClientClosedError("the client was closed during the call")
        if broken is not None:
            self._broken = broken
            self._changed.set()

    async def _stop(self, pull: asyncio.Task[Named] | None) -> None:
        """The caller has enough, or was cancelled: nothing of this call stays behind."""
        tasks = [*self._tasks, *([pull] if pull is not None else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)


class _EndError(Exception):
    """The source is exhausted (StopAsyncIteration cannot come out of a task)."""


async def _next(items: AsyncIterator[Named]) -> Named:
    try:
        return await items.__anext__()
    except StopAsyncIteration:
        raise _EndError from None
