"""`python benchmarks/regression.py`: finds slowdowns, ignores noise, refuses to compare what cannot be."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from benchmarks.environment import ROOT
from benchmarks.regression import RegressionConfig, main, read_baseline
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


def _rounds(offered: float, goodput: float, *, seed: int) -> list[Point]:
    rng = np.random.default_rng(seed)
    return [
        Point(
            settings={"phase": "overload", "multiple": 3.0, "offered_per_s": offered},
            samples={"latency_ms": rng.gamma(9.0, 2.0, size=60).tolist()},
            values={"goodput_per_s": float(goodput * rng.normal(1.0, 0.01))},
        )
        for _ in range(5)
    ]


def test_rounds_of_one_thing_are_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five rounds of an overload are compared together, at whatever rates; searched rates are not compared."""
    searched = Point(settings={"phase": "search", "offered_per_s": 70.0}, samples={"latency_ms": [1.0] * 300})
    results = [
        make_result("throughput", _Config(), [searched, *_rounds(180.0 * each, 60.0 * each, seed=seed)])
        for seed, each in enumerate((1.0, 0.7))
    ]
    assert _run(tmp_path, results[0], results[1]) == 1
    printed = capsys.readouterr().out
    assert "goodput_per_s" in printed
    assert "p99" in printed
    assert "search" not in printed


def test_the_tail_of_few_samples_is_not_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sixty requests have a median, and no p99 worth a verdict."""
    few = [
        dataclasses.replace(_result(1.0, seed=seed), points=(
            Point(settings={"concurrency": 1}, samples={"latency_ms": [float(value) for value in range(1, 61)]}),
        ))
        for seed in (1, 2)
    ]  # fmt: skip
    assert _run(tmp_path, few[0], few[1]) == 0
    printed = capsys.readouterr().out
    assert "p50" in printed
    assert "p99" not in printed


def test_a_kept_ratio_is_compared_with_one_run(tmp_path: Path) -> None:
    """The committed baseline: the same ratio passes, one that is lower by half fails, a result without ratio is an error."""
    baseline = tmp_path / "baseline.json"
    baseline.write_text('{"schema_version": 1, "ratios": {"served": 0.9}}')
    paths = [
        write_result(_result(1.0, seed=1, served=served), tmp_path, name=f"{served}.json")
        for served in (0.9, 0.45)
    ]
    assert main(RegressionConfig(before=paths[0], baseline=baseline, bound=0.3)) == 0
    assert main(RegressionConfig(before=paths[1], baseline=baseline, bound=0.3)) == 1
    other = write_result(make_result("stages", _Config(), []), tmp_path, name="other.json")
    with pytest.raises(SystemExit):
        main(RegressionConfig(before=other, baseline=baseline))
    with pytest.raises(ValueError, match="--baseline"):
        RegressionConfig(before=paths[0])


def test_the_committed_baseline_is_readable() -> None:
    """It holds the one ratio that is compared, near what the speed bars ask for."""
    assert 0.5 < read_baseline(ROOT / "benchmarks" / "baseline.json")["served"] <= 1.0
