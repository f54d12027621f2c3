"""`python benchmarks/regression.py`: finds slowdowns, ignores noise, refuses to compare what cannot be."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from benchmarks.regression import RegressionConfig, main
from benchmarks.results import Point, Result, make_result, write_result


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Config:
    repeats: int = 1


def _result(scale: float, *, seed: int, machine: str | None = None, served: float = 0.9) -> Result:
    rng = np.random.default_rng(seed)
    latencies = (scale * rng.gamma(9.0, 2.0, size=600)).tolist()
    noise = rng.normal(1.0, 0.01, size=(2, 5))
    points = [
        Point(settings={"concurrency": 16}, samples={"latency_ms": latencies}),
        Point(
            settings={"kind": "in process", "mode": "w2"}, samples={"images_per_s": (20 * noise[0]).tolist()}
        ),
        Point(
            settings={"kind": "served", "mode": "served"},
            samples={"images_per_s": (20 * served * noise[1]).tolist(), "latency_ms": []},
        ),
    ]
    result = make_result("latency", _Config(), points)
    if machine is None:
        return result
    return dataclasses.replace(result, environment=dataclasses.replace(result.environment, machine=machine))


def _run(tmp_path: Path, before: Result, after: Result, bound: float = 0.1) -> int:
    paths = [
        write_result(each, tmp_path, name=f"{name}.json") for name, each in (("a", before), ("b", after))
    ]
    return main(RegressionConfig(before=paths[0], after=paths[1], bound=bound))


def test_the_same_is_not_slower(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two runs of the same thing differ by noise only."""
    assert _run(tmp_path, _result(1.0, seed=1), _result(1.0, seed=2)) == 0
    assert "not significant" in capsys.readouterr().out


def test_a_slowdown_beyond_the_bound_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A third slower is found; with a bound of one half it is tolerated."""
    before, after = _result(1.0, seed=1), _result(1.33, seed=2)
    assert _run(tmp_path, before, after) == 1
    assert "SLOWER" in capsys.readouterr().out
    assert _run(tmp_path, before, after, bound=0.6) == 0


def test_another_machine_compares_ratios_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A machine ten times as slow with the same ratio to its own ceiling is no regression; a lower ratio is."""
    before = _result(1.0, seed=1)
    assert _run(tmp_path, before, _result(10.0, seed=2, machine="elsewhere")) == 0
    assert "p50" not in capsys.readouterr().out
    assert _run(tmp_path, before, _result(1.0, seed=3, machine="elsewhere", served=0.6)) == 1


def test_nothing_in_common_is_an_error(tmp_path: Path) -> None:
    """Silence would pass for success."""
    other = dataclasses.replace(_result(1.0, seed=1), points=(Point(settings={"concurrency": 3}),))
    with pytest.raises(SystemExit) as caught:
        _run(tmp_path, _result(1.0, seed=1), other)
    assert caught.value.code == 2
    with pytest.raises(SystemExit):
        _run(tmp_path, _result(1.0, seed=1), dataclasses.replace(other, benchmark="stages"))
