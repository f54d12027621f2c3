"""Throughput between lumps of answers, and which requests of a window count."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.load import _counted
from benchmarks.rates import answers_per_s


def _batched(per_s: float, batch: int, until_s: float, offset_s: float) -> list[float]:
    """Moments of answers that come `batch` at once."""
    lumps = np.arange(offset_s, until_s, batch / per_s)
    return [float(lump + 0.0005 * index) for lump in lumps for index in range(batch)]


@pytest.mark.parametrize("offset_s", [0.0, 0.11, 0.23, 0.37])
def test_batches_do_not_quantise_the_rate(offset_s: float) -> None:
    """A window of 2 s holds 40 or 48 answers of a server of 21.3 images/s; the rate is 21.3 wherever the window lies."""
    ended = _batched(21.3, 8, 9.0, offset_s)
    assert answers_per_s(ended, 3.0, 5.0) == pytest.approx(21.3, rel=0.005)


def test_answers_one_by_one_are_counted_without_bias() -> None:
    """Independent answers have no lumps: borders at long gaps would give a rate that is too low."""
    rng = np.random.default_rng(0)
    found = [answers_per_s(np.cumsum(rng.exponential(0.05, 400)).tolist(), 2.0, 8.0) for _ in range(200)]
    assert np.mean(found) == pytest.approx(20.0, rel=0.01)


def test_two_instances_take_turns() -> None:
    """Lumps of two instances that interleave are lumps, too."""
    ended = _batched(10.0, 4, 12.0, 0.0) + _batched(10.0, 4, 12.0, 0.13)
    assert answers_per_s(ended, 2.0, 6.0) == pytest.approx(20.0, rel=0.03)


def test_a_stall_is_not_left_out() -> None:
    """A server that answers for a quarter of the window and then stands still is not as fast as in that quarter."""
    assert answers_per_s(_batched(20.0, 4, 3.0, 2.0), 2.0, 6.0) < 7.0
    assert answers_per_s([], 0.0, 1.0) == 0.0


def test_a_request_that_is_open_at_the_end_counts() -> None:
    """What began in the window counts with its whole latency, and so does what outlasted the window; warm-up does not."""
    slow, warm, quick, stuck, late = (
        (9.0, 5.5, None), (2.1, 0.5, None), (2.5, 0.3, None), (8.0, 7.0, None), (5.0, 0.5, None)
    )  # fmt: skip
    assert _counted([slow, warm, quick, stuck, late], 2.0, 4.0) == sorted([slow, quick, stuck])
