"""Whether B is slower than A: `python benchmarks/regression.py A.json B.json` exits with 1 on a significant slowdown beyond the bound.

Points with the same settings are compared. A slowdown counts when the whole interval lies beyond the bound, so that noise does not fail a build. On
another machine only ratios to the in-process ceiling of the same run are compared: times of different machines mean nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.report import text_table
from benchmarks.results import Point, Result, ResultError, read_result
from benchmarks.stats import Interval, percentile_of, ratio_of_statistics
from benchmarks.subject import fail

MIN_SAMPLES = 5
PERCENTS = (50, 99)


@dataclass(frozen=True, kw_only=True)
class RegressionConfig:
    """Compare two results of the same benchmark."""

    before: tyro.conf.Positional[Path]
    """Baseline."""
    after: tyro.conf.Positional[Path]
    """What must not be slower."""
    bound: float = 0.1
    """Slowdown that is tolerated: 0.1 is ten percent."""

    def __post_init__(self) -> None:
        """Check the values. Raises ValueError."""
        if not 0 <= self.bound < 1:
            raise ValueError(f"--bound must be 0 to 1, got {self.bound}")


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


def key(point: Point) -> str:
    """What makes a point the same in two files."""
    return json.dumps(
        {name: value for name, value in point.settings.items() if value is not None}, sort_keys=True
    )


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
    old = {key(point): point for point in before.points}
    for point in after.points:
        match = old.get(key(point))
        if match is None or point.settings.get("kind") == "in process":
            continue
        name = ", ".join(f"{name} {value}" for name, value in point.settings.items() if value is not None)
        for percent in PERCENTS:
            first, second = (each.samples.get("latency_ms", ()) for each in (match, point))
            if min(len(first), len(second)) >= MIN_SAMPLES:
                slowdown = ratio_of_statistics(second, first, percentile_of(percent))
                yield Finding(what=f"{name}: p{percent}", slowdown=slowdown, bound=bound)
        first, second = (each.samples.get("images_per_s", ()) for each in (match, point))
        if min(len(first), len(second)) >= MIN_SAMPLES:
            slowdown = ratio_of_statistics(first, second, percentile_of(50))
            yield Finding(what=f"{name}: 1 ÷ images/s", slowdown=slowdown, bound=bound)


def main(config: RegressionConfig) -> int:
    """Print what changed; 1 when anything is significantly slower beyond the bound, 2 when nothing can be compared."""
    try:
        before, after = read_result(config.before), read_result(config.after)
        if before.benchmark != after.benchmark:
            raise ResultError(
                f"{config.before} is of {before.benchmark!r}, {config.after} of {after.benchmark!r}"
            )
        findings = list(compare(before, after, config.bound))
        if not findings:
            raise ResultError(
                "nothing to compare: other settings, another machine, or fewer than "
                f"{MIN_SAMPLES} samples; across machines only results of `latency.py --in-process` can be compared"
            )
    except ResultError as error:
        fail(error)
    rows = [
        [
            each.what,
            f"{each.slowdown.value:.3f}",
            f"{each.slowdown.low:.3f} - {each.slowdown.high:.3f}",
            each.word,
        ]
        for each in findings
    ]
    print(text_table(("what", "B ÷ A (above 1: slower)", "interval", "verdict"), rows))
    slower = [each for each in findings if each.word == "SLOWER"]
    print(f"\n{len(slower)} of {len(findings)} slower by more than {config.bound:.0%}")
    return 1 if slower else 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(RegressionConfig)))
