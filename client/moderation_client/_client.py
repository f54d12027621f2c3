"""The blocking client: a thin shell over the session's flows; what really needs threads is in `_threads`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from moderation_client._calls import is_ready, prepare, score
from moderation_client._connect import connect_blocking
from moderation_client._jobs import Job
from moderation_client._outcomes import Outcomes
from moderation_client._settings import CallOptions, OnError
from moderation_client._shared import Shared
from moderation_client._sources import ImageId, lends, named
from moderation_client._threads import Pools, ThreadRun
from moderation_client.contract import ModelSpec
from moderation_client.policy import Policy
from moderation_client.results import Verdict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from moderation_client._sources import Images


class ModerationClient(Shared):
    """Asks a moderation service for decisions; for threads, may be shared by any number of them.

    Fork rule: fork while no call of the client is running; the child then gets its own connections and threads on first
    use, the parent keeps its own. Close the client, or leave its `with` block, when done.
    """

    _connect = staticmethod(connect_blocking)
    _pools: Pools | None = None

    def __enter__(self) -> ModerationClient:
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
        threads = self._threads()
        threads.drive(prepare(self._session, limits))
        flows = [score(self._session, chunk, version, limits) for chunk in self._session.chunks(pixels)]
        if len(flows) == 1:
            return threads.drive(flows[0])
        with self._session.usable():
            return np.concatenate(list(threads.senders.map(threads.drive, flows)))

    def spec(self, *, timeout_s: float | None = None) -> ModelSpec:
        """Describe the model: labels, image size, version. Raises ServiceError or ContractError."""
        self._threads().drive(prepare(self._session, self._session.limits_in(timeout_s)))
        return self._session.book.current()

    def is_ready(self, *, timeout_s: float | None = None) -> bool:
        """Ask whether a server answers and has the model loaded; waits no longer than `timeout_s`."""
        return self._threads().drive(is_ready(self._session, self._session.limits_in(timeout_s)))

    def _run(self, images: Any, ids: Iterable[ImageId] | None, options: CallOptions) -> Iterator[Job]:
        run = ThreadRun(self._session, self._threads(), options, lent=lends(images))
        return run.run(named(images, ids))

    def _threads(self) -> Pools:
        self._session.check_usable()
        with self._session.starting:
            if self._pools is None or self._session.was_forked:
                self._session.reconnect()
                settings = self._session.settings
                self._pools = Pools(settings.decode_threads, settings.max_in_flight)
            return self._pools
