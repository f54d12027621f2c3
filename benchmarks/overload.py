"""Three times what the server can do, and then none of it: goodput, latency of what is accepted, memory, and the way back.

    python benchmarks/overload.py --repository model_repository

Requests leave when they are due (open loop, Poisson), half of the capacity before and after, three times in between; latency
counts from due. A second run offers interactive requests (priority 1) while a backfill (priority 2) takes all that there is.
"""

from __future__ import annotations

import datetime
import statistics
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks import overload_page
from benchmarks.environment import capture_environment
from benchmarks.load import Job, Schedule, run_closed
from benchmarks.machine import own_bytes
from benchmarks.overload_load import UNANSWERED, Sent, message, offer_there
from benchmarks.results import Bar, Point, Scalar, file_stem, make_result, write_result
from benchmarks.senders import EXPIRED, QUEUE_FULL, Route
from benchmarks.serving import Running, Settings, serving
from benchmarks.stats import percentile
from benchmarks.target import Target
from benchmarks.worker import Worker
from moderation_client.contract import MODEL_NAME

INTERACTIVE, BACKFILL = 1, 2
SETTLED_S = 5.0
"""The first full batches and full queues take memory that is then kept; what grows after that is a leak."""
PAGES = Path("runs/benchmarks")


@dataclass(frozen=True, kw_only=True)
class OverloadConfig:
    """What to offer."""

    repository: Path = Path("model_repository")
    """Published model with two priorities, as the export configures it."""
    file: str | None = None
    """ONNX file to serve; a slow one leaves more of a shared machine to the server than to what sends the requests."""
    queue_timeout_ms: float = 500.0
    """How long a request may wait in the server. Counted from due, an answer after twice as long is none for the goodput."""
    max_queue_size: int = 16
    """How many may wait: one batch for each instance, so that the wait stays well below the timeout."""
    max_batch_size: int = 8
    """An interactive request waits for at most one batch of the backfill in each instance."""
    num_instances: int = 2
    """One instance with queue limits can stall for half a second on Triton 24.10."""
    multiple: float = 3.0
    """Of the capacity."""
    max_rate_per_s: float = 400.0
    """Never more than this: above a thousand refusals a second the old server's gRPC front end crashes."""
    num_rounds: int = 3
    """Rounds of peak and overload: what else a shared machine does hits one of them, the median stands."""
    before_s: float = 5.0
    overload_s: float = 15.0
    after_s: float = 5.0
    deadline_s: float = 10.0
    out: Path = Path("benchmarks/results")
    """Folder for the JSON; the page goes to runs/benchmarks."""

    @property
    def limit_ms(self) -> float:
        """Latency up to which an answer counts, and that p99 of what is accepted must keep to."""
        return 2 * self.queue_timeout_ms

    @property
    def num_callers(self) -> int:
        """Callers that fill every instance twice over, and not the queue: the peak is what they get."""
        return min(2 * self.num_instances * self.max_batch_size, self.max_queue_size)

    @property
    def settings(self) -> Settings:
        """How the server is started."""
        return Settings(
            num_instances=self.num_instances,
            num_threads=1,
            file=self.file,
            max_batch_size=self.max_batch_size,
            max_queue_size=self.max_queue_size,
            queue_timeout_us=int(self.queue_timeout_ms * 1000),
        )


class Memory:
    """Reads the servers' memory every second until closed."""

    def __init__(self, pids: Sequence[int]) -> None:
        self.samples: list[float] = []
        self._pids, self._end = pids, threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while True:
            self.samples.append(float(own_bytes(self._pids)))
            if self._end.wait(1.0):
                return

    def close(self) -> list[float]:
        """Stop; one value a second."""
        self._end.set()
        self._thread.join()
        return self.samples


def _window(sent: Sequence[Sent], from_s: float, to_s: float) -> list[Sent]:
    return [each for each in sent if from_s <= each.due_s < to_s]


def _p99(sent: Sequence[Sent]) -> float | None:
    answered = [each.latency_ms for each in sent if not each.error]
    return percentile(answered, 99) if answered else None


def normal_after_s(sent: Sequence[Sent], end_s: float, limit_ms: float) -> float:
    """Seconds from the end of the load to the first half second whose requests were all answered within `limit_ms`."""
    last_s = max(each.due_s for each in sent)
    for start_s in np.arange(end_s, last_s, 0.05):
        window = _window(sent, start_s, start_s + 0.5)
        if window and all(not each.error and each.latency_ms <= limit_ms for each in window):
            return float(start_s - end_s)
    return last_s - end_s


def _samples(sent: Sequence[Sent], memory: Sequence[float]) -> dict[str, list[float]]:
    return {
        "due_s": [round(each.due_s, 3) for each in sent],
        "latency_ms": [round(each.latency_ms, 1) for each in sent],
        "refused": [float(bool(each.error)) for each in sent],
        "memory_mb": [round(each / 2**20, 1) for each in memory],
    }


def peak_per_s(url: str, content: bytes, config: OverloadConfig) -> float:
    """Answers a second to callers who ask again as soon as they are answered; they have a process of their own."""
    job = Job(
        route=Route(via="wire", url=url, timeout_s=config.deadline_s),
        requests=[content],
        images_per_request=1,
        concurrency=config.num_callers,
        schedule=Schedule(warmup_s=1.0, window_s=3.0, max_windows=3),
    )
    with Worker() as worker:
        return worker.call(run_closed, job).images_per_s


def measure_overload(
    running: Running, content: bytes, config: OverloadConfig, capacity_per_s: float
) -> Point:
    """Half, three times, half of the capacity."""
    half = 0.5 * capacity_per_s
    flood = min(config.multiple * capacity_per_s, config.max_rate_per_s)
    phases = ((config.before_s, half), (config.overload_s, flood), (config.after_s, half))
    memory = Memory(running.pids)
    with Worker() as worker:
        sent = worker.call(offer_there, running.address.url, content, phases, config.deadline_s)
    used = memory.close()
    values: dict[str, Scalar] = {"capacity_per_s": capacity_per_s, "offered_per_s": flood}
    values |= {"offered_multiple": flood / capacity_per_s, **_figures(sent, used, config)}
    return Point(settings={"phase": "overload"}, samples=_samples(sent, used), values=values)


def _figures(sent: Sequence[Sent], used: Sequence[float], config: OverloadConfig) -> dict[str, Scalar]:
    """What follows from the requests and the memory of one round."""
    begun_s, end_s = config.before_s, config.before_s + config.overload_s
    settled = used[int(begun_s + SETTLED_S) : int(end_s)]
    during = _window(sent, begun_s, end_s)
    answered = [each for each in sent if not each.error and begun_s + 1.0 <= each.done_s < end_s]
    good = [each for each in answered if each.latency_ms <= config.limit_ms]
    before_ms = _p99(_window(sent, 1.0, begun_s)) or 0.0
    errors = sorted({each.error for each in during if each.error})
    return {
        "goodput_per_s": len(good) / (config.overload_s - 1.0),
        "answered_per_s": len(answered) / (config.overload_s - 1.0),
        "begun_s": begun_s,
        "end_s": end_s,
        "p99_before_ms": before_ms,
        "p99_during_ms": _p99(during),
        "p99_after_ms": _p99(_window(sent, end_s + 1.0, end_s + config.after_s)),
        "normal_after_s": normal_after_s(sent, end_s, max(2 * before_ms, 100.0)),
        "num_asked": len(sent),
        "num_refused": sum(bool(each.error) for each in sent),
        "num_lost": sum(each.error == UNANSWERED for each in sent),
        "num_failed": sum(each.error not in ("", QUEUE_FULL, EXPIRED, UNANSWERED) for each in sent),
        "errors": ", ".join(errors),
        "memory_before_mb": used[int(begun_s)] / 2**20,
        "memory_settled_mb": settled[0] / 2**20,
        "memory_growth_mb": (max(settled) - settled[0]) / 2**20,
    }


def measure_priority(running: Running, pixels: Any, config: OverloadConfig, capacity_per_s: float) -> Point:
    """Interactive requests at a fifth of the capacity while a backfill offers three times of it."""
    seconds = config.overload_s
    rates = {INTERACTIVE: 0.2 * capacity_per_s, BACKFILL: min(3 * capacity_per_s, config.max_rate_per_s)}

    def run(priority: int) -> list[Sent]:
        with Worker() as worker:  # one interpreter each: the backfill must not hold the other up
            return worker.call(
                offer_there,
                running.address.url,
                message(pixels, priority),
                ((seconds, rates[priority]),),
                config.deadline_s,
            )

    with ThreadPoolExecutor(2) as pool:
        results = dict(zip(rates, pool.map(run, rates), strict=True))
    values: dict[str, Scalar] = {"capacity_per_s": capacity_per_s}
    for name, priority in (("interactive", INTERACTIVE), ("backfill", BACKFILL)):
        sent = results[priority]
        values[f"{name}_asked"] = len(sent)
        values[f"{name}_refused"] = sum(bool(each.error) for each in sent)
        values[f"{name}_p99_ms"] = _p99(sent)
    return Point(settings={"phase": "priority"}, samples=_samples(results[INTERACTIVE], ()), values=values)


def bars_of(rounds: Sequence[Point], mixed: Point, config: OverloadConfig) -> list[Bar]:
    """What must hold: medians of the rounds where other work on the machine shows, else the worst."""
    share = statistics.median(each.number("goodput_per_s") / each.number("capacity_per_s") for each in rounds)
    p99_ms = statistics.median(each.number("p99_during_ms") for each in rounds)
    growth_mb = max(each.number("memory_growth_mb") for each in rounds)
    normal_s = max(each.number("normal_after_s") for each in rounds)
    lost = mixed.number("interactive_refused") / max(1.0, mixed.number("interactive_asked"))
    at_most = {
        "p99 of accepted requests, ms": (p99_ms, config.limit_ms),
        "requests without any answer": (sum(each.number("num_lost") for each in rounds), 0.0),
        "errors other than a full queue or a wait that was too long": (
            sum(each.number("num_failed") for each in rounds),
            0.0,
        ),
        "growth of the server's memory after 5 s, MiB": (growth_mb, 16.0),
        "s until normal after the end": (normal_s, 1.0),
        "share of interactive requests refused beside a backfill": (lost, 0.0),
    }
    first = Bar(
        name=f"answers within {config.limit_ms:g} ms at the overload ÷ peak",
        measured=share,
        limit=0.9,
        sense="at_least",
    )
    others = [
        Bar(name=name, measured=value, limit=limit, sense="at_most")
        for name, (value, limit) in at_most.items()
    ]
    return [first, *others]


def main() -> int:
    """Run the benchmark; exit status 1 when a bar is missed."""
    config = tyro.cli(OverloadConfig, description=__doc__)
    began = datetime.datetime.now(datetime.timezone.utc)
    with (
        serving(config.repository, config.settings, models=(MODEL_NAME,)) as running,
        Target(running.address) as target,
    ):
        environment = capture_environment(server=target.server, model=target.model)
        size = target.spec.image
        pixels = np.random.default_rng(0).integers(0, 256, (1, size.height, size.width, 3), dtype=np.uint8)
        content = message(pixels, INTERACTIVE)
        points = []
        for _ in range(config.num_rounds):
            capacity = peak_per_s(running.address.url, content, config)
            points.append(measure_overload(running, content, config, capacity))
        mixed = measure_priority(running, pixels, config, capacity)
    bars = bars_of(points, mixed, config)
    result = make_result(
        "overload", config, [*points, mixed], bars=bars, environment=environment, started_at=began
    )
    print(overload_page.text(result))
    print(write_result(result, config.out))
    print(overload_page.page(result).write(PAGES / f"{file_stem(result)}.html"))
    return 1 if result.missed else 0


if __name__ == "__main__":
    sys.exit(main())
