"""The two clients: thin shells with the same names and parameters, one for threads and one for asyncio.

Everything they decide is in the session and its flows. `_threads` and `_tasks` hold what really differs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from moderation_client._connect import connect_async, connect_blocking
from moderation_client._drive import adrive, drive, spawn_thread
from moderation_client._flow import Flow
from moderation_client._outcomes import Outcomes
from moderation_client._policies import PolicySource
from moderation_client._session import CallOptions, OnError, Session, build_settings
from moderation_client._sources import ImageId, anamed, named
from moderation_client._stats import ClientStats
from moderation_client._tasks import TaskRun
from moderation_client._threads import Pools, ThreadRun
from moderation_client._window import Job
from moderation_client.contract import MODEL_NAME, ModelSpec
from moderation_client.policy import Decision, Policy
from moderation_client.results import Verdict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self

    from moderation_client._sources import AsyncImages, Images
    from moderation_client.images import ImageLimits


T = TypeVar("T")


class _Shared:
    """Construction and what needs no I/O."""

    _connect: Callable[..., Any]

    def __init__(
        self,
        urls: str | Sequence[str] = "localhost:8001",
        *,
        policy: PolicySource | Mapping[str, PolicySource] | None = None,
        spec: ModelSpec | str | os.PathLike[str] | None = None,
        model: str = MODEL_NAME,
        timeout_s: float = 30.0,
        attempt_timeout_s: float = 10.0,
        limits: ImageLimits | None = None,
        error_decision: Decision = Decision.REVIEW,
        max_in_flight: int = 32,
        max_batch: int | None = None,
        max_message_bytes: int = 32 * 1024 * 1024,
        decode_threads: int | None = None,
        retry_overload: bool = False,
        priority: int = 0,
        headers: Mapping[str, str] | None = None,
        token: str | Callable[[], str] | None = None,
        ca_file: str | None = None,
        cert_file: str | None = None,
        key_file: str | None = None,
        keepalive_s: float = 30.0,
        resolve_names: bool = False,
    ) -> None:
        """Nothing is connected until the first call.

        `urls`: one or several of `host:port`, `grpc://`, `grpcs://` (TLS), `http://`, `https://` (extra `http`); requests go
        to the least busy server that answers. `resolve_names` looks every address behind a name up and balances over them.
        `policy`: a Policy, a policy file (read again when it changes), or several by name, of which a call picks one;
        without it the server's recommended policy decides. `spec`: a ModelSpec or its file, instead of the server's.
        `timeout_s`: default deadline of a call. `attempt_timeout_s`: longest wait for one try. `error_decision`: REVIEW or
        BLOCK, for images that could not be judged. `max_in_flight` requests at once. `max_batch`: at most the server's.
        `priority`: Triton's level, 1 is the highest. `token`: bearer token, or a function that returns the current one.
        Raises ValueError for a parameter that makes no sense, PolicyError or ContractError for an unusable file.
        """
        settings = build_settings(
            urls,
            model=model,
            timeout_s=timeout_s,
            attempt_timeout_s=attempt_timeout_s,
            limits=limits,
            error_decision=error_decision,
            max_in_flight=max_in_flight,
            max_message_bytes=max_message_bytes,
            decode_threads=decode_threads,
            retry_overload=retry_overload,
            priority=priority,
            headers=headers,
            token=token,
            ca_file=ca_file,
            cert_file=cert_file,
            key_file=key_file,
            keepalive_s=keepalive_s,
            resolve_names=resolve_names,
        )
        self._session = Session(settings, policy, _spec_of(spec), max_batch, type(self)._connect)

    def stats(self) -> ClientStats:
        """Count what the client did, and describe its servers as they are now."""
        return self._session.stats()


def _spec_of(spec: ModelSpec | str | os.PathLike[str] | None) -> ModelSpec | None:
    if spec is None or isinstance(spec, ModelSpec):
        return spec
    return ModelSpec.from_json(Path(spec).read_bytes())


class ModerationClient(_Shared):
    """Asks a moderation service for decisions; for threads, may be shared by any number of them.

    A forked child gets its own connections on first use; close the client, or leave its `with` block, when done.
    """

    _connect = staticmethod(connect_blocking)
    _pools: Pools | None = None

    def __enter__(self) -> Self:
        """Enter the block that closes the client."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """End connections and threads; calls still running fail. Harmless when repeated."""
        if self._pools is not None:
            self._pools.close()
        for transport in self._session.close():
            transport.close()

    def moderate(
        self,
        images: Images,
        *,
        ids: Iterable[ImageId] | None = None,
        policy: Policy | str | None = None,
        model_version: int | str | None = None,
        timeout_s: float | None = None,
        on_error: OnError = "raise",
    ) -> list[Verdict]:
        """Judge one image or many, in order, under one deadline of `timeout_s`.

        `images`: a path, bytes, a binary file object, a PIL image or an array, or any iterable of these or of (id, image)
        pairs. `policy`: a Policy or the name of one of the client's. `model_version` pins a version.

        A broken image gets a verdict with `error`, never ALLOW. Trouble that is not an image's own raises ServiceError,
        ContractError or PolicyError, each carrying the `verdicts` reached; with `on_error="verdict"` such images get a
        verdict with `error` too. What the iterable itself raises is raised unchanged, with `verdicts` set on it.
        """
        options = self._session.options(timeout_s, policy, model_version, on_error, per_image=False)
        outcomes = Outcomes(self._session, options)
        try:
            for job in self._run(images, ids, options):
                outcomes.add(job)
        except Exception as error:
            outcomes.attach(error)
            raise
        return outcomes.result()

    def moderate_stream(
        self,
        images: Images,
        *,
        ids: Iterable[ImageId] | None = None,
        policy: Policy | str | None = None,
        model_version: int | str | None = None,
        timeout_s: float | None = None,
        on_error: OnError = "raise",
    ) -> Iterator[Verdict]:
        """Judge as images come, in order, in bounded memory however many images; a deadline for each image.

        Parameters as for `moderate`. The iterable is advanced in the calling thread, as far ahead as memory allows. When
        it raises, the verdicts for what came before are yielded first. Trouble that is not an image's own raises when its
        image's turn comes; `verdicts` of the error begins at that image.
        """
        options = self._session.options(timeout_s, policy, model_version, on_error, per_image=True)
        outcomes = Outcomes(self._session, options)
        for job in self._run(images, ids, options):
            verdict = outcomes.add(job)
            if verdict is not None:
                outcomes.forget()
                yield verdict
        outcomes.result()

    def score(
        self,
        pixels: NDArray[np.uint8],
        *,
        model_version: int | str | None = None,
        timeout_s: float | None = None,
    ) -> NDArray[np.float32]:
        """Get scores, float32 [N, num_labels], of prepared pixels, uint8 [N, H, W, 3] RGB as `images.decode` makes them.

        No decision is taken. More than the server's batch are sent in several requests. Raises BadArrayError for another
        shape or dtype, ServiceError and ContractError as `moderate` does.
        """
        import numpy as np  # noqa: PLC0415  keeps `import moderation_client` quick

        limits, version, pixels = self._session.score_call(pixels, model_version, timeout_s)
        drive(self._session.prepare(limits), spawn_thread)
        flows = [self._session.score(chunk, version, limits) for chunk in self._session.chunks(pixels)]
        if len(flows) == 1:
            return drive(flows[0], spawn_thread)
        return np.concatenate(
            list(self._threads().senders.map(lambda flow: drive(flow, spawn_thread), flows))
        )

    def spec(self, *, timeout_s: float | None = None) -> ModelSpec:
        """Describe the model: labels, image size, version. Raises ServiceError or ContractError."""
        drive(self._session.prepare(self._session.limits_in(timeout_s)), spawn_thread)
        return self._session.book.current()

    def is_ready(self, *, timeout_s: float | None = None) -> bool:
        """Ask whether a server answers and has the model loaded; waits no longer than `timeout_s`."""
        return drive(self._session.is_ready(self._session.limits_in(timeout_s)), spawn_thread)

    def _run(self, images: Any, ids: Iterable[ImageId] | None, options: CallOptions) -> Iterator[Job]:
        return ThreadRun(self._session, self._threads(), options).run(named(images, ids))

    def _threads(self) -> Pools:
        self._session.check_usable()
        if self._pools is None or self._session.was_forked:
            self._session.reconnect()
            self._pools = Pools(self._session.settings.decode_threads, self._session.settings.max_in_flight)
        return self._pools


class AsyncModerationClient(_Shared):
    """The asyncio twin of `ModerationClient`: same names, same parameters, async iterables welcome.

    Belongs to the event loop it is first used in; another loop gets its own connections.
    """

    _connect = staticmethod(connect_async)
    _decoders: ThreadPoolExecutor | None = None
    _loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> Self:
        """Enter the block that closes the client."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it."""
        await self.close()

    async def close(self) -> None:
        """End connections and threads; calls still running fail. Harmless when repeated."""
        if self._decoders is not None:
            self._decoders.shutdown(wait=False, cancel_futures=True)
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
        await self._drive(self._session.prepare(limits))
        flows = [self._session.score(chunk, version, limits) for chunk in self._session.chunks(pixels)]
        return np.concatenate(await asyncio.gather(*(self._drive(flow) for flow in flows)))

    async def spec(self, *, timeout_s: float | None = None) -> ModelSpec:
        """Describe the model: labels, image size, version. Raises ServiceError or ContractError."""
        await self._drive(self._session.prepare(self._session.limits_in(timeout_s)))
        return self._session.book.current()

    async def is_ready(self, *, timeout_s: float | None = None) -> bool:
        """Ask whether a server answers and has the model loaded; waits no longer than `timeout_s`."""
        return await self._drive(self._session.is_ready(self._session.limits_in(timeout_s)))

    async def _run(
        self, images: Any, ids: Iterable[ImageId] | None, options: CallOptions
    ) -> AsyncGenerator[Job, None]:
        decoders = self._bind()
        run = TaskRun(self._session, decoders, self._slots, options, self._spawn)
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
