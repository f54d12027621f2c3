"""The asyncio client: the twin of `ModerationClient`, a thin shell over the same flows; what really differs is in `_tasks`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from moderation_client._adrive import adrive, cancel
from moderation_client._calls import is_ready, prepare, score
from moderation_client._connect import connect_async
from moderation_client._flow import Flow
from moderation_client._jobs import Job
from moderation_client._outcomes import Outcomes
from moderation_client._settings import CallOptions, OnError
from moderation_client._shared import Shared
from moderation_client._sources import ImageId, anamed, lends
from moderation_client._tasks import TaskRun
from moderation_client.contract import ModelSpec
from moderation_client.policy import Policy
from moderation_client.results import Verdict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from moderation_client._sources import AsyncImages

T = TypeVar("T")


class AsyncModerationClient(Shared):
    """The asyncio twin of `ModerationClient`: same names, same parameters, async iterables welcome.

    Belongs to the event loop it is first used in; another loop gets its own connections.
    """

    _connect = staticmethod(connect_async)
    _decoders: ThreadPoolExecutor | None = None
    _loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> AsyncModerationClient:
        """Enter the block that closes the client."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it."""
        await self.close()

    async def close(self) -> None:
        """End connections and threads; calls still running fail. Harmless when repeated."""
        if self._decoders is not None:
            self._decoders.shutdown(wait=False, cancel_futures=True)
            for probe in list(self._side_tasks):
                await cancel(probe)
        for transport in self._session.close():
            await transport.close()

    async def moderate(
        self,
        images: AsyncImages,
        *,
        ids: Iterable[ImageId] | None = None,
        policy: Policy | str | None = None,
        model_version: int | str | None = None,
        timeout_s: float | None = None,
        on_error: OnError = "raise",
    ) -> list[Verdict]:
        """Judge one image or many, in order, under one deadline; see `ModerationClient.moderate`."""
        options = self._session.options(timeout_s, policy, model_version, on_error, per_image=False)
        outcomes = Outcomes(self._session, options)
        try:
            async with contextlib.aclosing(self._run(images, ids, options)) as jobs:
                async for job in jobs:
                    outcomes.add(job)
        except Exception as error:
            outcomes.attach(error)
            raise
        return outcomes.result()

    async def moderate_stream(
        self,
        images: AsyncImages,
        *,
        ids: Iterable[ImageId] | None = None,
        policy: Policy | str | None = None,
        model_version: int | str | None = None,
        timeout_s: float | None = None,
        on_error: OnError = "raise",
    ) -> AsyncIterator[Verdict]:
        """Judge as images come, in order, in bounded memory; see `ModerationClient.moderate_stream`."""
        options = self._session.options(timeout_s, policy, model_version, on_error, per_image=True)
        outcomes = Outcomes(self._session, options)
        async with contextlib.aclosing(self._run(images, ids, options)) as jobs:
            async for job in jobs:
                verdict = outcomes.add(job)
                if verdict is not None:
                    outcomes.forget()
                    yield verdict
        outcomes.result()

    async def score(
        self,
        pixels: NDArray[np.uint8],
        *,
        model_version: int | str | None = None,
        timeout_s: float | None = None,
    ) -> NDArray[np.float32]:
        """Get scores, float32 [N, num_labels], of prepared pixels, uint8 [N, H, W, 3]; see `ModerationClient.score`."""
        import numpy as np  # noqa: PLC0415  keeps `import moderation_client` quick

        limits, version, pixels = self._session.score_call(pixels, model_version, timeout_s)
        await self._drive(prepare(self._session, limits))
        flows = [score(self._session, chunk, version, limits) for chunk in self._session.chunks(pixels)]
        return np.concatenate(await asyncio.gather(*(self._drive(flow) for flow in flows)))

    async def spec(self, *, timeout_s: float | None = None) -> ModelSpec:
        """Describe the model: labels, image size, version. Raises ServiceError or ContractError."""
        await self._drive(prepare(self._session, self._session.limits_in(timeout_s)))
        return self._session.book.current()

    async def is_ready(self, *, timeout_s: float | None = None) -> bool:
        """Ask whether a server answers and has the model loaded; waits no longer than `timeout_s`."""
        return await self._drive(is_ready(self._session, self._session.limits_in(timeout_s)))

    async def _run(
        self, images: Any, ids: Iterable[ImageId] | None, options: CallOptions
    ) -> AsyncGenerator[Job, None]:
        decoders = self._bind()
        run = TaskRun(self._session, decoders, self._slots, options, self._spawn, lent=lends(images))
        async with contextlib.aclosing(run.run(anamed(images, ids))) as jobs:
            async for job in jobs:
                yield job

    async def _drive(self, flow: Flow[T]) -> T:
        self._bind()
        async with self._slots:
            return await adrive(flow, self._spawn)

    def _spawn(self, flow: Flow[None]) -> None:
        """Run a side flow (a health probe) as a task; they are rare and short."""
        task = asyncio.ensure_future(adrive(flow, self._spawn))
        self._side_tasks.add(task)
        task.add_done_callback(self._side_tasks.discard)

    def _bind(self) -> ThreadPoolExecutor:
        """Belong to the running loop and process: another one gets new connections."""
        self._session.check_usable()
        loop = asyncio.get_running_loop()
        if self._decoders is None or self._loop is not loop or self._session.was_forked:
            self._session.reconnect()
            self._loop = loop
            self._slots = asyncio.Semaphore(self._session.settings.max_in_flight)
            self._side_tasks: set[asyncio.Task[None]] = set()
            self._decoders = ThreadPoolExecutor(
                self._session.settings.decode_threads, thread_name_prefix="moderation-decode"
            )
        return self._decoders
