"""The proxies of deploy/proxy, run for a test: the kept configuration with other ports and certificates, nothing else changed."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.fault_replicas import free_ports

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "deploy" / "proxy"
KINDS = ("nginx", "haproxy")
NUM_SERVERS = 2


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """A running proxy."""

    kind: str
    https_port: int
    grpc_port: int
    pid: int


def needed(kind: str) -> str:
    """Path of the program; skips the test where it is not installed."""
    program = shutil.which(kind, path="/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin")
    if program is None:
        pytest.skip(f"needs {kind} (Debian: apt-get install {kind})")
    return program


@contextlib.contextmanager
def running_proxy(
    kind: str,
    folder: Path,
    *,
    servers: Sequence[Mapping[str, int]],
    cert: Path,
    key: Path,
    patience_s: int = 10,
    health: str = "/ready",
    callers: Path | None = None,
) -> Iterator[Proxy]:
    """Run `kind` before `servers` (ports by name; one is entered twice), callers' patience shortened to `patience_s`.

    `callers`: the authority of their certificates, for mutual TLS as the configurations explain it.
    """
    program = needed(kind)
    https_port, grpc_port = free_ports(2)
    text = _with_ports(kind, servers, https_port, grpc_port)
    text = text.replace("/etc/moderation/tls.key", str(key)).replace("uri /ready", f"uri {health}")
    text = re.sub(
        r"(header_timeout|body_timeout|timeout http-request|body time) 10s", rf"\1 {patience_s}s", text
    )
    text = text if callers is None else _with_callers(text, callers)
    if kind == "haproxy":
        both = folder / f"both-{https_port}.pem"
        both.write_text(cert.read_text() + key.read_text())
        cert = both
    config = folder / f"{kind}-{https_port}.conf"
    config.write_text(text.replace("/etc/moderation/tls.pem", str(cert)))
    with _running(_command(kind, program, config, folder), https_port) as process:
        yield Proxy(kind=kind, https_port=https_port, grpc_port=grpc_port, pid=process.pid)


def _with_ports(kind: str, servers: Sequence[Mapping[str, int]], https_port: int, grpc_port: int) -> str:
    """Configuration with other ports than it was written for."""
    text = (FOLDER / ("nginx.conf" if kind == "nginx" else "haproxy.cfg")).read_text()
    changes = {"443": https_port, "8443": grpc_port}
    for index in range(NUM_SERVERS):
        server = servers[index % len(servers)]
        numbers = {"http": 8000, "grpc": 8001, "health": 8003}
        changes |= {str(each + 10 * index): server[name] for name, each in numbers.items() if name in server}
    places = r"(?<=127\.0\.0\.1:)\d+|(?<=port )\d+|(?<=listen )\d+|(?<=bind :)\d+"
    return re.sub(places, lambda found: str(changes[found[0]]), text)


def _with_callers(text: str, callers: Path) -> str:
    """Configuration with mutual TLS, as its own remarks say."""
    text = re.sub(r"#(ssl_(client_certificate|verify_client))", r"\1", text)
    text = re.sub(r"(?m)^( +bind .*)$", r"\1 ca-file /etc/moderation/callers.pem verify required", text)
    return text.replace("/etc/moderation/callers.pem", str(callers))


@contextlib.contextmanager
def _running(command: list[str], port: int) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            _wait_for(process, port)
            yield process
        finally:
            process.terminate()
            process.communicate(timeout=20)


def _command(kind: str, program: str, config: Path, folder: Path) -> list[str]:
    if kind == "haproxy":
        return [program, "-db", "-f", str(config)]
    settings = f"daemon off; pid {folder / config.name}.pid;"
    return [program, "-c", str(config), "-g", settings]


def _wait_for(process: subprocess.Popen[str], port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"the proxy ended: {process.communicate()[1]}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise AssertionError("the proxy does not listen")


def raw_exchange(port: int, data: bytes, *, trusted: Path, timeout_s: float = 20.0) -> str:
    """Status code that a TLS connection answers to these bytes; `closed` or `silent` when there is none."""
    context = ssl.create_default_context(cafile=str(trusted))
    with (
        socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        try:
            secured.sendall(data)
            answer = secured.recv(4096)
        except TimeoutError:
            return "silent"
        except OSError:
            return "closed"
    return answer.split(b" ")[1].decode() if answer.startswith(b"HTTP/") else "closed"
