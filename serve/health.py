"""A health endpoint that tells the truth: `/ready` is 200 only while every model answers its golden question correctly.

Triton's own `/v2/health/ready` stays 200 with every model process dead; load balancers should ask here.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from serve.errors import PortInUseError
from serve.ports import in_use

Problems = Mapping[str, str]
_MAX_CONNECTIONS = 32
"""One more, and the oldest is closed: a question takes a moment, so the oldest is one that never asks."""
_POLL_S = 0.05
"""How long an end may take to be noticed."""


class HealthServer:
    """Answers `GET /live` and `GET /ready` on a thread until closed."""

    def __init__(self, host: str, port: int, problems: Callable[[], Problems]) -> None:
        """Listen; port 0 picks a free one. `problems` gives what is not ready and why. Raises PortInUseError."""
        try:
            self._server = _BoundedServer((host, port), _handler(problems))
        except OSError as error:
            raise _port_error(host, port, error) from error
        self.url = f"{host}:{self._server.server_address[1]}"
        threading.Thread(
            target=self._server.serve_forever, args=(_POLL_S,), name="health", daemon=True
        ).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class _BoundedServer(ThreadingHTTPServer):
    """One thread for each connection, and only so many of them."""

    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        self._connections: dict[socket.socket, None] = {}
        self._lock = threading.Lock()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Take a connection, and give up the oldest when there are too many."""
        with self._lock:
            self._connections[request] = None
            full = len(self._connections) > _MAX_CONNECTIONS
            oldest = next(iter(self._connections)) if full else None
            if oldest is not None:
                del self._connections[oldest]
        if oldest is not None:
            with contextlib.suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)  # its thread reads the end, and closes it
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection that is over."""
        with self._lock:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of callers who went away in the middle."""


def _port_error(host: str, port: int, error: OSError) -> PortInUseError:
    return in_use("health", host, port, error)


def _handler(problems: Callable[[], Problems]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """One connection; a caller who sends nothing is dropped."""

        timeout = 5.0

        def do_GET(self) -> None:  # the base class calls it so
            """Answer."""
            found = dict(problems()) if self.path == "/ready" else {}
            known = self.path in {"/ready", "/live"}
            self.send_response((503 if found else 200) if known else 404)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps({"ready": not found, "problems": found}).encode() if known else b"{}")

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: a question every second is no news."""

    return Handler
