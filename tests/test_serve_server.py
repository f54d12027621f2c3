"""The real server on the small repository: it answers with the model's scores, forms batches, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import onnxruntime as ort
import psutil
import pytest

from serve.server import TritonServer
from serve.workspace import SHARED_MEMORY, sweep
from tests.conftest import StartServer
from tests.serving import coloured, eventually, infer
from tests.small_model import SIZE, expected_scores, small_config

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("num_images", [1, 3, 8])
def test_served_scores_are_the_models(triton: TritonServer, num_images: int) -> None:
    """Scores follow from the pictures' colours and equal those of ONNX Runtime in this process, at every batch size."""
    pixels = np.random.default_rng(num_images).integers(0, 256, (num_images, SIZE, SIZE, 3), dtype=np.uint8)
    served = infer(triton.grpc_url, pixels)
    session = ort.InferenceSession(
        str(triton.repository / "moderation" / "1" / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    assert served == pytest.approx(session.run(None, {"image": pixels})[0], abs=1e-6)
    assert served == pytest.approx(expected_scores(pixels), abs=1e-5)


def test_concurrent_callers_share_batches(
    start_triton: StartServer, repository_factory: Callable[..., Path]
) -> None:
    """Sixteen single-image callers are answered in fewer runs than requests, each with its own picture's scores."""
    server = start_triton(
        repository_factory(config=small_config(max_queue_delay_us=50_000)), load_models=("moderation",)
    )
    levels = [16 * index for index in range(16)]

    def ask(level: int) -> float:
        return float(infer(server.grpc_url, coloured((level, 0, 0)))[0, 0])

    with ThreadPoolExecutor(16) as pool:
        scores = list(pool.map(ask, levels))
    assert scores == pytest.approx(
        [expected_scores(coloured((each, 0, 0)))[0, 0] for each in levels], abs=1e-5
    )
    metrics = httpx.get(f"http://{server.metrics_url}/metrics", trust_env=False).text
    counts = {
        line.split("{")[0]: float(line.split()[-1])
        for line in metrics.splitlines()
        if 'model="moderation"' in line
    }
    assert counts["nv_inference_count"] / counts["nv_inference_exec_count"] > 1.5


@pytest.fixture
def command(repository: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Run `python -m serve` on the small repository with free ports; killed after the test if it still runs."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        ports = [word for name in ("http", "grpc", "metrics", "health") for word in (f"--{name}-port", "0")]
        process = subprocess.Popen(
            [sys.executable, "-m", "serve", "--repository", str(repository), *ports, *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def _addresses(process: subprocess.Popen[str]) -> dict[str, str]:
    """The addresses that the command prints when it is ready."""
    assert process.stdout is not None
    found: dict[str, str] = {}
    while "token" not in found:
        line = process.stdout.readline()
        assert line, "the command ended before it was ready"
        words = line.split()
        found[words[0]] = words[-1]
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_command_stops_cleanly(command: Callable[..., subprocess.Popen[str]], number: signal.Signals) -> None:
    """`python -m serve` says where it listens, is ready, and on a signal ends with status 0 and without a trace."""
    process = command("--load-models", "moderation")
    addresses = _addresses(process)
    assert infer(addresses["gRPC"], coloured((255, 0, 0)))[0, 0] == pytest.approx(0.982, abs=1e-3)
    assert httpx.get(addresses["health"], trust_env=False).json() == {"ready": True, "problems": {}}
    children = psutil.Process(process.pid).children(recursive=True)
    assert any(child.name() == "tritonserver" for child in children)
    process.send_signal(number)
    assert process.wait(timeout=40) == 0
    assert not psutil.wait_procs(children, timeout=5)[1]
    _assert_no_trace(Path(addresses["token"]).parent)


def test_json_log_and_drain(command: Callable[..., subprocess.Popen[str]]) -> None:
    """With `--log-format json` every line of ours and of the server's is an object; draining reports unready first."""
    process = command("--load-models", "moderation", "--log-format", "json", "--drain-s", "5.0")
    addresses = _addresses(process)
    process.send_signal(signal.SIGTERM)

    def unready() -> bool:
        with contextlib.suppress(httpx.ConnectError):
            return httpx.get(addresses["health"], trust_env=False).status_code == 503
        return False

    eventually(unready, what="draining")
    assert infer(addresses["gRPC"], coloured((255, 0, 0))).shape == (1, 3)
    _, errors = process.communicate(timeout=40)
    assert process.returncode == 0
    lines = [json.loads(line) for line in errors.splitlines()]
    assert {"message", "severity"} <= set.intersection(*map(set, lines))
    sources = {each.get("source", "").split(":")[0] for each in lines}
    assert {"serve", "model_lifecycle.cc"} <= sources


def test_replicas_are_watched_each(command: Callable[..., subprocess.Popen[str]]) -> None:
    """With `--replicas 2` one that dies comes back at its address while the other answers; both end with the command."""
    process = command("--load-models", "moderation", "--replicas", "2")
    first, second = _addresses(process), _addresses(process)
    children = psutil.Process(process.pid).children()
    servers = [child for child in children if child.name() == "tritonserver"]
    assert len(servers) == 2
    servers[0].kill()
    eventually(lambda: not _is_ready(first["health"]), what="unready")
    assert infer(second["gRPC"], coloured((255, 0, 0)))[0, 0] == pytest.approx(0.982, abs=1e-3)
    for addresses in (first, second):
        eventually(partial(_is_ready, addresses["health"]), timeout_s=60, what="ready again")
        assert infer(addresses["gRPC"], coloured((0, 255, 0)))[0, 1] == pytest.approx(0.982, abs=1e-3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=40) == 0
    for addresses in (first, second):
        _assert_no_trace(Path(addresses["token"]).parent)


def _is_ready(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url, trust_env=False).is_success
    return False


def test_killed_command_takes_its_server_along(command: Callable[..., subprocess.Popen[str]]) -> None:
    """After `kill -9` of the command the server ends; the next start removes files, shared memory and stuck processes."""
    process = command("--load-models", "moderation")
    folder = Path(_addresses(process)["token"]).parent
    children = psutil.Process(process.pid).children(recursive=True)
    model_process = next(child for child in children if "stub" in child.name())
    model_process.suspend()  # the worst case: it cannot see that its server is gone
    process.kill()
    process.wait()
    (server,) = [child for child in children if child.name() == "tritonserver"]
    server.wait(timeout=10)
    assert model_process.is_running()
    sweep()
    assert not psutil.wait_procs(children, timeout=10)[1]
    _assert_no_trace(folder)


def test_sweep_leaves_running_servers_alone(triton: TritonServer) -> None:
    """Cleaning up after the dead does not touch the living."""
    sweep()
    assert triton.token_file.exists()
    assert list(SHARED_MEMORY.glob(f"{triton.shm_prefix}*"))
    assert infer(triton.grpc_url, coloured((0, 0, 0))).shape == (1, 3)


def _assert_no_trace(folder: Path) -> None:
    assert not folder.exists()
    assert list(SHARED_MEMORY.glob(f"moderation-{folder.name}-*")) == []


def test_server_survives_the_thread_that_started_it(repository: Path, start_triton: StartServer) -> None:
    """A server that was started on a thread lives on when the thread ends."""
    servers: list[TritonServer] = []
    thread = threading.Thread(
        target=lambda: servers.append(start_triton(repository, load_models=("moderation",)))
    )
    thread.start()
    thread.join(timeout=60)
    assert infer(servers[0].grpc_url, coloured((0, 255, 0)))[0, 1] == pytest.approx(0.982, abs=1e-3)


def test_server_on_path_is_used(
    repository: Path, start_triton: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tritonserver found on PATH is run with the backends that lie beside it, as in NVIDIA's container."""
    from serve.installation import find_server

    wheel = find_server("embedded")
    root = tmp_path / "tritonserver"
    (root / "bin").mkdir(parents=True)
    shutil.copy(wheel.binary, root / "bin" / "tritonserver")
    shutil.copytree(wheel.backends, root / "backends")
    assert wheel.stub is not None
    shutil.copy(wheel.stub, root / "backends" / "python" / "triton_python_backend_stub")
    shutil.copytree(wheel.caches, root / "caches")
    monkeypatch.setenv("PATH", f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LD_LIBRARY_PATH", os.pathsep.join(map(str, wheel.library_path)))
    assert not find_server("auto").embedded
    server = start_triton(repository, server="path")
    assert psutil.Process(server.pid).exe() == str(root / "bin" / "tritonserver")
    assert infer(server.grpc_url, coloured((0, 0, 255)))[0, 2] == pytest.approx(0.982, abs=1e-3)
