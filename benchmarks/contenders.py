"""Everything that `compare.py` puts side by side: in-process references, other servers, and ours in three forms.

All are started once and run in turns. Whoever waits is stopped (SIGSTOP), so that an idle server's polling takes nothing from the one that
is measured; ours is left running, because it does nothing when it is not asked.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import ROOT
from benchmarks.in_process import Mode, open_session
from benchmarks.machine import tree, wait_until
from benchmarks.senders import Route
from benchmarks.serving import Settings, serving
from moderation_client.contract import IMAGE_INPUT, SCORES_OUTPUT

START_TIMEOUT_S = 90.0
BOOT_SCRIPTS = {
    "tutorial": "benchmarks.peers",
    "simple": "benchmarks.peers",
    "litserve": "benchmarks.peer_litserve",
}


class ContenderError(Exception):
    """A server did not start; the message has its last words."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Somebody to measure over a route."""

    key: str
    """Letter of the comparison."""
    name: str
    route: Route
    pids: tuple[int, ...]
    stoppable: bool = True

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run inside, and stop it again."""
        if not self.stoppable:
            yield
            return
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._signal(signal.SIGSTOP)

    def _signal(self, number: int) -> None:
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


@contextlib.contextmanager
def peer(key: str, name: str, kind: str, arguments: list[str]) -> Iterator[Contender]:
    """Run one of the other servers until it answers; stopped inside until it is awoken. Raises ContenderError."""
    port = _free_port()
    words = [kind] if BOOT_SCRIPTS[kind] == "benchmarks.peers" else []
    command = [sys.executable, "-m", BOOT_SCRIPTS[kind], *words, "--port", str(port), *arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        if not wait_until(lambda: _answers(process, port), timeout_s=START_TIMEOUT_S, poll_s=0.2):
            raise ContenderError(f"{name} did not answer within {START_TIMEOUT_S:.0f} s")
        contender = Contender(
            key=key,
            name=name,
            route=Route(via="http", url=f"127.0.0.1:{port}", path="/predict"),
            pids=tree(process.pid),
        )
        contender._signal(signal.SIGSTOP)
        yield contender
    finally:
        for pid in reversed(tree(process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def _answers(process: subprocess.Popen[bytes], port: int) -> bool | None:
    if process.poll() is not None:
        words = process.stderr.read().decode(errors="replace").strip().splitlines() if process.stderr else []
        raise ContenderError(f"a server ended with {process.returncode}: {' / '.join(words[-3:])}")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(
            "POST",
            "/predict",
            body=bytes(224 * 224 * 3),
            headers={"Content-Type": "application/octet-stream"},
        )
        return True if connection.getresponse().status == 200 else None
    except OSError:
        return None
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def ours(key: str, name: str, repository: Path, settings: Settings) -> Iterator[Contender]:
    """Run our server; asked through the product's own client."""
    with serving(repository, settings) as running:
        route = Route(via="client", url=running.address.url)
        yield Contender(key=key, name=name, route=route, pids=running.pids, stoppable=False)


def run_torch(stop: threading.Event, backbone: str, files: list[bytes] | None, duration_s: float) -> float:
    """Images/s of PyTorch eager in process, batch 8, from JPEG files (or from pixels, when there are none)."""
    import torch  # noqa: PLC0415  only this worker pays for it

    from benchmarks.networks import build_model  # noqa: PLC0415
    from benchmarks.peers import to_pixels  # noqa: PLC0415
    from moderation_client.contract import ImageSpec  # noqa: PLC0415

    model = _MODELS.get(backbone) or _MODELS.setdefault(backbone, build_model(backbone, ImageSpec()))
    pixels = np.zeros((8, 224, 224, 3), dtype=np.uint8)
    num_images, started = 0, 0.0
    with torch.inference_mode():
        model(torch.from_numpy(pixels))
        started = time.perf_counter()
        while time.perf_counter() - started < duration_s and not stop.is_set():
            if files:
                chosen = [files[(num_images + index) % len(files)] for index in range(8)]
                pixels = np.concatenate([to_pixels(file) for file in chosen])
            model(torch.from_numpy(pixels))
            num_images += 8
    return num_images / (time.perf_counter() - started)


_MODELS: dict[str, Any] = {}
"""Of the worker process that runs `run_torch`: built once."""


def run_onnx(stop: threading.Event, path: Path, files: list[bytes], mode: Mode, duration_s: float) -> float:
    """Images/s of ONNX Runtime in process, from JPEG files decoded in full by plain Pillow in the same workers."""
    from benchmarks.peers import to_pixels  # noqa: PLC0415  FastAPI is only there for the comparison

    session = open_session(path, mode.threads)
    rates = [0.0] * mode.num_workers
    began = time.perf_counter()
    deadline = began + duration_s

    def work(index: int) -> None:
        turn, num_images = index, 0
        while time.perf_counter() < deadline and not stop.is_set():
            chosen = [files[(turn + each) % len(files)] for each in range(mode.batch_size)]
            session.run([SCORES_OUTPUT], {IMAGE_INPUT: np.concatenate([to_pixels(file) for file in chosen])})
            num_images += mode.batch_size
            turn += mode.num_workers * mode.batch_size
        rates[index] = num_images / (time.perf_counter() - began)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(mode.num_workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(rates)
