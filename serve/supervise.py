"""Keeps servers running: starts them, watches them, starts one that ended again after a pause that grows, drains them at the end."""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from serve.config import ServerConfig, WatchConfig
from serve.errors import ServeError, ServerDiedError
from serve.health import HealthServer
from serve.server import TritonServer

if TYPE_CHECKING:
    from serve.watch import Watch

logger = logging.getLogger("serve")

_FIRST_BACKOFF_S = 0.5
"""Pause before the second start in a row; the first follows at once, since the other servers carry its load meanwhile."""
_HEALTHY_AFTER_S = 60.0
"""A server that ran so long did not end because of how it was started; attempts to start one count for nothing."""
PORT_STEP = 10
"""Distance between the ports of two replicas."""


class Supervisor:
    """One server that is kept running until `stop` is set."""

    def __init__(
        self,
        config: ServerConfig,
        watch: WatchConfig,
        *,
        health_port: int,
        on_log: Callable[[str], None] | None = None,
    ) -> None:
        """`health_port` 0 picks a free one. Raises PortInUseError for it."""
        self._config = config
        self._watch_config = watch
        self._on_log = on_log
        self._watch: Watch | None = None
        self._draining = False
        self._backoff_s = 0.0
        self._running_since: float | None = None
        self._trouble = ""
        self.server: TritonServer | None = None
        self.health = HealthServer(config.host, health_port, self.problems)

    def problems(self) -> dict[str, str]:
        """What is not ready, and why."""
        if self._draining:
            return {"server": "draining"}
        if self._trouble:
            return {"watch": self._trouble}
        return dict(self._watch.problems) if self._watch is not None else {"server": "starting"}

    def start(self, stop: threading.Event | None = None) -> TritonServer:
        """Start the server, or give it up when `stop` is set. Raises ServeError."""
        self.server = TritonServer(self._config, on_log=self._on_log, stop=stop, meanwhile=_watch_type)
        self.server.start()
        self._begin_watch(self.server)
        return self.server

    def _begin_watch(self, server: TritonServer) -> None:
        watch = _watch_type()(server, self._watch_config)
        watch.check()
        self._watch = watch
        self._running_since = time.monotonic()

    def run(self, stop: threading.Event, *, drain_s: float = 0.0) -> None:
        """Watch until `stop`; then report unready for `drain_s`, and stop the server."""
        pause_s = self._watch_config.interval_s
        try:
            while not stop.wait(pause_s):
                pause_s = self._watch_config.interval_s
                try:
                    self._step()
                    self._trouble = ""
                except ServerDiedError as error:
                    pause_s = self._next_pause_s()
                    if not stop.is_set():
                        logger.error("%s; starting it again %s", error, _in(pause_s))
                    self._watch = self._running_since = None
                except Exception as error:
                    # no descriptor for a look, say: this must stop neither this server nor the others
                    self._trouble = f"the watch failed: {error!r}"
                    pause_s = self._next_pause_s()
                    logger.exception("the watch over a server failed; looking again %s", _in(pause_s))
        finally:
            self._drain(stop, drain_s)

    def _next_pause_s(self) -> float:
        """None at first, then twice the last pause, unless a server has run well since."""
        since = self._running_since
        if since is not None and time.monotonic() - since > _HEALTHY_AFTER_S:
            self._backoff_s = 0.0
        pause_s = self._backoff_s
        self._backoff_s = min(max(2 * pause_s, _FIRST_BACKOFF_S), self._watch_config.max_backoff_s)
        return pause_s

    def _step(self) -> None:
        """Look at the running server, or start it again. Raises ServerDiedError when there is none afterwards."""
        assert self.server is not None
        if self._watch is not None:
            self._watch.check()
            return
        try:
            self.server.restart()
            self._begin_watch(self.server)
        except ServerDiedError:
            raise
        except ServeError as error:
            raise ServerDiedError(str(error), exit_code=None) from error
        logger.info("tritonserver runs again as process %d", self.server.pid)

    def _drain(self, stop: threading.Event, drain_s: float) -> None:
        self._draining = True
        if drain_s and stop.is_set() and self.server is not None:
            logger.info("draining for %g s before requests are refused", drain_s)
            time.sleep(drain_s)
        self.close()

    def close(self) -> None:
        """Stop the server and the health endpoint; safe to call twice."""
        self._draining = True
        if self.server is not None:
            self.server.stop()
            self.server = None
        self.health.close()


def _watch_type() -> type[Watch]:
    """Load what a watch needs, numpy above all: first while tritonserver starts, since before it every start would take longer."""
    from serve.watch import Watch  # noqa: PLC0415

    return Watch


def _in(pause_s: float) -> str:
    return f"in {pause_s:.1f} s" if pause_s else "at once"


def replica_configs(config: ServerConfig, num_replicas: int) -> list[ServerConfig]:
    """Configurations of several servers on one machine: ports `PORT_STEP` apart, the processor cores shared out evenly.

    One server gets no cores of its own. GPUs are given out one each, round, where there are any.
    """
    if num_replicas == 1:
        return [config]
    cores = _cores()
    each = len(cores) // num_replicas
    num_gpus = sum(1 for path in Path("/dev").glob("nvidia[0-9]*"))
    return [
        dataclasses.replace(
            config,
            http_port=stepped(config.http_port, index),
            grpc_port=stepped(config.grpc_port, index),
            metrics_port=stepped(config.metrics_port, index),
            cpu_cores=tuple(cores[index * each : (index + 1) * each]),
            gpu=index % num_gpus if num_gpus else None,
            log_file=config.log_file and config.log_file.with_stem(f"{config.log_file.stem}-{index}"),
        )
        for index in range(num_replicas)
    ]


def _cores(nodes: Path = Path("/sys/devices/system/node")) -> list[int]:
    """Order the cores that we may use by memory node, so that each replica keeps to as few nodes as it can."""
    allowed = os.sched_getaffinity(0)
    folders = sorted(nodes.glob("node[0-9]*"), key=lambda each: int(each.name.removeprefix("node")))
    lists = [(each / "cpulist").read_text() for each in folders if (each / "cpulist").is_file()]
    ordered = [core for text in lists for core in _numbers(text) if core in allowed]
    return [*ordered, *sorted(allowed - set(ordered))]


def _numbers(text: str) -> list[int]:
    """Read the kernel's form: `0-3,8-11`; a node without cores has none."""
    ends = [part.split("-") for part in text.strip().split(",") if part]
    return [number for part in ends for number in range(int(part[0]), int(part[-1]) + 1)]


def stepped(port: int, index: int) -> int:
    """Port of a replica; 0 stays "a free one"."""
    return port + PORT_STEP * index if port else 0
