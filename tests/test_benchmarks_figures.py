"""What `figures.py` runs: settings from the searches, queue limits that fit into the SLO."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from benchmarks.compare import CompareConfig
from benchmarks.figures import SLO_MS, FiguresConfig, Tuned, commands, limits, shape_options, variants
from benchmarks.results import Point, make_result
from benchmarks.serving import Shape

SHAPE = {"num_instances": 1, "num_threads": 2, "max_batch_size": 8, "max_queue_delay_us": 0}


def _tuned() -> Tuned:
    point = Point(settings={"phase": "final", "winner": True, **SHAPE}, values={"images_per_s": 80.0})
    tuned = Tuned()
    tuned.take("int8", make_result("tune", CompareConfig(), [point]))
    return tuned


def test_winners_feed_every_other_program() -> None:
    """The settings that a search picked are those of the variants and of the comparison."""
    tuned = _tuned()
    assert tuned.shapes["int8"] == Shape(**SHAPE)
    assert variants(tuned)["int8"].num_threads == 2
    found = dict(commands(FiguresConfig(), Path("x"), tuned))
    options = shape_options("int8", Shape(**SHAPE))
    assert set(options) <= set(found["compare-jpeg"])
    assert {"decode", "client", "latency-lone", "throughput"} <= set(found)


def test_programs_and_variants_fit_together() -> None:
    """Every folder that a command names is written."""
    tuned = _tuned()
    named = {
        word
        for _, words in commands(FiguresConfig(), Path("/v"), tuned)
        for word in words
        if word[:3] == "/v/"
    }
    assert {Path(each).name for each in named} == set(variants(tuned))


@pytest.mark.parametrize(
    ("rate", "shape"),
    [*itertools.product((40.0, 60.0, 90.0, 150.0), (Shape(), Shape(**SHAPE), Shape(max_batch_size=16)))],
)
def test_queue_limits_leave_room_within_the_slo(rate: float, shape: Shape) -> None:
    """A full queue and a batch of every instance are served within the SLO; something may always wait."""
    found = limits(shape, rate)
    longest_ms = found.timeout_ms + 1000 * shape.num_instances * found.max_batch_size / rate
    assert longest_ms <= SLO_MS
    assert found.max_queue_size >= 2
    assert found.max_queue_size / rate * 1000 <= max(found.timeout_ms + 1, 2000 / rate)
