"""Failures: what each means, what is tried again, which server is left alone, and that nothing is ever allowed by mistake."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import grpc
import pytest

from moderation_client import (
    Decision,
    ModerationClient,
    ModerationError,
    OverloadedError,
    ServerFailedError,
    ServerUnavailableError,
)
from moderation_client.testing import Delay, Fail, FakeServer, assert_never_fails_open
from tests.client_shells import Kind, Shell, plain, reds
from tests.serving import eventually


@pytest.fixture
def pair() -> Iterator[tuple[FakeServer, FakeServer]]:
    """Two servers that give the same answers."""
    with FakeServer() as first, FakeServer() as second:
        yield first, second


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_status_reaches_the_caller_as_an_error(server: FakeServer, code: Any) -> None:
    """Whatever status a server answers, the caller sees an error of ours, and REVIEW with on_error="verdict"."""
    server.always(Fail(code.name, "scripted"))
    with ModerationClient(server.url) as client:
        with pytest.raises(ModerationError) as raised:
            client.moderate(plain(), timeout_s=0.3)
        assert raised.value.verdicts == (None,)
        (verdict,) = client.moderate(plain(), timeout_s=0.3, on_error="verdict")
    assert verdict.error is not None
    assert verdict.decision is Decision.REVIEW


def test_never_fails_open(kind: Kind, server: FakeServer) -> None:
    """The check that is shipped to users passes for the blocking client over both transports."""
    if kind.name.startswith("sync"):
        with kind.connect(server) as client:
            assert_never_fails_open(client.client, timeout_s=0.2)  # type: ignore[arg-type]


def test_the_check_catches_a_client_that_fails_open(server: FakeServer) -> None:
    """A wrapper that allows what failed is found out."""

    class Careless:
        def __init__(self, inner: ModerationClient) -> None:
            self.inner = inner

        def moderate(self, images: Any, **options: Any) -> Any:
            import dataclasses

            verdicts = self.inner.moderate(images, **options)
            return [dataclasses.replace(verdict, decision=Decision.ALLOW) for verdict in verdicts]

    with ModerationClient(server.url) as client, pytest.raises(AssertionError, match="fails open"):
        assert_never_fails_open(Careless(client))  # type: ignore[arg-type]


def test_passing_trouble_is_tried_again(client: Shell, server: FakeServer) -> None:
    """An internal error and a lost connection cost an attempt, not the verdict."""
    client.moderate(plain())
    server.script(Fail("INTERNAL", "once"), Fail("UNAVAILABLE", "Socket closed"))
    (verdict,) = client.moderate(plain(77))
    assert reds([verdict]) == [77]
    assert verdict.timing.attempts == 3


def test_full_queue_is_not_tried_again_unless_asked(kind: Kind, server: FakeServer) -> None:
    """Retrying what an overloaded server refused makes the overload worse; who wants it says so."""
    full = Fail("UNAVAILABLE", "Exceeds maximum queue size")
    with kind.connect(server) as client:
        client.moderate(plain())
        num_before = len(server.requests)
        server.script(full)
        with pytest.raises(OverloadedError):
            client.moderate(plain())
        assert len(server.requests) == num_before + 1
    with kind.connect(server, retry_overload=True) as client:
        server.script(full, full)
        assert client.moderate(plain())[0].timing.attempts == 3


def test_persistent_internal_error_is_given_up(client: Shell, server: FakeServer) -> None:
    """A request that fails every time is not repeated until the deadline."""
    server.always(Fail("INTERNAL", "poison"))
    with pytest.raises(ServerFailedError, match="poison"):
        client.moderate(plain(), timeout_s=20)
    assert len(server.requests) < 10


def test_failed_request_goes_to_the_other_server(kind: Kind, pair: tuple[FakeServer, FakeServer]) -> None:
    """With a second server the failure of the first is not even slow."""
    pair[0].always(Fail("INTERNAL", "Stub process 'moderation_0_0' is not healthy."))
    with kind.connect(*pair) as client:
        verdicts = [client.moderate(plain(red))[0] for red in range(20)]
    assert reds(verdicts) == list(range(20))
    assert len(pair[0].requests) <= 4  # ejected: one request at first, one trial at a time later


def test_server_down_is_said_so_by_the_deadline(client: Shell, server: FakeServer) -> None:
    """Nobody there is ServerUnavailableError with the real reason, not a deadline, and in time."""
    server.stop()
    started = time.monotonic()
    with pytest.raises(ServerUnavailableError, match=r"(?i)connect|refused"):
        client.moderate([plain(), plain()], timeout_s=0.6)
    assert time.monotonic() - started < 15
    verdicts = client.moderate([plain(), b""], timeout_s=0.3, on_error="verdict")
    assert [verdict.error.code for verdict in verdicts if verdict.error] == ["server_unavailable"] * 2
    assert not client.is_ready(timeout_s=0.2)


def test_restart_in_mid_stream_loses_nothing(kind: Kind, server: FakeServer) -> None:
    """The server goes away for a while: every image is judged, in order, none twice."""
    server.model.latency_s = 0.002

    def restart() -> None:
        server.stop()
        time.sleep(0.4)
        server.start()

    def source() -> Iterator[Any]:
        for index in range(400):
            if index == 150:
                threading.Thread(target=restart).start()
            yield plain(index % 256)

    with kind.connect(server) as client:
        verdicts = list(client.stream(source()))
    assert [verdict.id for verdict in verdicts] == list(range(400))
    assert reds(verdicts) == [index % 256 for index in range(400)]


def test_dead_server_is_left_alone_and_comes_back(kind: Kind) -> None:
    """Of two servers one dies and returns: no call fails, and it is used again."""
    with FakeServer() as steady, FakeServer() as flaky, kind.connect(steady, flaky) as client:
        client.moderate([plain(red) for red in range(64)])
        flaky.stop()
        verdicts = [client.moderate(plain(red))[0] for red in range(30)]
        assert reds(verdicts) == list(range(30))
        assert [replica.ejected for replica in client.stats().replicas] == [False, True]
        flaky.start()
        num_before = len(flaky.requests)
        give_up = time.monotonic() + 15
        while len(flaky.requests) == num_before and time.monotonic() < give_up:
            client.moderate(plain())
            time.sleep(0.02)
        assert len(flaky.requests) > num_before
        assert not any(replica.ejected for replica in client.stats().replicas)


def test_request_to_a_model_that_is_loaded_anew_goes_elsewhere(
    kind: Kind, pair: tuple[FakeServer, FakeServer]
) -> None:
    """What its dead process holds is not waited for when the server is well and says that the model is not ready."""
    with kind.connect(*pair, max_batch=1) as client, ThreadPoolExecutor(1) as pool:
        client.moderate([plain(red) for red in range(4)])
        num_before = len(pair[0].requests)
        pair[0].always(Delay(6))
        started = time.monotonic()
        verdicts = pool.submit(client.moderate, [plain(0), plain(1)], timeout_s=20)
        eventually(lambda: len(pair[0].requests) > num_before, what="a request that waits")
        pair[0].model.ready = False
        assert reds(verdicts.result()) == [0, 1]
        assert time.monotonic() - started < 5


HANGING = """
import sys
from moderation_client.testing import FakeServer
with FakeServer() as server:
    print(server.url, server.http_url, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def stoppable() -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A fake server in a process of its own, which can be stopped in the middle of everything."""
    command = [sys.executable, "-c", HANGING]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url, http_url = process.stdout.readline().split()
            yield process, url, http_url
        finally:
            process.kill()  # ends a stopped process too


def test_stopped_server_is_given_up_for_another(
    kind: Kind, server: FakeServer, stoppable: tuple[subprocess.Popen[str], str, str]
) -> None:
    """A replica that takes requests and answers nothing is found out by its silence, and its requests go elsewhere."""
    process, url, http_url = stoppable
    urls = [kind.url(server), http_url if kind.http else url]
    with ExitStack() as stack:
        shell = kind.shell(urls)
        stack.callback(shell.close)
        shell.moderate([plain(red) for red in range(64)])
        os.kill(process.pid, signal.SIGSTOP)
        started = time.monotonic()
        assert reds(shell.moderate([plain(red) for red in range(64)], timeout_s=20)) == list(range(64))
        assert time.monotonic() - started < 10  # well before the attempt's own timeout
        os.kill(process.pid, signal.SIGCONT)


def test_single_stopped_server_is_unavailable_not_late(
    stoppable: tuple[subprocess.Popen[str], str, str],
) -> None:
    """With nobody else to ask, the error says that the server stopped answering."""
    process, url, _ = stoppable
    with ModerationClient(url) as client:
        client.moderate(plain())
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(ServerUnavailableError, match="stopped answering"):
            client.moderate(plain(), timeout_s=2)
        os.kill(process.pid, signal.SIGCONT)
        assert reds(client.moderate(plain(5), timeout_s=20)) == [5]
