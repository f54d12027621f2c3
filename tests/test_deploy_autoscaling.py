"""The shipped autoscaler, by Kubernetes' own algorithm, on the recorded counters of a real replica."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest

from benchmarks.autoscaling import (
    SCRAPE_S,
    SYNC_S,
    Recording,
    Trace,
    quantity,
    read_manifest,
    simulate,
    step_load,
)
from benchmarks.results import read_result
from tests.deployed import DEPLOY, ROOT

MANIFEST = DEPLOY / "kubernetes" / "base" / "horizontalpodautoscaler.yaml"
UP_S, DOWN_S, END_S, SETTLED_S = 1200, 2400, 4200, 700
NUM_REPLICAS = 4


@pytest.fixture(scope="module")
def recording() -> Recording:
    """What one real replica's counters said at each load."""
    (path,) = (ROOT / "benchmarks" / "results").glob("*_autoscaling-record.json")
    return Recording(read_result(path).points)


def doubled(spec: Any, recording: Recording, seed: int = 0) -> Trace:
    """Load for four replicas, doubled for twenty minutes."""
    low = 0.6 * recording.capacity_per_s * NUM_REPLICAS
    return simulate(spec, recording, step_load(low, 2 * low, UP_S, DOWN_S), END_S, seed=seed)


def reversals(trace: Trace, start_s: int, end_s: int) -> int:
    """How often the number of replicas changed its direction."""
    part = trace.replicas[start_s:end_s]
    steps = [after - before for before, after in itertools.pairwise(part) if before != after]
    return sum((before > 0) != (after > 0) for before, after in itertools.pairwise(steps))


@pytest.mark.parametrize("seed", [0, 1])
def test_doubled_load_is_followed_up_and_down(recording: Recording, seed: int) -> None:
    """Twice the load: more replicas in the first period that can know of it, enough of them, no flapping, and back."""
    trace = doubled(read_manifest(MANIFEST), recording, seed)
    before = trace.replicas[UP_S - 1]
    first_s = next(at_s for at_s, number in trace.changes if at_s >= UP_S and number > before)
    assert first_s - UP_S <= SCRAPE_S + SYNC_S
    assert 1.75 * before <= trace.replicas[DOWN_S - 1] <= 2.25 * before
    assert max(trace.replicas[UP_S:DOWN_S]) <= 2.5 * before
    assert reversals(trace, SETTLED_S, UP_S) == 0
    assert reversals(trace, UP_S + SETTLED_S, DOWN_S) == 0
    assert trace.replicas[-1] <= before + 1
    assert max(trace.queue_s[UP_S + 120 : DOWN_S]) < 0.1  # the alert's threshold


def test_queue_time_alone_would_flap(recording: Recording) -> None:
    """The simulation can tell a bad rule: without the second metric replicas go down into the next overload, again and again."""
    spec = copy.deepcopy(dict(read_manifest(MANIFEST)))
    spec["metrics"] = spec["metrics"][:1]
    low = 0.6 * recording.capacity_per_s * NUM_REPLICAS
    trace = simulate(spec, recording, lambda _: low, 7200)
    assert reversals(trace, SETTLED_S, 7200) >= 2


def test_quantities_are_read() -> None:
    """`20m` is twenty thousandths."""
    assert quantity("20m") == pytest.approx(0.02)
    assert quantity("3") == 3


def test_manifest_is_where_the_program_looks() -> None:
    """The program's default path exists."""
    from benchmarks.autoscaling import MANIFEST as DEFAULT

    assert Path(ROOT / DEFAULT).resolve() == MANIFEST.resolve()
