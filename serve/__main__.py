"""`python -m serve`: start the server, say where it listens, keep it running, and stop cleanly on SIGINT or SIGTERM."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from serve import log
from serve.config import LogFormat, ServerConfig, WatchConfig
from serve.errors import ServeError, StartStoppedError
from serve.server import TritonServer
from serve.supervise import Supervisor, replica_configs, stepped

logger = logging.getLogger("serve")


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Run the real Triton server on a model repository until SIGINT or SIGTERM."""

    server: Annotated[ServerConfig, tyro.conf.arg(name="")] = field(default_factory=ServerConfig)
    watch: Annotated[WatchConfig, tyro.conf.arg(name="")] = field(default_factory=WatchConfig)
    replicas: int = 1
    """Servers to run, for machines with several GPUs or NUMA nodes: cores are shared out, ports are 10 apart."""
    health_port: int = 8003
    """Port of `/ready` (200 only while every model answers correctly) and `/live`; 0 picks a free one."""
    drain_s: float = 0.0
    """How long `/ready` says 503 on SIGTERM before requests are refused, so that load balancers can turn away."""
    log_format: LogFormat = "plain"
    """`json`: everything, the server's own log included, as JSON lines on the standard error stream."""

    def __post_init__(self) -> None:
        """Check the values. Raises ValueError that names the field."""
        if self.replicas < 1:
            raise ValueError(f"replicas must be 1 or more, got {self.replicas}")
        if self.drain_s < 0:
            raise ValueError(f"drain_s must not be negative, got {self.drain_s}")
        ports = {"health_port": self.health_port, "http_port": self.server.http_port}
        ports |= {"grpc_port": self.server.grpc_port, "metrics_port": self.server.metrics_port}
        for name, port in ports.items():
            last = stepped(port, self.replicas - 1)
            if not 0 <= port <= last <= 65535:
                raise ValueError(f"{name} must be 0..65535 for every replica, got {port} to {last}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; its exit status."""
    try:
        command = tyro.cli(Serve, prog="python -m serve", description=__doc__, args=arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _log_to_stderr(command.log_format)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        return _run(command, stop)
    except StartStoppedError as error:
        logger.info("%s", error)
        return 0
    except ServeError as error:
        logger.error("%s: %s", type(error).__name__, error)
        return 1


def _run(command: Serve, stop: threading.Event) -> int:
    """Start every replica, watch them on threads, wait for `stop`."""
    on_log = _forward_json if command.log_format == "json" else None
    status = 0
    with contextlib.ExitStack() as running:
        threads = []
        for index, config in enumerate(replica_configs(command.server, command.replicas)):
            port = stepped(command.health_port, index)
            supervisor = Supervisor(config, command.watch, health_port=port, on_log=on_log)
            running.callback(supervisor.close)
            server = supervisor.start(stop)
            _announce(server, supervisor)
            keywords = {"drain_s": command.drain_s}
            threads.append(
                threading.Thread(
                    target=supervisor.run, args=(stop,), kwargs=keywords, name=f"replica-{index}"
                )
            )
        for thread in threads:
            thread.start()
        while not stop.wait(0.5):
            if not all(thread.is_alive() for thread in threads):
                logger.error("the watch over a server ended by itself: stopping")  # its traceback is above
                stop.set()
                status = 1
        for thread in threads:
            thread.join()
    return status


def _announce(server: TritonServer, supervisor: Supervisor) -> None:
    """Print the addresses."""
    print(
        f"ready: {', '.join(server.models)} from {server.repository}\n"
        f"  gRPC     {server.grpc_url}{' (TLS)' if server.config.tls_cert else ''}\n"
        f"  HTTP     http://{server.http_url}\n"
        f"  metrics  http://{server.metrics_url}/metrics\n"
        f"  health   http://{supervisor.health.url}/ready\n"
        f"  token    {server.token_file}",
        flush=True,
    )


class _JsonFormatter(logging.Formatter):
    """One JSON object a line, with the keys that the server's lines have."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one record."""
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        severity = record.levelname.lower()
        return json.dumps(
            {"time": when, "severity": severity, "source": "serve", "message": record.getMessage()}
        )


def _log_to_stderr(kind: LogFormat) -> None:
    handler = logging.StreamHandler()
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(_JsonFormatter() if kind == "json" else plain)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def _forward_json(line: str) -> None:
    print(log.as_json(line), file=sys.stderr, flush=True)


if __name__ == "__main__":
    status = main()
    with contextlib.suppress(OSError):  # whoever read it may be gone
        sys.stdout.flush()
    # All is closed. To take the interpreter apart costs a core a tenth of a second that a successor waits for.
    os._exit(status)
