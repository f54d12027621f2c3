"""A server is repaired when a part of it dies: Triton itself would go on saying that it is ready."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from serve.admin import Admin
from serve.config import ServerConfig, WatchConfig
from serve.probe import GOLDEN, Answer, Finding, Prober
from serve.server import TritonServer
from serve.supervise import Supervisor, replica_configs
from serve.watch import Watch
from tests.conftest import StartServer
from tests.serving import coloured, eventually, infer
from tests.small_model import add_version, expected_scores, small_config, write_config

WATCH = WatchConfig(interval_s=0.1, probe_interval_s=0.5, probe_timeout_s=1.0)


@pytest.fixture
def supervised(repository_factory: Callable[..., Path]) -> Iterator[Supervisor]:
    """A private server with two instances of the model, under supervision."""
    config = ServerConfig(
        repository=repository_factory(config=small_config(num_instances=2)),
        load_models=("moderation",),
        http_port=0,
        grpc_port=0,
        metrics_port=0,
    )
    supervisor = Supervisor(config, WATCH, health_port=0)
    stop = threading.Event()
    try:
        supervisor.start()
        thread = threading.Thread(target=supervisor.run, args=(stop,))
        thread.start()
        yield supervisor
    finally:
        stop.set()
        if supervisor.server is not None and supervisor.server.pids():
            os.kill(supervisor.server.pid, signal.SIGKILL)  # a clean exit has tests of its own
        thread.join(timeout=60)


def _status(supervisor: Supervisor) -> int:
    return httpx.get(f"http://{supervisor.health.url}/ready", trust_env=False).status_code


def _stubs(server: TritonServer) -> list[psutil.Process]:
    children = psutil.Process(server.pid).children(recursive=True)
    return [child for child in children if child.status() != psutil.STATUS_ZOMBIE]


def _wait_unready_then_ready(supervisor: Supervisor) -> None:
    eventually(lambda: _status(supervisor) == 503, what="unready")
    eventually(lambda: _status(supervisor) == 200, timeout_s=90, what="ready again")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_dead_model_process_is_seen_and_replaced(
    supervised: Supervisor, caplog: pytest.LogCaptureFixture, number: signal.Signals
) -> None:
    """When one of a model's processes dies, the health endpoint says unready, and soon every call is answered again."""
    caplog.set_level(logging.INFO, logger="serve")
    assert supervised.server is not None
    assert _status(supervised) == 200
    before = {child.pid for child in _stubs(supervised.server)}
    os.kill(min(before), number)
    _wait_unready_then_ready(supervised)
    for _ in range(6):
        assert infer(supervised.server.grpc_url, coloured((255, 0, 0)))[0, 0] == pytest.approx(
            0.982, abs=1e-3
        )
    server = supervised.server
    eventually(lambda: not before & {child.pid for child in _stubs(server)}, what="old processes gone")
    assert "model moderation is not ready: its process died or was stopped" in caplog.text
    assert "model moderation is ready again" in caplog.text


@pytest.mark.parametrize("num_stopped", [1, 2])
def test_stopped_model_process_is_replaced(supervised: Supervisor, num_stopped: int) -> None:
    """Processes that live but answer nothing are found, also one of two that golden questions might miss."""
    assert supervised.server is not None
    for child in _stubs(supervised.server)[:num_stopped]:
        child.suspend()
    _wait_unready_then_ready(supervised)
    assert infer(supervised.server.grpc_url, coloured((0, 255, 0)))[0, 1] == pytest.approx(0.982, abs=1e-3)


def test_process_that_is_stopped_for_moments_is_left_alone(supervised: Supervisor) -> None:
    """A sampler or a limiter of processor time stops a process most of the time, but lets it run in between."""
    assert supervised.server is not None
    before = _stubs(supervised.server)
    end_s = time.monotonic() + 3.0
    while time.monotonic() < end_s:
        before[0].suspend()
        time.sleep(0.09)
        before[0].resume()
        time.sleep(0.01)
        assert not supervised.problems()
    assert {child.pid for child in _stubs(supervised.server)} == {child.pid for child in before}


def test_dead_server_is_started_again_at_the_same_addresses(supervised: Supervisor) -> None:
    """When tritonserver itself is killed it comes back with the same ports and the same token."""
    server = supervised.server
    assert server is not None
    addresses, token, pid = (server.grpc_url, server.http_url, server.metrics_url), server.token, server.pid
    os.kill(pid, signal.SIGKILL)
    _wait_unready_then_ready(supervised)
    assert (server.grpc_url, server.http_url, server.metrics_url) == addresses
    assert server.token_file.read_text().strip() == token
    assert infer(server.grpc_url, coloured((0, 0, 255)))[0, 2] == pytest.approx(0.982, abs=1e-3)
    assert Admin(server.http_url, server.admin_headers).states("moderation") == {"1": "READY"}


def test_stopped_server_is_reported_and_comes_back(supervised: Supervisor) -> None:
    """A server that is stopped as a whole is unready until it is continued; nothing of it is started anew."""
    assert supervised.server is not None
    pid = supervised.server.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        eventually(lambda: _status(supervised) == 503, what="unready")
        eventually(lambda: "was stopped" in supervised.problems()["moderation"], what="the reason")
    finally:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: _status(supervised) == 200, what="ready again")
    assert supervised.server.pid == pid


def test_server_that_keeps_ending_is_started_less_and_less_often(
    supervised: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    """While its model cannot be loaded the pauses double; when the model is back, so is the server."""
    server = supervised.server
    assert server is not None
    file = server.repository / "moderation" / "1" / "model.onnx"
    hidden = file.rename(server.repository / "hidden")
    os.kill(server.pid, signal.SIGKILL)
    eventually(lambda: "starting it again in 2.0 s" in caplog.text, what="two failed starts")
    assert _status(supervised) == 503
    assert [pause for pause in ("0.5", "1.0", "2.0", "4.0") if f"again in {pause} s" in caplog.text][:2] == [
        "0.5",
        "1.0",
    ]
    assert "model.onnx" in caplog.text
    hidden.rename(file)
    eventually(lambda: _status(supervised) == 200, timeout_s=90, what="ready again")


def test_model_that_was_unloaded_on_purpose_stays_so(supervised: Supervisor) -> None:
    """An operator's unload is reported and not undone."""
    server = supervised.server
    assert server is not None
    admin = Admin(server.http_url, server.admin_headers)
    admin.unload("moderation")
    eventually(lambda: not admin.num_loaded("moderation"), what="unloaded")
    eventually(lambda: _status(supervised) == 503, what="unready")
    until = time.monotonic() + 3.0  # several golden questions, and as many repairs if it were repaired
    while time.monotonic() < until:
        assert set(admin.states("moderation").values()) == {"UNAVAILABLE"}
        time.sleep(0.05)
    admin.load("moderation")
    eventually(lambda: _status(supervised) == 200, what="ready again")


def test_golden_question_tells_wrong_from_right(
    start_triton: StartServer, repository_factory: Callable[..., Path]
) -> None:
    """A model that was published with other scores for its golden picture is found wrong; the right scores are correct."""
    repository = repository_factory()
    image = coloured((255, 0, 128))
    version = repository / "moderation" / "1"
    np.save(version / GOLDEN, image)
    _publish_golden_scores(version, expected_scores(image))
    server = start_triton(repository)
    prober = Prober(server.http_url, repository, timeout_s=5.0)
    assert prober.ask("moderation").answer is Answer.CORRECT
    assert prober.ask("moderation_encoded").answer is Answer.CORRECT
    _publish_golden_scores(version, 1.0 - expected_scores(image))
    assert prober.ask("moderation").answer is Answer.WRONG
    assert prober.ask("nothing").answer is Answer.FAILED
    server.stop(timeout_s=0)
    assert prober.ask("moderation").answer is Answer.FAILED


def _publish_golden_scores(version: Path, scores: NDArray[np.float64]) -> None:
    manifest = json.loads((version / "manifest.json").read_text())
    manifest["files"][GOLDEN] = hashlib.sha256((version / GOLDEN).read_bytes()).hexdigest()
    manifest["golden_scores"] = {"model.onnx": scores.tolist()}
    (version / "manifest.json").write_text(json.dumps(manifest))


def test_new_version_is_no_wrong_answer(
    start_triton: StartServer, repository_factory: Callable[..., Path]
) -> None:
    """A version with other scores that is loaded while the server runs is not mistaken for a fault."""
    repository = repository_factory()
    server = start_triton(repository, load_models=("moderation",))
    prober = Prober(server.http_url, repository, timeout_s=5.0)
    assert prober.ask("moderation").answer is Answer.CORRECT
    add_version(repository, 2, steepness=2.0)
    write_config(repository, small_config(), versions=(1, 2))
    admin = Admin(server.http_url, server.admin_headers)
    admin.load("moderation")
    assert admin.states("moderation")["2"] == "READY"
    assert prober.ask("moderation").answer is Answer.CORRECT


def test_full_queue_of_a_model_that_hangs_is_no_sign_of_life(
    triton: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That a queue is full means busy while others are answered; when nobody is, the model is unready and then loaded again."""
    watch, repaired = Watch(triton, WatchConfig(probe_timeout_s=0.1)), []
    num_answered = itertools.count()
    monkeypatch.setattr(Prober, "ask", lambda *_: Finding(Answer.BUSY, "exceeds maximum queue size"))
    monkeypatch.setattr(Watch, "_repair", lambda _, model, why: repaired.append(model))
    with monkeypatch.context() as alive:
        alive.setattr(Admin, "num_answered", lambda *_: next(num_answered))
        for _ in range(4):
            watch._probe("moderation")
        assert "moderation" not in watch.problems
    monkeypatch.setattr(Admin, "num_answered", lambda *_: 7)
    watch._probe("moderation")
    assert "moderation" not in watch.problems, "it answered a moment ago"
    for _ in range(3):
        time.sleep(0.12)
        watch._probe("moderation")
    assert "queue size" in watch.problems["moderation"]
    assert repaired == ["moderation"]


def test_replicas_share_out_cores_and_ports() -> None:
    """Replicas get ports ten apart and cores of their own; a single server keeps all."""
    config = ServerConfig(log_file=Path("logs/triton.log"))
    first, second = replica_configs(config, 2)
    assert (first.http_port, second.http_port, second.grpc_port) == (8000, 8010, 8011)
    assert second.log_file == Path("logs/triton-1.log")
    if len(os.sched_getaffinity(0)) >= 2:
        assert first.cpu_cores
        assert not set(first.cpu_cores) & set(second.cpu_cores)
    assert replica_configs(config, 1) == [config]


def test_server_keeps_to_its_cores(start_triton: StartServer, repository: Path) -> None:
    """A server that was given one core runs on that core only, its model processes too."""
    core = max(os.sched_getaffinity(0))
    server = start_triton(repository, load_models=("moderation",), cpu_cores=(core,))
    assert [psutil.Process(pid).cpu_affinity() for pid in server.pids()] == [[core]] * len(server.pids())
