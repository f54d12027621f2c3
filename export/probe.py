"""Lets a private server prove a candidate before it can answer anybody: the real server, on the staged folder, on free ports."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from export import session
from export.errors import ProbeError
from export.golden import TOLERANCE, check_config, check_golden
from export.version import Version, accelerator_of
from moderation_client.contract import ENCODED_MODEL_NAME

Probe = Literal["server", "in_process"]
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 40.0
_SHIM = f"""
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, {int(signal.SIGKILL)})
if os.getppid() != int(sys.argv[1]):
    sys.exit("parent ended")
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Runs between fork and exec: the kernel ends the server when the thread that started it ends, as `serve` has it for its own."""


def probe(repository: Path, version: Version, kind: Probe) -> float:
    """Load the staged `repository` and compare golden scores; the largest difference. Raises ProbeError."""
    if kind == "in_process":
        return _in_process(version)
    name = version.spec.name
    configs = {name: repository / name / "configs" / "cpu.pbtxt"}
    if (repository / ENCODED_MODEL_NAME).is_dir():
        configs[ENCODED_MODEL_NAME] = repository / ENCODED_MODEL_NAME / "config.pbtxt"
    with private_server(repository, *configs) as url:
        for each, path in configs.items():
            check_config(url, each, path)
        return check_golden(url, version)


def _in_process(version: Version) -> float:
    largest = 0.0
    for name, expected in version.golden_scores.items():
        accelerator = accelerator_of(name, version.cpu_accelerator)
        opened = session.open_session(version.path / name, threads=1, accelerator=accelerator)
        found = session.run(opened, version.golden(), batch=1)
        largest = max(largest, float(abs(found - expected).max()))
    if not largest <= TOLERANCE:
        raise ProbeError(f"golden scores differ by {largest:.3g} between two runs of the same file")
    return largest


@contextlib.contextmanager
def private_server(repository: Path, *models: str) -> Iterator[str]:
    """Run `python -m serve` on free loopback ports; lends the gRPC address. Raises ProbeError with its words.

    It ends when we do, however we end, as the servers that `serve` starts do.
    """
    ports = [word for name in ("http", "grpc", "metrics", "health") for word in (f"--{name}-port", "0")]
    command = [sys.executable, "-m", "serve", "--repository", str(repository), "--load-models", *models]
    command += [*ports, "--model-config-name", "cpu", "--startup-timeout-s", str(START_TIMEOUT_S)]
    process = _start(command)
    said: list[str] = []
    reader = threading.Thread(target=_read, args=(process, said), name="probe-output", daemon=True)
    reader.start()
    try:
        yield _grpc_address(process, said, reader)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(STOP_TIMEOUT_S)


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    """Start in a session of its own (Ctrl-C reaches us, not it), output and errors in one pipe."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _SHIM, str(os.getpid()), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _read(process: subprocess.Popen[bytes], said: list[str]) -> None:
    """Keep what the server says, so that it never waits for a reader."""
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            said.append(line.decode(errors="replace").rstrip())


def _grpc_address(process: subprocess.Popen[bytes], said: list[str], reader: threading.Thread) -> str:
    """Wait until the server says where it listens."""
    deadline = time.monotonic() + START_TIMEOUT_S + STOP_TIMEOUT_S
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        if ended:
            reader.join(STOP_TIMEOUT_S)
        for line in tuple(said):
            if line.split()[:1] == ["gRPC"]:
                return line.split()[1]
        if ended:
            raise ProbeError("the private server did not load the candidate:\n" + "\n".join(said).strip())
        time.sleep(0.05)
    raise ProbeError(f"the private server was not ready within {START_TIMEOUT_S:.0f} s")
