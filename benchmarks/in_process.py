"""The ceiling: the same ONNX file run by ONNX Runtime in one process, with no server, no socket and no queue.

Three ways are run because none is best everywhere: `b1` (batch 1, all cores work on one image), `b8` (batch 8, all cores) and `wN`
(one worker thread a core, batch 1, one compute thread each). The best of them is what a server is measured against.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export import session
from export.version import cpu_accelerator
from moderation_client.contract import IMAGE_INPUT, SCORES_OUTPUT

NUM_IMAGES = 32
"""Different images that are cycled through."""


@dataclass(frozen=True, kw_only=True)
class Mode:
    """One way to use the cores."""

    name: str
    batch_size: int
    num_workers: int
    threads: int
    """Compute threads of each worker's session."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one mode did in one slice of time."""

    mode: str
    num_images: int
    images_per_s: float
    """Summed over the workers, each over its own time: one that is done waits for no other."""
    latency_ms: list[float]
    cpu_s: float


def modes(num_cores: int) -> tuple[Mode, ...]:
    """Give the three ways for a machine of `num_cores`."""
    return (
        Mode(name="b1", batch_size=1, num_workers=1, threads=num_cores),
        Mode(name="b8", batch_size=8, num_workers=1, threads=num_cores),
        Mode(name=f"w{num_cores}", batch_size=1, num_workers=num_cores, threads=1),
    )


@functools.cache
def open_session(path: Path, threads: int) -> Any:
    """Session with so many compute threads, with the accelerator that its version is published for; kept for the next call."""
    return session.open_session(path, threads=threads, accelerator=cpu_accelerator(path.parent))


@functools.cache
def pixels_like(path: Path, num_images: int = NUM_IMAGES) -> NDArray[np.uint8]:
    """Random pixels of the size that the model at `path` takes: uint8 [num_images, H, W, 3]."""
    height, width, channels = open_session(path, 1).get_inputs()[0].shape[1:]
    shape = (num_images, height, width, channels)
    return np.random.default_rng(0).integers(0, 256, size=shape, dtype=np.uint8)


def run_mode(
    stop: threading.Event, path: Path, mode: Mode, duration_s: float, warmup_s: float = 0.3
) -> Reading:
    """Run one mode for `duration_s`, to be called through a `Worker` so that nothing else shares the interpreter."""
    opened = open_session(path, mode.threads)
    batches = _batches(pixels_like(path), mode.batch_size)
    _run_workers(stop, opened, batches, mode, warmup_s)
    before = sum(os.times()[:2])
    latencies, calls_per_s = _run_workers(stop, opened, batches, mode, duration_s)
    return Reading(
        mode=mode.name,
        num_images=len(latencies) * mode.batch_size,
        images_per_s=calls_per_s * mode.batch_size,
        latency_ms=latencies,
        cpu_s=sum(os.times()[:2]) - before,
    )


def _batches(pixels: NDArray[np.uint8], size: int) -> list[NDArray[np.uint8]]:
    return [pixels[start : start + size] for start in range(0, len(pixels) - size + 1, size)]


def _run_workers(
    stop: threading.Event,
    opened: Any,
    batches: Sequence[NDArray[np.uint8]],
    mode: Mode,
    duration_s: float,
) -> tuple[list[float], float]:
    """Latencies of all calls, and calls a second."""
    latencies: list[list[float]] = [[] for _ in range(mode.num_workers)]
    rates = [0.0] * mode.num_workers
    began = time.perf_counter()
    deadline = began + duration_s

    def work(index: int) -> None:
        turn = index
        while time.perf_counter() < deadline and not stop.is_set():
            started = time.perf_counter()
            opened.run([SCORES_OUTPUT], {IMAGE_INPUT: batches[turn % len(batches)]})
            latencies[index].append((time.perf_counter() - started) * 1000)
            turn += mode.num_workers
        rates[index] = len(latencies[index]) / (time.perf_counter() - began)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(mode.num_workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [value for each in latencies for value in each], sum(rates)
