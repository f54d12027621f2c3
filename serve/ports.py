"""Which ports a server listens on: the wanted ones when they are free, or ones that the kernel gives."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import psutil

from serve.command import Ports
from serve.config import ServerConfig
from serve.errors import PortInUseError


def choose_ports(config: ServerConfig) -> Ports:
    """Check the wanted ports and find free ones for those given as 0. Raises PortInUseError."""
    wanted = {
        "http": (config.host, config.http_port),
        "grpc": (config.host, config.grpc_port),
        "metrics": (config.metrics_host, config.metrics_port),
    }
    with contextlib.ExitStack() as held:
        # All are held until the last is chosen, so that the kernel does not give one port twice.
        return Ports(**{name: held.enter_context(_held(name, *address)) for name, address in wanted.items()})


@contextlib.contextmanager
def _held(purpose: str, host: str, port: int) -> Iterator[int]:
    """Bind a port for a moment; its number."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise in_use(purpose, host, port, error) from error
        yield probe.getsockname()[1]


def in_use(purpose: str, host: str, port: int, error: OSError | None = None) -> PortInUseError:
    """Describe a port that cannot be had, by whom it is held where that can be seen."""
    reason = error.strerror if error is not None else "Address already in use"
    holder = _holder(port)
    return PortInUseError(
        f"{purpose} port {port} on {host} cannot be used: {reason}{holder}; "
        f"stop what listens there, or choose another with --{purpose}-port (0 picks a free one)",
        port=port,
        purpose=purpose,
    )


def lost(config: ServerConfig, ports: Ports, port: int) -> PortInUseError:
    """Describe a port that somebody took between our choosing it and the server's listening on it."""
    for purpose in ("http", "grpc", "metrics"):
        if getattr(ports, purpose) == port:
            return in_use(purpose, config.host, port)
    return in_use("grpc", config.host, port)


def _holder(port: int) -> str:
    """` (held by NAME, process PID)` when the system tells."""
    try:
        for each in psutil.net_connections("tcp"):
            if each.status == psutil.CONN_LISTEN and each.laddr.port == port and each.pid:
                return f" (held by {psutil.Process(each.pid).name()}, process {each.pid})"
    except psutil.Error:
        return ""  # only root sees other users' sockets
    return ""
