"""What callers hand over: buffers that are used again, sources that come too late, and what is held in memory."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from moderation_client import (
    AsyncModerationClient,
    BadArrayError,
    DeadlineExceededError,
    Decision,
    InvalidImageError,
    ModerationClient,
)
from moderation_client._calls import decode, refuse, secure
from moderation_client._jobs import Job
from moderation_client._session import Session
from moderation_client._window import Window
from moderation_client.testing import FakeServer
from tests.client_shells import Kind, Shell, plain, reds


def session_of(client: ModerationClient) -> Session:
    """The client's inside."""
    return client._session


def refilled(kinds: Any) -> Iterator[Any]:
    """One array, or one loaded image, filled again for every picture."""
    buffer = plain()
    for red in range(0, 200, 10):
        buffer[:, :, 0] = red
        yield buffer if kinds == "array" else Image.frombuffer("RGB", (32, 32), buffer, "raw", "RGB", 0, 1)


def test_a_generator_may_refill_its_buffer(client: Shell) -> None:
    """Every picture is judged as it was when it was handed over."""
    for form in ("array", "image"):
        assert reds(client.moderate(refilled(form))) == list(range(0, 200, 10))
        assert reds(client.stream(refilled(form))) == list(range(0, 200, 10))


def test_buffers_are_copied_and_a_released_one_is_an_image_that_cannot_be_read(client: Shell) -> None:
    """A memoryview that its owner gave back fails alone, with a typed error."""
    released = memoryview(b"x" * 100)
    released.release()
    verdicts = client.moderate([plain(9), released, plain(8)])
    assert [verdict.error and verdict.error.code for verdict in verdicts] == [None, "unreadable", None]
    with ModerationClient("localhost:1") as idle:
        content = bytearray(b"12345")
        kept = secure(session_of(idle), content, lent=False)
        content[:] = b"-----"
    assert kept == b"12345"


def test_nothing_is_decoded_after_the_deadline(kind: Kind, server: FakeServer) -> None:
    """Images that come too late are not even read."""
    read: list[int] = []

    class File:
        def read(self, size: int = -1) -> bytes:
            read.append(size)
            return b""

    def source() -> Iterator[Any]:
        yield plain(9)
        time.sleep(0.3)
        yield File()

    with kind.connect(server) as client:
        client.moderate(plain())
        verdicts = client.moderate(source(), timeout_s=0.25, on_error="verdict")
    assert [verdict.error and verdict.error.code for verdict in verdicts][1:] == ["deadline_exceeded"]
    assert read == []


def test_a_decoder_does_not_begin_too_late() -> None:
    """An image that waited for a decoder beyond its deadline costs nothing any more."""
    with ModerationClient("localhost:1") as idle:
        session = session_of(idle)
        options = session.options(1.0, None, None, "verdict", per_image=True)
        job = Job(index=0, id=0, source=plain(), deadline=0.0, started=0.0)
        with pytest.raises(DeadlineExceededError):
            decode(session, job, options)


def test_loaded_images_count_as_memory() -> None:
    """The window holds no more of them than of arrays."""
    window = Window(max_in_flight=1, read_ahead=100)
    while window.can_admit and len(window) < 100:
        window.admit(len(window), Image.new("RGB", (2048, 2048)), 1e9)
    assert len(window) == 3


def test_errors_know_their_place_and_the_limit() -> None:
    """The error has its index, the verdict's the number that broke a limit."""
    window = Window(max_in_flight=1, read_ahead=9)
    with ModerationClient("localhost:1") as idle:
        job = window.admit("a", np.full((4, 4), 2.0), 1e9)
        window.admit("b", None, 1e9)
        error: InvalidImageError = BadArrayError("too bright", value=2.0, limit=1.0)
        second = Job(index=1, id="b", source=None, deadline=1e9, started=0.0)
        refuse(session_of(idle), second, error)
        refuse(session_of(idle), job, error)(window)
    assert error.index == 0
    (finished,) = window.pop_finished()
    verdict: Any = finished.outcome
    assert (verdict.error.value, verdict.error.limit) == (2.0, 1.0)
    assert verdict.decision is Decision.REVIEW


def test_files_are_not_read_in_the_event_loop(server: FakeServer) -> None:
    """A file object may have a slow disk behind it: the asyncio client reads it in a thread."""
    readers = set()

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            readers.add(threading.current_thread())
            return super().read(size)

    async def judged() -> list[int]:
        async with AsyncModerationClient(server.url) as client:
            return reds(await client.moderate([Watched(picture(red)) for red in (7, 9)]))

    def picture(red: int) -> bytes:
        file = io.BytesIO()
        Image.fromarray(plain(red)).save(file, "png")
        return file.getvalue()

    assert asyncio.run(judged()) == [7, 9]
    assert readers
    assert threading.current_thread() not in readers
