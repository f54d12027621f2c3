"""Whether B is slower than A: `python benchmarks/regression.py A.json B.json` exits with 1 on a significant slowdown beyond the bound.

Points with the same settings are compared. A slowdown counts when the whole interval lies beyond the bound, so that noise does not fail a build. On
another machine only ratios to the in-process ceiling of the same run are compared: times of different machines mean nothing. Such ratios are kept in
benchmarks/baseline.json: `python benchmarks/regression.py --baseline benchmarks/baseline.json B.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.report import text_table
from benchmarks.results import Point, Result, ResultError, read_result
from benchmarks.stats import Interval, median_interval, percentile_of, ratio_of_statistics
from benchmarks.subject import fail

MIN_SAMPLES = 5
PERCENTS = {50: 10, 99: 200}
"""Percentile -> samples that it needs: p99 of a hundred is their second-largest."""
BASELINE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class RegressionConfig:
    """Compare two results of the same benchmark, or one result with ratios that are kept."""

    before: tyro.conf.Positional[Path]
    """Result to compare with; with --baseline the one that must not be slower."""
    after: tyro.conf.Positional[Path | None] = None
    """What must not be slower."""
    baseline: Path | None = None
    """JSON file of ratios to the in-process ceiling, which hold on any machine of a kind."""
    bound: float = 0.1
    """Slowdown that is tolerated: 0.1 is ten percent."""

    def __post_init__(self) -> None:
        """Check the values. Raises ValueError."""
        if not 0 <= self.bound < 1:
            raise ValueError(f"--bound must be 0 to 1, got {self.bound}")
        if (self.after is None) == (self.baseline is None):
            raise ValueError("give two results, or --baseline and one result")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One compared figure: how many times B takes what A took (above 1 is slower)."""

    what: str
    slowdown: Interval
    bound: float

    @property
    def word(self) -> str:
        """`slower` beyond the bound, `faster`, or `not significant`."""
        if self.slowdown.low > 1 + self.bound:
            return "SLOWER"
        if self.slowdown.high < 1:
            return "faster"
        return "slower, within the bound" if self.slowdown.low > 1 else "not significant"


def key(point: Point) -> str | None:
    """What makes a point the same in two files; None for one that no other run has.

    The rate that a search tries follows from the speed of that run; an overload is known by its multiple of the capacity.
    """
    settings = {name: value for name, value in point.settings.items() if value is not None}
    if settings.get("phase") == "search":
        return None
    if settings.get("phase") == "overload":
        settings.pop("offered_per_s", None)
    return json.dumps(settings, sort_keys=True)


def grouped(result: Result) -> dict[str, Point]:
    """One point a key: rounds of the same thing are joined, their goodput a sample a round."""
    groups: dict[str, list[Point]] = {}
    for point in result.points:
        name = key(point)
        if name is not None and point.settings.get("kind") != "in process" and point.valid:
            groups.setdefault(name, []).append(point)
    return {name: _joined(points) for name, points in groups.items()}


def _joined(points: list[Point]) -> Point:
    names = {name for point in points for name in point.samples}
    samples = {name: [value for point in points for value in point.samples.get(name, ())] for name in names}
    if all("goodput_per_s" in point.values for point in points):
        samples["goodput_per_s"] = [point.number("goodput_per_s") for point in points]
    settings = {name: value for name, value in points[0].settings.items() if name != "offered_per_s"}
    return Point(settings=settings if len(points) > 1 else points[0].settings, samples=samples)


def ceiling(result: Result) -> list[float] | None:
    """Throughput of the best in-process mode, a value a round; None when it was not measured."""
    modes = [
        point.samples["images_per_s"] for point in result.points if point.settings.get("kind") == "in process"
    ]
    return max((list(each) for each in modes), key=lambda rates: sorted(rates)[len(rates) // 2], default=None)


def relative(result: Result) -> list[float] | None:
    """Ratio of served to in-process throughput, a value a round."""
    best = ceiling(result)
    served = next((point for point in result.points if point.settings.get("kind") == "served"), None)
    if best is None or served is None:
        return None
    return [ours / theirs for ours, theirs in zip(served.samples["images_per_s"], best, strict=False)]


def compare(before: Result, after: Result, bound: float) -> Iterator[Finding]:
    """Compare everything that can be. Raises ResultError when there is nothing."""
    old_ratio, new_ratio = relative(before), relative(after)
    if old_ratio and new_ratio and min(len(old_ratio), len(new_ratio)) >= MIN_SAMPLES:
        slowdown = ratio_of_statistics(old_ratio, new_ratio, percentile_of(50))
        yield Finding(what="served ÷ in-process throughput", slowdown=slowdown, bound=bound)
    if before.environment.machine == after.environment.machine:
        yield from compare_times(before, after, bound)


def compare_times(before: Result, after: Result, bound: float) -> Iterator[Finding]:
    """Compare latencies and rates of points with the same settings."""
    old, new = grouped(before), grouped(after)
    for name in [name for name in new if name in old]:
        words = ", ".join(
            f"{each} {value}" for each, value in new[name].settings.items() if value is not None
        )
        first, second = ([*point.samples.get("latency_ms", ())] for point in (old[name], new[name]))
        for percent, needed in PERCENTS.items():
            if min(len(first), len(second)) >= needed:
                slowdown = ratio_of_statistics(second, first, percentile_of(percent))
                yield Finding(what=f"{words}: p{percent}", slowdown=slowdown, bound=bound)
        for rate in ("images_per_s", "goodput_per_s"):
            first, second = ([*point.samples.get(rate, ())] for point in (old[name], new[name]))
            if min(len(first), len(second)) >= MIN_SAMPLES and min(*first, *second) > 0:
                slowdown = ratio_of_statistics(first, second, percentile_of(50))
                yield Finding(what=f"{words}: 1 ÷ {rate}", slowdown=slowdown, bound=bound)


def read_baseline(path: Path) -> Mapping[str, float]:
    """Name of a ratio -> its value. Raises ResultError."""
    try:
        payload = json.loads(path.read_text(encoding="utf-8"))
        if payload["schema_version"] != BASELINE_VERSION:
            raise ResultError(f"{path} has schema_version {payload['schema_version']!r}")
        return {str(name): float(value) for name, value in payload["ratios"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultError(f"{path} is no baseline: {error!r}") from error


def against_baseline(path: Path, result: Result, bound: float) -> Iterator[Finding]:
    """Compare the ratio to the ceiling with the one that is kept. Raises ResultError when either is missing."""
    kept, found = read_baseline(path), relative(result)
    if not found or "served" not in kept:
        raise ResultError(
            f"{path} is compared with a result of `latency.py --in-process`: there is no such ratio"
        )
    spread = median_interval([kept["served"] / each for each in found])
    yield Finding(what="served ÷ in-process throughput", slowdown=spread, bound=bound)


def findings(config: RegressionConfig) -> list[Finding]:
    """Compare as asked. Raises ResultError when nothing can be."""
    before = read_result(config.before)
    if config.baseline is not None:
        return list(against_baseline(config.baseline, before, config.bound))
    assert config.after is not None
    after = read_result(config.after)
    if before.benchmark != after.benchmark:
        raise ResultError(
            f"{config.before} is of {before.benchmark!r}, {config.after} of {after.benchmark!r}"
        )
    found = list(compare(before, after, config.bound))
    if not found:
        raise ResultError(
            "nothing to compare: other settings, another machine, or fewer than "
            f"{MIN_SAMPLES} samples; across machines only results of `latency.py --in-process` can be compared"
        )
    return found


def main(config: RegressionConfig) -> int:
    """Print what changed; 1 when anything is significantly slower beyond the bound, 2 when nothing can be compared."""
    try:
        found = findings(config)
    except ResultError as error:
        fail(error)
    rows = [
        [
            each.what,
            f"{each.slowdown.value:.3f}",
            f"{each.slowdown.low:.3f} - {each.slowdown.high:.3f}",
            each.word,
        ]
        for each in found
    ]
    print(text_table(("what", "B ÷ A (above 1: slower)", "interval", "verdict"), rows))
    slower = [each for each in found if each.word == "SLOWER"]
    print(f"\n{len(slower)} of {len(found)} slower by more than {config.bound:.0%}")
    return 1 if slower else 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(RegressionConfig)))
