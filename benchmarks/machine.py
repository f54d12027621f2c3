"""What a run costs the machine: CPU time and memory of process trees, and the GPU's own readings where there is one."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import psutil

T = TypeVar("T")
GPU_POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class GpuReading:
    """The first GPU by NVML: one look, or the mean of several."""

    utilisation_percent: float
    power_w: float
    memory_bytes: int


def tree(pid: int) -> tuple[int, ...]:
    """Give `pid` and its descendants; nothing when it is gone."""
    try:
        process = psutil.Process(pid)
        return (pid, *(child.pid for child in process.children(recursive=True)))
    except psutil.NoSuchProcess:
        return ()


def cpu_s(pids: Sequence[int]) -> float:
    """User and system time of these processes since they started."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            times = psutil.Process(pid).cpu_times()
            total += times.user + times.system
    return total


def memory_bytes(pids: Sequence[int]) -> int:
    """Proportional set size summed: pages that several processes share are counted once."""
    total = 0
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            full = psutil.Process(pid).memory_full_info()
            total += getattr(full, "pss", full.rss)
    return total


def own_bytes(pids: Sequence[int]) -> int:
    """Memory that these processes asked for, without files that are mapped: those count for whoever else maps them or not."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))
    return total


def listening_pids(port: int) -> tuple[int, ...]:
    """Tree of the process that listens on a local port; nothing when it is another machine's or another user's."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return ()
    for each in connections:
        if each.status == psutil.CONN_LISTEN and each.laddr.port == port and each.pid:
            return tree(each.pid)
    return ()


def local_pids(url: str) -> tuple[int, ...]:
    """Find the processes of the server at `host:port` when the host is this machine."""
    host, _, port = url.rpartition(":")
    is_local = host in ("localhost", "127.0.0.1", "[::1]", "0.0.0.0")  # noqa: S104  compared, not bound
    return listening_pids(int(port)) if is_local and port.isdigit() else ()


def read_gpu() -> GpuReading | None:
    """First GPU's utilisation, power and memory; None without `nvidia-ml-py` or without a driver."""
    try:
        import pynvml  # noqa: PLC0415  optional: only machines with a GPU have it
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        return GpuReading(
            utilisation_percent=float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu),
            power_w=pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).used),
        )
    except pynvml.NVMLError:
        return None


class GpuWatch:
    """Reads the first GPU a few times a second inside a `with` block: one look says little of a window. Idle where there is no GPU."""

    def __init__(self) -> None:
        """Start looking, when there is something to look at."""
        self.readings: list[tuple[float, GpuReading]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while (found := read_gpu()) is not None:
            self.readings.append((time.perf_counter(), found))
            if self._end.wait(GPU_POLL_S):
                return

    def mean(self, from_s: float, to_s: float) -> GpuReading | None:
        """Mean of the readings between two moments of `time.perf_counter`; None when there are none."""
        inside = [reading for at_s, reading in self.readings if from_s <= at_s < to_s]
        if not inside:
            return None
        return GpuReading(
            utilisation_percent=sum(each.utilisation_percent for each in inside) / len(inside),
            power_w=sum(each.power_w for each in inside) / len(inside),
            memory_bytes=max(each.memory_bytes for each in inside),
        )

    def __enter__(self) -> GpuWatch:
        """Return itself."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop looking."""
        self._end.set()
        self._thread.join()


def wait_until(found: Callable[[], T | None], *, timeout_s: float, poll_s: float = 0.02) -> T | None:
    """First answer of `found` that is not None, or None when the time is over."""
    deadline = time.perf_counter() + timeout_s
    while time.perf_counter() < deadline:
        answer = found()
        if answer is not None:
            return answer
        time.sleep(poll_s)
    return None
