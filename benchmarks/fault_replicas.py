"""Replicas that can be hurt: each a `python -m serve` of its own, behind a relay or inside a network namespace where a fault needs it.

The embedded server listens on loopback only, so a replica in a namespace is reached through the relay, which runs in there too.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import psutil

ROOT = Path(__file__).resolve().parents[1]
RELAY = ROOT / "benchmarks" / "relay.py"
PORTS = ("http", "grpc", "metrics", "health")


class ReplicaError(Exception):
    """A replica did not start; the message has what it said."""


def free_ports(num_ports: int) -> list[int]:
    """Ports of the loopback address that nobody listens on."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(num_ports)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


class Namespace:
    """A network namespace with one cable to us; root only."""

    def __init__(self) -> None:
        """Make it. Raises ReplicaError where that is not allowed."""
        name = secrets.token_hex(3)
        self.name, self._cable = f"mod-{name}", f"mo{name}"
        net = f"10.{secrets.randbelow(100) + 100}.{secrets.randbelow(250)}"
        self.host = f"{net}.2"
        self._ip("netns", "add", self.name)
        try:
            peer = f"mi{name}"
            self._ip("link", "add", self._cable, "type", "veth", "peer", "name", peer, "netns", self.name)
            self._ip("addr", "add", f"{net}.1/30", "dev", self._cable)
            self._ip("link", "set", self._cable, "up")
            self._ip("-n", self.name, "addr", "add", f"{self.host}/30", "dev", peer)
            self._ip("-n", self.name, "link", "set", "lo", "up")
            self._peer = peer
            self.cut(False)
        except ReplicaError:
            self.close()
            raise

    def cut(self, cut: bool) -> None:
        """Pull the cable at the far end, or put it back: packets are lost, and nobody is told."""
        self._ip("-n", self.name, "link", "set", self._peer, "down" if cut else "up")

    def close(self) -> None:
        """Remove it, and its cable with it."""
        with contextlib.suppress(ReplicaError):
            self._ip("netns", "del", self.name)

    @staticmethod
    def _ip(*arguments: str) -> None:
        program = shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if program is None:
            raise ReplicaError("network namespaces need the program `ip` (Debian: apt install iproute2)")
        done = subprocess.run([program, *arguments], check=False, capture_output=True, text=True)
        if done.returncode:
            raise ReplicaError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


class Replica:
    """One server that keeps its addresses through every start."""

    def __init__(
        self,
        repository: Path,
        folder: Path,
        *,
        namespace: Namespace | None = None,
        relayed: bool = False,
        arguments: Sequence[str] = (),
        wrapper: Sequence[str] = (),
    ) -> None:
        """`folder` takes the log; `wrapper` is a command that runs the one behind it. Nothing is started yet."""
        self.ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self.namespace = namespace
        self.url = f"127.0.0.1:{self.ports['grpc']}"
        ports = [word for name, port in self.ports.items() for word in (f"--{name}-port", str(port))]
        self._command = [*wrapper, sys.executable, "-m", "serve", "--repository", str(repository.resolve())]
        self._command += ["--load-models", "moderation", *ports, *arguments]
        self.log = folder / f"replica-{self.ports['grpc']}.log"
        self._process: subprocess.Popen[str] | None = None
        self._relay: subprocess.Popen[str] | None = None
        if relayed or namespace is not None:
            self._start_relay()

    def _inside(self, command: list[str]) -> list[str]:
        return command if self.namespace is None else ["ip", "netns", "exec", self.namespace.name, *command]

    def _start_relay(self) -> None:
        host = "127.0.0.1" if self.namespace is None else self.namespace.host
        command = self._inside([sys.executable, str(RELAY), f"{host}:0", self.url])
        pipe = subprocess.PIPE
        self._relay = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1)
        self.url = f"{host}:{int(_output(self._relay).readline())}"

    def start(self) -> None:
        """Start, and wait until every model answers. Raises ReplicaError."""
        with self.log.open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                self._inside(self._command),
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        for line in _output(self._process):
            if line.lstrip().startswith("token"):
                return
        raise ReplicaError(f"the replica did not start: {self.log.read_text(encoding='utf-8')[-2000:]}")

    @property
    def process(self) -> subprocess.Popen[str]:
        """The running `python -m serve`."""
        assert self._process is not None
        return self._process

    def server(self) -> psutil.Process:
        """The tritonserver of it."""
        children = psutil.Process(self.process.pid).children()
        return next(each for each in children if "tritonserver" in each.name())

    def stubs(self) -> list[psutil.Process]:
        """The processes that run models."""
        return [each for each in self.server().children(recursive=True) if each.status() != "zombie"]

    def is_ready(self) -> bool:
        """What its health endpoint says; True inside a namespace, where it cannot be asked."""
        if self.namespace is not None:
            return True
        connection = http.client.HTTPConnection("127.0.0.1", self.ports["health"], timeout=1.0)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to `python -m serve`."""
        self.process.send_signal(number)

    def delay(self, delay_ms: float) -> None:
        """Hold back what goes to and from it."""
        assert self._relay is not None
        assert self._relay.stdin is not None
        self._relay.stdin.write(f"{delay_ms}\n")

    def begin_stop(self) -> None:
        """Ask it to end."""
        if self._process is not None:
            self._process.terminate()

    def stop(self, *, timeout_s: float = 30.0) -> None:
        """End it cleanly, by force when that takes too long."""
        self.begin_stop()
        if self._process is not None:
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            _output(self._process).close()
            self._process = None

    def close(self) -> None:
        """End everything of it."""
        self.stop()
        if self._relay is not None:
            self._relay.kill()
            self._relay.communicate()
        if self.namespace is not None:
            self.namespace.close()


def _output(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout
