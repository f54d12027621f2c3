"""`python -m serve`: start the server, say where it listens, and stay until SIGINT or SIGTERM."""

from __future__ import annotations

import signal
import sys
import threading

import tyro

from serve.config import ServerConfig
from serve.errors import ServeError
from serve.server import TritonServer


def main() -> int:
    """Run the command; its exit status."""
    config = tyro.cli(ServerConfig, prog="python -m serve", description=__doc__)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        with TritonServer(config) as server:
            print(
                f"ready: {', '.join(server.models)} from {server.repository}\n"
                f"  gRPC     {server.grpc_url}\n  HTTP     http://{server.http_url}\n"
                f"  metrics  http://{server.metrics_url}/metrics\n  token    {server.token_file}",
                flush=True,
            )
            while not stop.wait(0.5):
                if server.process.poll() is not None:
                    print(f"tritonserver ended with exit code {server.process.returncode}", file=sys.stderr)
                    return 1
    except ServeError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
