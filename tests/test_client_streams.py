"""Streams, and what a call gives back when something goes wrong on the way, for both clients over both transports."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from moderation_client import Decision, ModerationError, OverloadedError
from moderation_client.testing import Delay, Fail, FakeServer
from tests.client_shells import Shell, drain, plain, reds

FULL = Fail("UNAVAILABLE", "Exceeds maximum queue size")


def test_stream_yields_in_order_and_early(client: Shell) -> None:
    """The first verdict is out long before the source ends, and none is missing."""
    pulled = 0

    def source() -> Iterator[Any]:
        nonlocal pulled
        for red in range(600):
            pulled += 1
            yield plain(red % 256)

    verdicts = client.stream(source())
    first = next(verdicts)
    assert first.id == 0
    assert pulled < 500
    assert [first.id, *(verdict.id for verdict in verdicts)] == list(range(600))


def test_stream_can_be_left_early(client: Shell) -> None:
    """Breaking out of a stream leaves a client that works."""
    for verdict in client.stream([plain(red) for red in range(200)]):
        if verdict.id == 10:
            break
    assert reds(client.moderate([plain(9)])) == [9]


def test_source_that_raises_loses_nothing(client: Shell) -> None:
    """A generator's own exception comes out unchanged, after the verdicts for what it gave before."""

    def source() -> Iterator[Any]:
        for red in range(30):
            yield plain(red)
        raise KeyError("mine")

    got, error = drain(client.stream(source()))
    assert reds(got) == list(range(30))
    assert isinstance(error, KeyError)
    assert not isinstance(error, ModerationError)
    with pytest.raises(KeyError) as raised:
        client.moderate(source())
    assert len(raised.value.verdicts) == 30  # type: ignore[attr-defined]


def test_trouble_raises_with_the_verdicts_reached(client: Shell, server: FakeServer) -> None:
    """A full queue in the middle raises OverloadedError in the server's words, once, with what was judged."""
    client.moderate(plain())
    server.script(Delay(0.05), FULL)
    with pytest.raises(OverloadedError, match="maximum queue size") as raised:
        client.moderate([plain(red) for red in range(24)])
    verdicts = raised.value.verdicts
    assert any(verdict is None for verdict in verdicts)
    judged = [verdict for verdict in verdicts if verdict is not None]
    assert judged
    assert all(round(verdict.scores["red"] * 255) == verdict.id for verdict in judged)


def test_trouble_as_verdicts_judges_the_rest(client: Shell, server: FakeServer) -> None:
    """With on_error="verdict" every image has a verdict; those that met trouble are REVIEW with the error."""
    server.script(Delay(0.05), FULL)
    verdicts = client.moderate([plain(red) for red in range(24)], on_error="verdict")
    assert len(verdicts) == 24
    failed = [verdict for verdict in verdicts if verdict.error]
    assert failed
    assert {verdict.error.code for verdict in failed if verdict.error} == {"overloaded"}
    assert {verdict.decision for verdict in failed} == {Decision.REVIEW}
    assert len(failed) < 24


def test_stream_raises_at_the_image_that_met_trouble(client: Shell, server: FakeServer) -> None:
    """Verdicts before it are yielded; the error's verdicts begin at it."""
    server.script(Delay(0), Delay(0), FULL)
    got, error = drain(client.stream([plain(red) for red in range(64)]))
    assert reds(got) == list(range(len(got)))
    assert isinstance(error, OverloadedError)
    assert error.verdicts[0] is None
    later = [verdict for verdict in error.verdicts if verdict is not None]
    assert all(isinstance(verdict.id, int) and verdict.id > len(got) for verdict in later)
