"""A call does not fill a server's queue with itself, and does not hold a fast one back."""

from __future__ import annotations

import heapq

import pytest

from moderation_client._pace import START_VIEWS, TARGET_S, Pace


def run(pace: Pace, *, rate: float, seconds: float, batch: int = 8) -> tuple[list[float], float]:
    """Feed a server that judges `rate` views a second, one after the other: answer times, and the share of the time it worked."""
    now, free_at, busy_s, took = 0.0, 0.0, 0.0, list[float]()
    with_server: list[tuple[float, float, int]] = []
    while now < seconds:
        while size := pace.room(batch):
            free_at = max(now, free_at) + size / rate
            busy_s += size / rate
            heapq.heappush(with_server, (free_at, now, size))
            pace.sent(size)
            if pace.num_views > 100_000:
                raise AssertionError("nothing holds the call back")
        now, since, size = heapq.heappop(with_server)
        took.append(now - since)
        pace.answered(size, now - since)
    return took, min(1.0, busy_s / now)


@pytest.mark.parametrize("rate", [20.0, 100.0, 1000.0])
def test_answers_stay_quick_and_the_server_busy(rate: float) -> None:
    """Whatever the server's pace: after a few seconds no request waits twice the target, and the server never idles."""
    took, busy = run(Pace(), rate=rate, seconds=60.0)
    assert max(took[len(took) // 4 :]) < 2.0 * TARGET_S
    assert busy > 0.95


def test_a_fast_server_is_soon_given_much() -> None:
    """Doubling: within a second a server of 5,000 views a second has several hundred at once."""
    pace = Pace()
    run(pace, rate=5000.0, seconds=1.0)
    assert pace.limit > 10.0 * START_VIEWS


def test_refusals_shrink_it_once_a_round_and_never_to_nothing() -> None:
    """What is with the server at once says one thing; something may always go."""
    pace = Pace()
    while size := pace.room(8):
        pace.sent(size)
    pace.failed(8, overloaded=True)
    pace.failed(8, overloaded=True)
    assert pace.limit == START_VIEWS / 2.0
    for _ in range(2):
        pace.failed(8, overloaded=True)
    for _ in range(20):
        assert pace.room(8) > 0
        pace.sent(1)
        pace.failed(1, overloaded=True)
    assert pace.room(8) == 4
