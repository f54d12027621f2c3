"""Lets a private server prove a candidate before it can answer anybody: the real server, on the staged folder, on free ports."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from export import session
from export.errors import ProbeError
from export.golden import TOLERANCE, check_config, check_golden
from export.version import Version

Probe = Literal["server", "in_process"]
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 40.0


def probe(repository: Path, version: Version, kind: Probe) -> float:
    """Load the staged `repository` and compare golden scores; the largest difference. Raises ProbeError."""
    if kind == "in_process":
        return _in_process(version)
    with private_server(repository, version.spec.name) as url:
        check_config(url, version.spec.name, repository / version.spec.name / "configs" / "cpu.pbtxt")
        return check_golden(url, version)


def _in_process(version: Version) -> float:
    largest = 0.0
    for name, expected in version.golden_scores.items():
        opened = session.open_session(version.path / name, threads=1)
        found = session.run(opened, version.golden(), batch=1)
        largest = max(largest, float(abs(found - expected).max()))
    if not largest <= TOLERANCE:
        raise ProbeError(f"golden scores differ by {largest:.3g} between two runs of the same file")
    return largest


@contextlib.contextmanager
def private_server(repository: Path, model: str) -> Iterator[str]:
    """Run `python -m serve` on free loopback ports; lends the gRPC address. Raises ProbeError with its words."""
    ports = [word for name in ("http", "grpc", "metrics", "health") for word in (f"--{name}-port", "0")]
    command = [sys.executable, "-m", "serve", "--repository", str(repository), "--load-models", model]
    command += [*ports, "--model-config-name", "cpu", "--startup-timeout-s", str(START_TIMEOUT_S)]
    with tempfile.TemporaryDirectory(prefix="probe-") as temporary:
        said, complained = Path(temporary) / "stdout", Path(temporary) / "stderr"
        with said.open("w") as out, complained.open("w") as err:
            process = subprocess.Popen(command, stdout=out, stderr=err, start_new_session=True)
        try:
            yield _grpc_address(process, said, complained)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _grpc_address(process: subprocess.Popen[bytes], said: Path, complained: Path) -> str:
    """Read the server's output until it says where it listens."""
    deadline = time.monotonic() + START_TIMEOUT_S + STOP_TIMEOUT_S
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        for line in said.read_text().splitlines():
            if line.split()[:1] == ["gRPC"]:
                return line.split()[1]
        if ended:
            raise ProbeError(
                f"the private server did not load the candidate:\n{complained.read_text().strip()}"
            )
        time.sleep(0.05)
    raise ProbeError(f"the private server was not ready within {START_TIMEOUT_S:.0f} s")
