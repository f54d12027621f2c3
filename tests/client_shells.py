"""One face for both clients, so that every behaviour is stated once: sync and async, over gRPC and over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moderation_client import AsyncModerationClient, ClientStats, ModelSpec, ModerationClient, Verdict
from moderation_client.testing import FakeServer

Pixels = NDArray[np.uint8]


def plain(red: int = 0, green: int = 0, blue: int = 0, size: int = 32) -> Pixels:
    """A picture of one colour: the fake server scores its channels."""
    return np.full((size, size, 3), (red, green, blue), np.uint8)


def reds(verdicts: Iterable[Verdict]) -> list[int]:
    """How red each judged picture was."""
    return [round(verdict.scores["red"] * 255) for verdict in verdicts]


def drain(verdicts: Iterator[Verdict]) -> tuple[list[Verdict], Exception | None]:
    """Everything a stream gives, and what it raised in the end."""
    got: list[Verdict] = []
    try:
        for verdict in verdicts:
            got.append(verdict)
    except Exception as error:  # noqa: BLE001  the test looks at it
        return got, error
    return got, None


class SyncShell:
    """The blocking client as it is."""

    def __init__(self, urls: Any, **options: Any) -> None:
        self.client = ModerationClient(urls, **options)

    def moderate(self, images: Any, **options: Any) -> list[Verdict]:
        """Judge."""
        return self.client.moderate(images, **options)

    def stream(self, images: Any, **options: Any) -> Iterator[Verdict]:
        """Judge as images come."""
        return self.client.moderate_stream(images, **options)

    def score(self, pixels: Any, **options: Any) -> NDArray[np.float32]:
        """Score prepared pixels."""
        return self.client.score(pixels, **options)

    def spec(self) -> ModelSpec:
        """Describe the model."""
        return self.client.spec()

    def is_ready(self, **options: Any) -> bool:
        """Ask for readiness."""
        return self.client.is_ready(**options)

    def stats(self) -> ClientStats:
        """Counts."""
        return self.client.stats()

    def close_client(self) -> None:
        """Close the client alone."""
        self.client.close()

    def close(self) -> None:
        """Close everything."""
        self.client.close()


class AsyncShell:
    """The asyncio client, run from outside its loop; iterables are handed over as async ones."""

    def __init__(self, urls: Any, **options: Any) -> None:
        self.runner = asyncio.Runner()
        self.client = AsyncModerationClient(urls, **options)

    def moderate(self, images: Any, **options: Any) -> list[Verdict]:
        """Judge."""
        return self.runner.run(self.client.moderate(images, **options))

    def stream(self, images: Any, **options: Any) -> Iterator[Verdict]:
        """Judge as images come."""
        verdicts = self.client.moderate_stream(asynchronous(images), **options)

        async def step() -> Verdict:
            return await verdicts.__anext__()

        try:
            while True:
                try:
                    yield self.runner.run(step())
                except StopAsyncIteration:
                    return
        finally:
            self.runner.run(verdicts.aclose())  # type: ignore[attr-defined]

    def score(self, pixels: Any, **options: Any) -> NDArray[np.float32]:
        """Score prepared pixels."""
        return self.runner.run(self.client.score(pixels, **options))

    def spec(self) -> ModelSpec:
        """Describe the model."""
        return self.runner.run(self.client.spec())

    def is_ready(self, **options: Any) -> bool:
        """Ask for readiness."""
        return self.runner.run(self.client.is_ready(**options))

    def stats(self) -> ClientStats:
        """Counts."""
        return self.client.stats()

    def close_client(self) -> None:
        """Close the client alone."""
        self.runner.run(self.client.close())

    def close(self) -> None:
        """Close the client and its loop."""
        self.close_client()
        self.runner.close()


async def asynchronous(items: Iterable[Any]) -> AsyncIterator[Any]:
    """The same items from an async generator."""
    for item in items:
        yield item


Shell = SyncShell | AsyncShell


@dataclass(frozen=True)
class Kind:
    """One of the four combinations."""

    name: str
    shell: Callable[..., Shell]
    http: bool

    def url(self, server: FakeServer) -> str:
        """Address of a fake server for this transport."""
        return server.http_url if self.http else server.url

    @contextmanager
    def connect(self, *servers: FakeServer, **options: Any) -> Iterator[Shell]:
        """A client of these servers, closed afterwards."""
        shell = self.shell([self.url(server) for server in servers], **options)
        try:
            yield shell
        finally:
            shell.close()


KINDS = (
    Kind("sync-grpc", SyncShell, False),
    Kind("async-grpc", AsyncShell, False),
    Kind("sync-http", SyncShell, True),
    Kind("async-http", AsyncShell, True),
)
