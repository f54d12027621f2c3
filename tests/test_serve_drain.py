"""Stopping a server: what runs is answered, nobody waits for the models to be taken apart, and nothing is left."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from serve.admin import Admin
from serve.server import TritonServer
from serve.workspace import SHARED_MEMORY
from tests.conftest import StartServer
from tests.serving import coloured, eventually, infer, judge, png
from tests.small_model import add_version, small_config, write_config


def test_stop_finishes_requests_and_leaves_nothing(
    start_triton: StartServer, repository_factory: Callable[..., Path]
) -> None:
    """A request that waits in the queue when the server is stopped is answered, although an idle HTTP connection is open.

    Afterwards there is no process, no shared memory and no folder of it.
    """
    server = start_triton(repository_factory(config=_waiting_config()), exit_timeout_s=20.0)
    processes = [psutil.Process(pid) for pid in server.pids()]
    prefix, folder = server.shm_prefix, server.token_file.parent
    with httpx.Client(trust_env=False) as idle, ThreadPoolExecutor(1) as pool:
        assert idle.get(f"http://{server.http_url}/v2/health/ready").status_code == 200
        answer = pool.submit(infer, server.grpc_url, coloured((255, 0, 0)))
        eventually(lambda: _pending(server) > 0, what="request in the queue")
        server.stop()
        assert answer.result(timeout=10)[0, 0] == pytest.approx(0.982, abs=1e-3)
    assert not psutil.wait_procs(processes, timeout=10)[1]
    assert list(SHARED_MEMORY.glob(f"{prefix}*")) == []
    assert not folder.exists()


def _pending(server: TritonServer) -> float:
    text = httpx.get(
        f"http://{server.metrics_url}/metrics", trust_env=False, headers={"Connection": "close"}
    ).text
    lines = [line for line in text.splitlines() if line.startswith("nv_inference_pending_request_count")]
    return sum(float(line.split()[-1]) for line in lines)


def _waiting_config(delay_us: int = 1_000_000) -> Any:
    """Requests of one picture wait in the queue, for a second unless told."""
    config = small_config(max_queue_delay_us=delay_us)
    config.dynamic_batching.preferred_batch_size.append(8)
    return config


def test_stop_answers_what_waits_for_either_version(
    start_triton: StartServer, repository_factory: Callable[..., Path]
) -> None:
    """With two versions loaded, the one that has nothing to do is given up at once, and the other one still answers."""
    config = _waiting_config()
    config.version_policy.specific.versions.extend([1, 2])
    repository = repository_factory(config=config)
    add_version(repository, 2)
    write_config(repository, config, versions=(1, 2))
    server = start_triton(repository, exit_timeout_s=20.0)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(infer, server.grpc_url, coloured((255, 0, 0)), version="1")
        eventually(lambda: _pending(server) > 0, what="request in the queue")
        server.stop()
        assert answer.result(timeout=10)[0, 0] == pytest.approx(0.982, abs=1e-3)


def test_stop_answers_what_waits_for_a_version_on_its_way_out(
    start_triton: StartServer, repository_factory: Callable[..., Path]
) -> None:
    """The old version of a roll-out still has a request when the server is stopped; the new one has nothing to do."""
    config = _waiting_config(4_000_000)
    repository = repository_factory(config=config)
    server = start_triton(repository, load_models=("moderation",), exit_timeout_s=20.0)
    add_version(repository, 2)
    config.version_policy.specific.versions.append(2)
    write_config(repository, config, versions=(2,))
    admin = Admin(server.http_url, server.admin_headers)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(infer, server.grpc_url, coloured((255, 0, 0)))
        eventually(lambda: _pending(server) > 0, what="request in the queue")
        admin.load("moderation")
        assert admin.states("moderation") == {"1": "UNLOADING", "2": "READY"}
        server.stop()
        assert answer.result(timeout=10)[0, 0] == pytest.approx(0.982, abs=1e-3)


def test_stop_answers_files_whose_pictures_still_wait(
    start_triton: StartServer, repository_factory: Callable[..., Path]
) -> None:
    """`moderation_encoded` asks `moderation`, which therefore goes on until the former has answered."""
    server = start_triton(repository_factory(config=_waiting_config()), exit_timeout_s=20.0)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(judge, server.grpc_url, [png((255, 0, 0))])
        eventually(lambda: _pending(server) > 0, what="request in the queue")
        server.stop()
        _, (verdict,) = answer.result(timeout=10)
    assert verdict["error"] is None


def test_model_without_batching_is_waited_for(
    start_triton: StartServer, repository_factory: Callable[..., Path]
) -> None:
    """Triton says nothing when it gives up a model that forms no batches: the stop waits until the model is gone."""
    config = small_config()
    config.ClearField("dynamic_batching")
    server = start_triton(repository_factory(config=config), load_models=("moderation",), log_verbose=1)
    server.stop(timeout_s=20.0)
    assert any("successfully unloaded 'moderation'" in line for line in server.log_lines())


@pytest.mark.parametrize("options", [{"log_verbose": 1}, {"extra_args": ("--log-verbose=1",)}], ids=str)
def test_stop_does_not_wait_until_models_are_taken_apart(
    start_triton: StartServer, repository: Path, options: dict[str, Any]
) -> None:
    """Triton says that it lets go of the model, and is ended before it has ended the model's processes, a second each.

    A log that was wanted verbose shows it.
    """
    server = start_triton(repository, **options)
    server.stop(timeout_s=20.0)
    lines = server.log_lines()
    assert any("Stopping dynamic-batcher thread for moderation..." in line for line in lines)
    assert not any("successfully unloaded" in line for line in lines)


def test_stop_keeps_the_log_as_wordy_as_it_was(start_triton: StartServer, repository: Path) -> None:
    """What the server is made to say for its end is not in a log that nobody wanted verbose."""
    server = start_triton(repository)
    server.stop(timeout_s=20.0)
    lines = server.log_lines()
    assert any("Signal (15) received" in line for line in lines)
    assert not any("Stopping dynamic-batcher thread" in line or "HTTP request" in line for line in lines)
