"""What a person sees while a backfill runs: rate, time left and cost of this run, whatever an earlier one did."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from bulk import progress
from bulk.plan import Plan
from bulk.progress import Progress, estimate_s


class _Bar:
    """What tqdm is told."""

    def __init__(self, **options: Any) -> None:
        self.total, self.done = options["total"], options["initial"]
        self.postfix = ""

    def update(self, number: int) -> None:
        self.done += number

    def set_postfix_str(self, text: str) -> None:
        self.postfix = text

    def close(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set; and a bar that remembers."""
    now = [0.0]
    monkeypatch.setattr(progress, "tqdm", _Bar)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def plan(num_images: int | None, num_shards: int) -> Plan:
    """A plan of which only its size matters here."""
    fields: dict[str, Any] = {each.name: None for each in dataclasses.fields(Plan)}
    return Plan(**{**fields, "num_images": num_images, "num_shards": num_shards})


def test_cost_is_of_this_run_alone(clock: list[float]) -> None:
    """Half was done earlier; a quarter of the whole in 1,800 s costs half an hour, and the rest twice as much."""
    with Progress(plan(4000, 4), 2, 2000, cost_per_hour=2.0) as bar:
        clock[0] = 1800.0
        bar.images(1000)
        bar.shard_done()
        assert bar._bar.done == 3000
        assert bar._bar.postfix == "cost 1.00 of about 2.00"


def test_archives_are_as_long_as_those_before(clock: list[float]) -> None:
    """Nobody knows how many images a tar holds: as many as those that were read, those of an earlier run included."""
    with Progress(plan(None, 4), 1, 500, cost_per_hour=1.0) as bar:
        clock[0] = 3600.0
        bar.images(300)
        bar.shard_done()
        assert bar._bar.total == 1600
        assert bar._bar.postfix == "cost 1.00 of about 3.67"


def test_nothing_done_has_no_estimate() -> None:
    """The first shard is still on its way."""
    assert estimate_s(10.0, 0, 100) >= 10.0
