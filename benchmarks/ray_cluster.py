"""A Ray cluster of several nodes on this machine, for measuring and testing what happens when parts of it die.

Every node is a `ray start` of its own on the loopback address, with its own object store and workers. The cluster ends by the process
ids that belong to it; nothing else on the machine is touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ACTOR = "ray::MapWorker"
"""How Ray names a process of Ray Data's actor pool."""
HOST = "127.0.0.1"
STORE_BYTES = 100_000_000
START_TIMEOUT_S = 90.0


class ClusterFailedError(Exception):
    """A node did not come up; the message has its last words."""


@dataclass(kw_only=True)
class RayCluster:
    """Nodes that run here."""

    address: str
    folder: Path
    """Where Ray keeps logs and sockets: short, because socket names have a limit."""
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def add_node(self, *, num_cpus: int = 1) -> None:
        """Start a node; the first is the head. Raises ClusterFailedError."""
        log = self.folder / f"node-{len(self.nodes)}.log"
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", f"--num-cpus={num_cpus}"]
        command += [f"--node-ip-address={HOST}", f"--object-store-memory={STORE_BYTES}"]
        if self.nodes:
            command += [f"--address={self.address}"]
        else:
            command += ["--head", f"--port={self.address.rsplit(':', 1)[1]}", "--include-dashboard=false"]
            command += ["--disable-usage-stats", f"--temp-dir={self.folder}"]
        with log.open("wb") as output:
            started = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
            )
        self.nodes.append(started)
        _wait_until_up(started, log)

    def processes(self) -> list[psutil.Process]:
        """Everything that belongs to the cluster."""
        found = []
        for node in self.nodes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(node.pid)
                found += [*process.children(recursive=True), process]
        return found

    def actors(self) -> list[psutil.Process]:
        """Processes that judge shards."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if " ".join(process.cmdline()).startswith(ACTOR):
                    found.append(process)
        return found

    def stop(self) -> None:
        """End every process of the cluster and remove its folder."""
        ending = self.processes()
        for process in ending:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for node in self.nodes:
            node.wait(timeout=10)
        psutil.wait_procs(ending, timeout=10)
        shutil.rmtree(self.folder, ignore_errors=True)


def _wait_until_up(started: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while b"Ray runtime started" not in log.read_bytes():
        if started.poll() is not None or time.monotonic() > deadline:
            raise ClusterFailedError(f"a Ray node did not start: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.1)


@contextlib.contextmanager
def ray_cluster(num_nodes: int = 2, *, num_cpus: int = 1) -> Iterator[RayCluster]:
    """Run a cluster for the length of a block. Raises ClusterFailedError."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    cluster = RayCluster(address=f"{HOST}:{port}", folder=Path(tempfile.mkdtemp(prefix="ray-")))
    try:
        for _ in range(num_nodes):
            cluster.add_node(num_cpus=num_cpus)
        yield cluster
    finally:
        cluster.stop()
