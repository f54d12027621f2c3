"""The client against the real tritonserver: the same behaviour as against the fake, and what only a real server does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moderation_client import ContractError, ModelNotReadyError, ServerUnavailableError
from serve.server import TritonServer
from tests.client_shells import Kind, Shell, plain
from tests.conftest import StartServer
from tests.small_model import LABELS, SIZE, expected_scores


def address(kind: Kind, server: TritonServer) -> str:
    """Where this transport finds the server."""
    return f"http://{server.http_url}" if kind.http else server.grpc_url


@pytest.fixture
def judge(kind: Kind, triton: TritonServer) -> Iterator[Shell]:
    """A client of the shared real server."""
    shell = kind.shell(address(kind, triton))
    yield shell
    shell.close()


def test_real_verdicts_are_the_models(judge: Shell) -> None:
    """Labels, scores and version come from the served model, in order, over more than one batch."""
    images = [plain(red, 255 - red, 17, size=SIZE) for red in range(0, 250, 5)]
    verdicts = judge.moderate(images)
    expected = expected_scores(np.stack(images))
    found = np.array([[verdict.scores[label] for label in LABELS] for verdict in verdicts])
    assert np.allclose(found, expected, atol=1e-4)
    assert {verdict.model_version for verdict in verdicts} == {"1"}
    assert all(
        verdict.flagged for verdict, scores in zip(verdicts, expected, strict=True) if scores.max() > 0.99
    )


def test_real_scores_and_spec(judge: Shell) -> None:
    """`score` and `spec` need nothing but the server."""
    pixels = np.stack([plain(red, size=SIZE) for red in range(0, 256, 16)])
    assert np.allclose(judge.score(pixels), expected_scores(pixels), atol=1e-4)
    assert judge.spec().labels == LABELS
    assert judge.is_ready()


def test_real_server_refuses_in_words_that_we_know(kind: Kind, triton: TritonServer, judge: Shell) -> None:
    """A wrong shape, an unknown model and an unknown version each have their error."""
    with pytest.raises(ContractError, match="shape"):
        judge.score(np.zeros((1, SIZE + 1, SIZE, 3), np.uint8))
    with pytest.raises(ModelNotReadyError):
        judge.score(np.zeros((1, SIZE, SIZE, 3), np.uint8), model_version=77, timeout_s=2)
    other = kind.shell(address(kind, triton), model="no_such_model")
    with pytest.raises(ModelNotReadyError, match="no_such_model"):
        other.moderate(plain(), timeout_s=2)
    assert not other.is_ready(timeout_s=0.5)
    other.close()


def test_real_server_killed_and_restarted_in_mid_stream(
    repository: Path, start_triton: StartServer, kind: Kind
) -> None:
    """2,000 images, the server killed under them and started again: all judged, in order, none twice, none wrong."""
    first = start_triton(repository)
    ports = {"http_port": _port(first.http_url), "grpc_port": _port(first.grpc_url)}
    shell = kind.shell(address(kind, first), timeout_s=120)
    restarted = threading.Event()

    def restart() -> None:
        first.stop(timeout_s=0)
        start_triton(repository, **ports)
        restarted.set()

    thread = threading.Thread(target=restart)

    def source() -> Iterator[Any]:
        for index in range(2000):
            if index == 700:
                thread.start()
                time.sleep(0.2)
            yield plain(index % 256, size=SIZE)

    verdicts = list(shell.stream(source()))
    thread.join(60)
    shell.close()
    assert restarted.is_set()
    assert [verdict.id for verdict in verdicts] == list(range(2000))
    expected = expected_scores(np.stack([plain(red, size=SIZE) for red in range(256)]))[:, 0]
    found = np.array([verdict.scores[LABELS[0]] for verdict in verdicts])
    assert np.allclose(found, [expected[index % 256] for index in range(2000)], atol=1e-4)


def test_real_server_down_is_unavailable(repository: Path, start_triton: StartServer, kind: Kind) -> None:
    """After the server has gone the error says so, by the deadline."""
    server = start_triton(repository)
    shell = kind.shell(address(kind, server))
    shell.moderate(plain(size=SIZE))
    server.stop(timeout_s=0)
    started = time.monotonic()
    with pytest.raises(ServerUnavailableError):
        shell.moderate(plain(size=SIZE), timeout_s=1)
    assert time.monotonic() - started < 5
    shell.close()


def _port(url: str) -> int:
    return int(url.rsplit(":", 1)[1])
