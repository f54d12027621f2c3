"""What numbers mean: percentiles, their intervals, and when a ratio is allowed to be called a difference.

Pure functions over raw samples. Nothing here is ever stored alone: results keep the samples and these are computed on reading.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Statistic = Callable[[NDArray[np.float64]], float]
NUM_RESAMPLES = 1000
MIN_ROUNDS = 5
"""The fewest that can be significant."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with the interval that holds it with `confidence`."""

    low: float
    value: float
    high: float
    confidence: float = 0.95

    def __str__(self) -> str:
        """`12.3 (11.9-12.8)`."""
        return f"{self.value:.3g} ({self.low:.3g}-{self.high:.3g})"

    def contains(self, value: float) -> bool:
        """Whether `value` lies within the interval."""
        return self.low <= value <= self.high


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What is always said of latencies together: never a mean alone."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


def percentile(samples: Sequence[float] | NDArray[np.float64], percent: float) -> float:
    """Percentile by linear interpolation. Raises ValueError when there are no samples."""
    values = np.asarray(samples, dtype=np.float64)
    if not values.size:
        raise ValueError(f"the {percent:g}th percentile of no samples is nothing; measure for longer")
    return float(np.percentile(values, percent))


def summarise(samples: Sequence[float]) -> Summary:
    """Count, mean, percentiles and maximum. Raises ValueError when there are no samples."""
    points = [percentile(samples, percent) for percent in (50, 90, 95, 99, 100)]
    p50, p90, p95, p99, largest = points
    return Summary(
        count=len(samples), mean=float(np.mean(samples)), p50=p50, p90=p90, p95=p95, p99=p99, max=largest
    )


def percentile_of(percent: float) -> Statistic:
    """Make the statistic `bootstrap` wants."""
    return lambda values: float(np.percentile(values, percent))


def bootstrap(
    samples: Sequence[float],
    statistic: Statistic,
    *,
    confidence: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    block: int | None = None,
    seed: int = 0,
) -> Interval:
    """Percentile interval of `statistic` by the moving-block bootstrap (Kuensch, 1989).

    Latencies of neighbouring requests depend on each other (they waited in one queue), so blocks of consecutive
    samples are drawn, by default of length n^(1/3); block 1 is Efron's plain bootstrap.
    """
    values = np.asarray(samples, dtype=np.float64)
    if values.size < 2:
        value = statistic(values) if values.size else math.nan
        raise ValueError(f"an interval needs at least two samples, got {values.size} ({value:g})")
    length = min(block or max(1, round(values.size ** (1 / 3))), values.size)
    drawn = _resampled(values, length, num_resamples, np.random.default_rng(seed))
    estimates = np.array([statistic(each) for each in drawn])
    tail = (1 - confidence) / 2 * 100
    low, high = np.percentile(estimates, [tail, 100 - tail])
    return Interval(low=float(low), value=statistic(values), high=float(high), confidence=confidence)


def _resampled(
    values: NDArray[np.float64], length: int, num_resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    num_blocks = math.ceil(values.size / length)
    starts = rng.integers(0, values.size - length + 1, size=(num_resamples, num_blocks, 1))
    index = (starts + np.arange(length)).reshape(num_resamples, -1)[:, : values.size]
    return np.asarray(values[index])


def median_interval(samples: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Median with the exact, distribution-free interval between two order statistics (David and Nagaraja, 2003, 7.1).

    With few samples the widest interval there is (minimum to maximum) may hold less than was asked: `confidence` of the
    answer is what it really holds, 0.9375 for five.
    """
    ordered = sorted(samples)
    if not ordered:
        raise ValueError("the median of no samples is nothing; measure at least one round")
    count = len(ordered)
    rank, held = 0, 1 - 2 * 0.5**count
    cumulated = 0.5**count
    for candidate in range(1, count // 2):
        cumulated += math.comb(count, candidate) * 0.5**count
        if 1 - 2 * cumulated < confidence:
            break
        rank, held = candidate, 1 - 2 * cumulated
    value = float(np.median(ordered))
    return Interval(low=ordered[rank], value=value, high=ordered[count - 1 - rank], confidence=max(held, 0.0))


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times `a` is `b`, from paired rounds, and whether that may be called a difference."""

    interval: Interval
    num_rounds: int

    @property
    def value(self) -> float:
        """Median of the rounds' ratios."""
        return self.interval.value

    @property
    def significant(self) -> bool:
        """Whether at least five rounds agree that it is not 1."""
        return self.num_rounds >= MIN_ROUNDS and not self.interval.contains(1.0)

    @property
    def caution(self) -> str:
        """What must be said beside a verdict on too few rounds; empty when there are enough."""
        return "" if self.num_rounds >= MIN_ROUNDS else f" ({self.num_rounds} rounds prove nothing)"

    def __str__(self) -> str:
        """`1.42x (1.38-1.51)`, or with the words that it means nothing."""
        low, high = self.interval.low, self.interval.high
        text = f"{self.value:.2f}x ({low:.2f}-{high:.2f})"
        return text if self.significant else f"{text}, not significant"


def ratio(a: Sequence[float], b: Sequence[float], *, confidence: float = 0.95) -> Ratio:
    """Ratio a/b of interleaved rounds: each round's own ratio, then their median.

    A neighbour's load moves both halves of a round alike, so the paired ratio is steadier than the ratio of medians.
    Raises ValueError when the rounds are not paired or a value is not positive.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"rounds must be paired, got {len(a)} and {len(b)}")
    if min(*a, *b) <= 0:
        raise ValueError(f"a ratio needs positive values, got {min(*a, *b)}")
    ratios = [first / second for first, second in zip(a, b, strict=True)]
    return Ratio(interval=median_interval(ratios, confidence=confidence), num_rounds=len(ratios))


def ratio_of_statistics(
    a: Sequence[float], b: Sequence[float], statistic: Statistic, *, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Ratio statistic(a) / statistic(b) of two independent sample sets, with a block-bootstrap interval."""
    rng = np.random.default_rng(seed)
    estimates = []
    for samples in (a, b):
        values = np.asarray(samples, dtype=np.float64)
        if values.size < 2:
            raise ValueError(f"an interval needs at least two samples, got {values.size}")
        drawn = _resampled(values, max(1, round(values.size ** (1 / 3))), NUM_RESAMPLES, rng)
        estimates.append(np.array([statistic(each) for each in drawn]))
    tail = (1 - confidence) / 2 * 100
    low, high = np.percentile(estimates[0] / estimates[1], [tail, 100 - tail])
    value = statistic(np.asarray(a, dtype=np.float64)) / statistic(np.asarray(b, dtype=np.float64))
    return Interval(low=float(low), value=float(value), high=float(high), confidence=confidence)
