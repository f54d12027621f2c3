"""The arithmetic that every benchmark's claim rests on."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.stats import (
    bootstrap,
    median_interval,
    percentile,
    percentile_of,
    ratio,
    ratio_of_statistics,
    summarise,
)


def test_summary_of_known_values() -> None:
    """Percentiles of 0..100 are their own names."""
    found = summarise([float(value) for value in range(101)])
    assert (found.p50, found.p90, found.p95, found.p99, found.max) == (50, 90, 95, 99, 100)
    assert (found.count, found.mean) == (101, 50)


def test_no_samples_is_an_error_and_not_nan() -> None:
    """A point without samples must not become a figure."""
    with pytest.raises(ValueError, match="measure for longer"):
        percentile([], 50)
    with pytest.raises(ValueError, match="at least two samples"):
        bootstrap([1.0], percentile_of(50))


def test_bootstrap_covers_the_true_median() -> None:
    """A 95 % interval holds the true value in about 95 of 100 draws."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(100):
        samples = rng.exponential(10.0, size=300).tolist()
        held += bootstrap(samples, percentile_of(50), num_resamples=300).contains(10.0 * np.log(2))
    assert 86 <= held <= 100


def test_block_bootstrap_is_wider_on_dependent_samples() -> None:
    """Neighbouring latencies depend on each other; pretending otherwise gives an interval that is too narrow."""
    rng = np.random.default_rng(2)
    walk = np.repeat(rng.normal(10.0, 1.0, size=40), 25).tolist()
    plain = bootstrap(walk, percentile_of(50), block=1)
    blocks = bootstrap(walk, percentile_of(50), block=25)
    assert blocks.high - blocks.low > 1.5 * (plain.high - plain.low)


def test_median_interval_says_what_it_really_holds() -> None:
    """Five rounds cannot give 95 %: minimum to maximum holds 93.75 %."""
    five = median_interval([5.0, 1.0, 4.0, 2.0, 3.0])
    assert (five.low, five.value, five.high, five.confidence) == (1.0, 3.0, 5.0, 0.9375)
    twenty = median_interval([float(value) for value in range(20)])
    assert (twenty.low, twenty.high) == (5.0, 14.0)
    assert twenty.confidence == pytest.approx(0.9586, abs=1e-4)


def test_ratio_pairs_the_rounds() -> None:
    """A machine that halves its speed in mid-run moves both halves of a round, not the ratio."""
    ours, theirs = [20.0, 20.2, 10.0, 10.1, 20.1], [10.0, 10.0, 5.0, 5.0, 10.0]
    found = ratio(ours, theirs)
    assert found.value == pytest.approx(2.01)
    assert found.significant
    assert "not significant" not in str(found)


def test_ratio_of_too_few_or_straddling_rounds_is_not_significant() -> None:
    """Four rounds prove nothing, nor do five that disagree about the direction."""
    assert not ratio([2.0] * 4, [1.0] * 4).significant
    straddling = ratio([1.1, 0.9, 1.2, 1.1, 1.1], [1.0] * 5)
    assert not straddling.significant
    assert "not significant" in str(straddling)


@pytest.mark.parametrize(("a", "b"), [([1.0], [1.0, 2.0]), ([], []), ([0.0], [1.0])])
def test_ratio_refuses_what_it_cannot_pair(a: list[float], b: list[float]) -> None:
    """Unpaired rounds and throughput of zero are errors."""
    with pytest.raises(ValueError, match=r"paired|positive"):
        ratio(a, b)


def test_ratio_of_statistics_finds_a_slowdown() -> None:
    """Half as fast again is seen at the median, and the same distribution is not."""
    rng = np.random.default_rng(3)
    before, same = rng.gamma(4.0, 5.0, size=(2, 800))
    slower = ratio_of_statistics((before * 1.5).tolist(), same.tolist(), percentile_of(50))
    assert slower.low > 1.2
    assert ratio_of_statistics(before.tolist(), same.tolist(), percentile_of(50)).contains(1.0)
