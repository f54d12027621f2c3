"""The checks that are shipped, over every client and both ways of decoding; and what is logged when a replica comes and goes."""

from __future__ import annotations

import asyncio
import logging
import time

import numpy as np
import pytest
from PIL import Image

from moderation_client import AsyncModerationClient, ModerationClient
from moderation_client._image_modes import to_8bit
from moderation_client._settings import Decode
from moderation_client.testing import FakeServer, assert_never_fails_open, assert_never_fails_open_async
from tests.client_shells import plain, reds


@pytest.mark.parametrize("decode", ["client", "server"])
def test_no_client_fails_open(server: FakeServer, decode: Decode) -> None:
    """Blocking and asyncio, whoever decodes: scripted trouble breaks verdicts of the server as it breaks scores."""
    with ModerationClient(server.url, decode=decode) as client:
        assert_never_fails_open(client, timeout_s=0.2)

    async def check() -> None:
        async with AsyncModerationClient(server.url, decode=decode) as client:
            await assert_never_fails_open_async(client, timeout_s=0.2)

    asyncio.run(check())


def test_the_asynchronous_check_catches_a_client_that_fails_open(server: FakeServer) -> None:
    """A wrapper that lets an unjudged image through is found out."""

    class Careless(AsyncModerationClient):
        async def moderate(self, *_: object, **__: object) -> list[object]:  # type: ignore[override]
            return await super().moderate(plain())  # type: ignore[return-value]

    async def check() -> None:
        async with Careless(server.url) as client:
            await assert_never_fails_open_async(client)

    with pytest.raises(AssertionError, match="no bytes"):
        asyncio.run(check())


def test_a_replica_that_goes_and_comes_back_is_logged(
    server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Under the one logger: a warning when it is left out, a line for each further try and for its return."""
    caplog.set_level(logging.INFO, logger="moderation_client")
    with ModerationClient(server.url) as client:
        client.moderate(plain())
        server.stop()
        client.moderate(plain(), timeout_s=0.3, on_error="verdict")
        server.start()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and not any("answers again" in text for text in caplog.messages):
            assert reds(client.moderate(plain(9), timeout_s=10)) == [9]
    levels = {
        record.levelname: record.getMessage()
        for record in caplog.records
        if record.name == "moderation_client"
    }
    assert "gets no requests" in levels["WARNING"]
    assert any("trying again" in text for text in caplog.messages)
    assert any("answers again" in text for text in caplog.messages)


def test_extreme_numbers_do_not_overflow() -> None:
    """A float picture whose range is all of float32's is scaled without a warning."""
    (shown,) = to_8bit(Image.fromarray(np.array([[3e38, -3e38, 0.0]], np.float32)), "x")
    assert np.asarray(shown).tolist() == [[255, 0, 128]]
