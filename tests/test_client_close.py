"""`close` during a call: whoever still waits hears ClientClosedError, at once, and never what executors or channels raise."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from moderation_client import AsyncModerationClient, ClientClosedError, ModerationClient
from moderation_client.testing import FakeServer
from tests.client_shells import KINDS, Kind, plain

SYNC = [kind for kind in KINDS if kind.name.startswith("sync")]
ASYNC = [kind for kind in KINDS if kind.name.startswith("async")]


@pytest.fixture
def slow() -> Iterator[FakeServer]:
    """A server that takes half a second a request."""
    with FakeServer(latency_s=0.5) as running:
        yield running


def source() -> Iterator[Any]:
    """More images than are in flight at once."""
    for _ in range(500):
        yield plain(9)


CALLS: list[Callable[[ModerationClient], Any]] = [
    lambda client: client.moderate(source(), timeout_s=20),
    lambda client: list(client.moderate_stream(source(), timeout_s=20)),
    lambda client: client.score(np.zeros((100, 32, 32, 3), np.uint8), timeout_s=20),
]


@pytest.mark.parametrize("kind", SYNC, ids=lambda kind: kind.name)
@pytest.mark.parametrize("call", CALLS, ids=["moderate", "stream", "score"])
def test_closed_during_a_call_of_a_thread(
    kind: Kind, slow: FakeServer, call: Callable[[ModerationClient], Any]
) -> None:
    """Another thread closes the client."""
    client = ModerationClient(kind.url(slow), max_in_flight=2)
    client.spec()
    timer = threading.Timer(0.3, client.close)
    timer.start()
    before = time.monotonic()
    with pytest.raises(ClientClosedError):
        call(client)
    assert time.monotonic() - before < 10
    timer.join()


@pytest.mark.parametrize("kind", ASYNC, ids=lambda kind: kind.name)
def test_closed_during_a_call_of_a_task(kind: Kind, slow: FakeServer) -> None:
    """Another task closes the client."""

    async def both() -> None:
        client = AsyncModerationClient(kind.url(slow), max_in_flight=2)
        await client.spec()
        call = asyncio.ensure_future(client.moderate(source(), timeout_s=20))
        await asyncio.sleep(0.3)
        await client.close()
        with pytest.raises(ClientClosedError):
            await call

    before = time.monotonic()
    asyncio.run(both())
    assert time.monotonic() - before < 10


def test_the_first_call_may_come_from_many_threads(server: FakeServer) -> None:
    """They share one set of threads and connections."""
    with ModerationClient(server.url) as client:
        pools: list[Any] = []
        threads = [threading.Thread(target=lambda: pools.append(client._threads())) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len({id(each) for each in pools}) == 1
