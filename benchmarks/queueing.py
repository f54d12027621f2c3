"""How long requests wait at a replica: its measured service time, an arrival pattern, and a discrete-event simulation of Triton's batcher.

A replica is one queue before some instances (the Lindley recursion of a multi-server queue, with batches). An instance that is free takes what waits, at most
the largest batch, after the batcher's delay; a batch of b images takes `fixed + b x per_image`, spread as the measured times are.
A balancer that shares independent arrivals out at random leaves each replica independent arrivals (Kingman, Poisson Processes, 1993), so one replica
at its share of the rate stands for any number of them; a balancer that knows better only shortens the wait.
"""

from __future__ import annotations

import dataclasses
import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.results import Point, Result, ResultError

Times = NDArray[np.float64]
BURST_SHARE = 0.1
"""Share of the time that is bursts."""
BURST_S = 5.0
"""Mean length of a burst."""
NUM_REQUESTS = 50_000
"""Simulated for every rate: enough bursts that the p99 settles."""
NUM_SPEED_STEPS = 12
PARTS = ("server_compute_input_ms", "server_compute_infer_ms", "server_compute_output_ms")


@dataclass(frozen=True, kw_only=True)
class Service:
    """One replica, as measured."""

    fixed_ms: float
    """Time of a batch apart from its images."""
    per_image_ms: float
    """Time that each image of a batch adds."""
    max_batch: int
    num_instances: int
    overhead_ms: float = 0.0
    """Between caller and batcher, there and back."""
    delay_ms: float = 0.0
    """How long the batcher waits for company."""
    spread: tuple[float, ...] = (1.0,)
    """Measured service times over their mean: drawn from for every batch."""

    @property
    def capacity_per_s(self) -> float:
        """Images a second of full batches, back to back."""
        return self.num_instances * self.max_batch / self.batch_ms(self.max_batch) * 1000

    def batch_ms(self, num_images: int) -> float:
        """Mean time of a batch."""
        return self.fixed_ms + num_images * self.per_image_ms


def fit_line(batches: Times, times_ms: Times) -> tuple[float, float]:
    """Fixed part and slope of the least-squares line, neither below 0; through 0 when there is one batch size only."""
    if np.ptp(batches) < 0.5:
        return 0.0, float(np.mean(times_ms / batches))
    slope, fixed = np.polyfit(batches, times_ms, 1)
    if slope <= 0:
        return 0.0, float(np.mean(times_ms / batches))
    if fixed < 0:
        return 0.0, float((batches @ times_ms) / (batches @ batches))
    return float(fixed), float(slope)


def service_of(result: Result) -> Service:
    """Service time in a result of latency.py or throughput.py. Raises ResultError when the server's split is not in it."""
    points = [
        each
        for each in result.points
        if each.valid and each.values.get("server_compute_infer_ms") is not None
    ]
    if not points:
        raise ResultError(
            f"the {result.benchmark} result has no server-side times: measure with the server's statistics open"
        )
    batches = np.array([each.number("mean_batch") for each in points])
    times = np.array([sum(each.number(part) for part in PARTS) for each in points])
    fixed_ms, per_image_ms = fit_line(batches, times)
    model = result.environment.model
    lone = _lone(points)
    return Service(
        fixed_ms=fixed_ms,
        per_image_ms=per_image_ms,
        max_batch=int(model.get("max_batch_size", "1")),
        num_instances=int(model.get("instances", "1")),
        overhead_ms=_overhead_ms(lone) if lone else 0.0,
        spread=_spread(lone) if lone else (1.0,),
    )


def _lone(points: list[Point]) -> Point | None:
    """Point of one caller with one image: nothing but service and overhead is in its latencies."""
    for each in points:
        if (
            each.settings.get("concurrency") == 1
            and each.settings.get("batch_size") == 1
            and each.samples.get("latency_ms")
        ):
            return each
    return None


def _overhead_ms(lone: Point) -> float:
    served = sum(lone.number(part) for part in (*PARTS, "server_queue_ms"))
    return max(0.0, lone.summary().mean - served)


def _spread(lone: Point) -> tuple[float, ...]:
    values = np.asarray(lone.samples["latency_ms"], dtype=np.float64)
    return tuple(float(each) for each in values / values.mean())


@dataclass(frozen=True, kw_only=True)
class Waits:
    """What became of simulated requests, in the order of their arrival."""

    queue_ms: Times
    latency_ms: Times
    busy_share: float
    """Share of the instances' time that was spent on batches."""
    mean_batch: float


def arrivals(rate_per_s: float, duration_s: float, *, burst_factor: float = 1.0, seed: int = 0) -> Times:
    """Moments of independent arrivals in seconds; a tenth of the time the rate is `burst_factor` times its mean.

    A Markov-modulated Poisson process of two states (Fischer and Meier-Hellstern, 1993). Raises ValueError for a factor that
    leaves nothing for the rest of the time.
    """
    if not 1.0 <= burst_factor <= 1 / BURST_SHARE:
        raise ValueError(f"the burst factor must be 1 to {1 / BURST_SHARE:g}, got {burst_factor:g}")
    rng = np.random.default_rng(seed)
    if burst_factor == 1.0:
        return np.sort(rng.uniform(0.0, duration_s, rng.poisson(rate_per_s * duration_s)))
    calm = rate_per_s * (1 - BURST_SHARE * burst_factor) / (1 - BURST_SHARE)
    pieces, now, bursting = [], 0.0, False
    while now < duration_s:
        mean_s = BURST_S if bursting else BURST_S * (1 - BURST_SHARE) / BURST_SHARE
        length = min(float(rng.exponential(mean_s)), duration_s - now)
        rate = rate_per_s * burst_factor if bursting else calm
        pieces.append(now + np.sort(rng.uniform(0.0, length, rng.poisson(rate * length))))
        now, bursting = now + length, not bursting
    return np.concatenate(pieces)


def simulate(service: Service, moments: Times, *, seed: int = 0) -> Waits:
    """Serve requests of one image that arrive at `moments` (seconds, ascending)."""
    rng = np.random.default_rng(seed)
    spread = np.asarray(service.spread)
    factors = spread[rng.integers(0, spread.size, size=max(moments.size, 1))]
    free = [0.0] * service.num_instances
    begun, ended = np.empty_like(moments), np.empty_like(moments)
    first = num_batches = 0
    busy_s = 0.0
    while first < moments.size:
        at = _start(service, moments, first, heapq.heappop(free))
        last = min(int(np.searchsorted(moments, at, side="right")), first + service.max_batch)
        length_s = service.batch_ms(last - first) * factors[num_batches] / 1000
        begun[first:last], ended[first:last] = at, at + length_s
        heapq.heappush(free, at + length_s)
        busy_s, num_batches, first = busy_s + length_s, num_batches + 1, last
    horizon = float(ended.max() - moments[0]) if moments.size else 1.0
    return Waits(
        queue_ms=(begun - moments) * 1000,
        latency_ms=(ended - moments) * 1000 + service.overhead_ms,
        busy_share=busy_s / (horizon * service.num_instances),
        mean_batch=moments.size / max(num_batches, 1),
    )


def at_speed(service: Service, moments: Times, compute_ms: float, *, seed: int = 0) -> Service:
    """The same replica, slower or faster, so that its requests are computed for `compute_ms` on average when they arrive at `moments`.

    Processors of shared machines change their speed within minutes; what the server counted in a run says how fast it was then.
    """
    for _ in range(NUM_SPEED_STEPS):
        waits = simulate(service, moments, seed=seed)
        ratio = compute_ms / float(np.mean(waits.latency_ms - waits.queue_ms) - service.overhead_ms)
        factor = ratio**0.5  # who is slower gets larger batches, too: a whole step goes too far
        service = dataclasses.replace(
            service, fixed_ms=service.fixed_ms * factor, per_image_ms=service.per_image_ms * factor
        )
    return service


def _start(service: Service, moments: Times, first: int, free_at: float) -> float:
    """Begin of the next batch: an instance is free, and the batch is full or its first request has waited the delay."""
    waited = moments[first] + service.delay_ms / 1000
    full = first + service.max_batch - 1
    ready = min(waited, moments[full]) if full < moments.size else waited
    return float(max(free_at, ready, moments[first]))


def highest_rate(
    service: Service,
    *,
    slo_ms: float,
    burst_factor: float = 1.0,
    max_utilisation: float = 0.85,
    num_requests: int = NUM_REQUESTS,
) -> float:
    """Images a second that one replica takes with its p99 latency within the SLO; 0 when even a lone request misses it.

    Never above `max_utilisation` of its capacity: the nearer to it, the less a model is worth.
    """

    def holds(rate: float) -> bool:
        moments = arrivals(rate, num_requests / rate, burst_factor=burst_factor)
        return float(np.percentile(simulate(service, moments).latency_ms, 99)) <= slo_ms

    low, high = 0.0, max_utilisation * service.capacity_per_s
    if holds(high):
        return high
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
