"""What a benchmark leaves behind: one JSON file a run, raw samples included, from which every table and plot can be made again.

Written by `dataclasses.asdict` alone, so that a key cannot be misspelt; units stand in the keys; NaN and infinity are refused.
Percentiles, intervals and verdicts on bars are functions (`benchmarks.stats`, `Bar.met`) and never the only thing stored.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.environment import Environment, capture_environment
from benchmarks.stats import Summary, summarise

SCHEMA_VERSION = 1
"""1: first. A reader refuses what it does not know and says which version wrote it."""

Scalar = str | int | float | bool | None


class ResultError(Exception):
    """A result file is missing, of another schema, or not usable; the message names it."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A figure that the product must reach, and what was measured."""

    name: str
    """What is measured, with its unit."""
    measured: float
    limit: float
    sense: Literal["at_least", "at_most"]
    low: float | None = None
    high: float | None = None
    """Interval of `measured`, where there is one."""
    goal: bool = False
    """A goal is reported either way and fails nothing."""
    ratio: bool = False
    """Whether `measured` compares two things: then an interval around 1 says that there is no difference."""

    @property
    def met(self) -> bool:
        """Whether the measured value is on the right side of the limit."""
        return self.measured >= self.limit if self.sense == "at_least" else self.measured <= self.limit

    @property
    def significant(self) -> bool:
        """Whether a ratio's interval leaves no doubt on which side of 1 it is; other figures are not asked."""
        if not self.ratio or self.low is None or self.high is None:
            return True
        return not self.low <= 1.0 <= self.high

    @property
    def word(self) -> str:
        """`pass` or `miss`."""
        return "pass" if self.met else "miss"

    @property
    def verdict(self) -> str:
        """The word, and that a ratio is no difference when it is none."""
        return self.word if self.significant else f"{self.word}, not significant"

    def __str__(self) -> str:
        """One line for a terminal."""
        sign = ">=" if self.sense == "at_least" else "<="
        interval = (
            f" ({self.low:.3g}-{self.high:.3g})" if self.low is not None and self.high is not None else ""
        )
        kind = "goal" if self.goal else "bar"
        note = "" if self.significant else ", difference from 1 not significant"
        return f"{self.word}  {self.name}: {self.measured:.3g}{interval}, {kind} {sign} {self.limit:g}{note}"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measured point: what was set, the raw samples, and counters read beside them."""

    settings: Mapping[str, Scalar]
    """What makes this point differ from the others: `{"concurrency": 16, "batch_size": 1}`."""
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Raw values in the order they were measured, unit in the key: `{"latency_ms": [...]}`."""
    values: Mapping[str, Scalar] = field(default_factory=dict)
    """Single readings, unit in the key: `{"duration_s": 10.0, "num_errors": 0}`."""
    valid: bool = True
    """False when the measurement cannot be trusted; `notes` says why."""
    notes: tuple[str, ...] = ()

    def summary(self, name: str = "latency_ms") -> Summary:
        """Percentiles of one of the sample lists. Raises ValueError when it is empty."""
        return summarise(self.samples.get(name, ()))

    def number(self, name: str) -> float:
        """One of `values` as a number. Raises ResultError when it is not one."""
        value = self.values.get(name)
        if value is None or isinstance(value, str):
            raise ResultError(
                f"point {dict(self.settings)} has no number {name!r}; it has {sorted(self.values)}"
            )
        return float(value)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run of one benchmark."""

    benchmark: str
    config: Mapping[str, Any]
    environment: Environment
    points: tuple[Point, ...]
    bars: tuple[Bar, ...] = ()
    started_at: str = ""
    """UTC, ISO 8601."""
    interrupted: bool = False
    """Whether Ctrl-C ended the run early; what was measured before is here."""
    schema_version: int = SCHEMA_VERSION

    @property
    def missed(self) -> list[Bar]:
        """Bars (not goals) that were not reached."""
        return [bar for bar in self.bars if not bar.met and not bar.goal]


def make_result(
    benchmark: str,
    config: object,
    points: Sequence[Point],
    *,
    bars: Sequence[Bar] = (),
    environment: Environment | None = None,
    started_at: datetime.datetime | None = None,
    interrupted: bool = False,
) -> Result:
    """Put a run together; `config` is the program's dataclass. The environment is read now unless given."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"config must be a dataclass instance, got {type(config).__name__}")
    moment = started_at or datetime.datetime.now(datetime.timezone.utc)
    return Result(
        benchmark=benchmark,
        config=_plain(dataclasses.asdict(config)),
        environment=environment or capture_environment(),
        points=tuple(points),
        bars=tuple(bars),
        started_at=moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
        interrupted=interrupted,
    )


def _plain(value: Any) -> Any:
    """JSON-ready copy; a path keeps only what says which file it was, never where somebody's home folder is."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, os.PathLike):
        path = Path(value)
        return path.name if path.is_absolute() else path.as_posix()
    return value


def write_result(result: Result, folder: Path, *, name: str | None = None) -> Path:
    """Write `<date>_<commit>_<machine>_<benchmark>.json` (or `name`) into `folder`, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = name or f"{file_stem(result)}.json"
    text = json.dumps(
        _rounded(dataclasses.asdict(result)), allow_nan=False, indent=None, separators=(",", ":")
    )
    handle, temporary = tempfile.mkstemp(dir=folder, suffix=".part")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text.replace('"points":', '\n"points":').replace('{"settings":', '\n{"settings":') + "\n")
    Path(temporary).chmod(0o644)
    return Path(temporary).replace(folder / stem)


def file_stem(result: Result) -> str:
    """File name without its ending: sorts by date, says commit, machine and benchmark."""
    stamp = result.started_at.replace(":", "").replace("-", "").rstrip("Z")
    commit = (result.environment.commit or "nocommit")[:7]
    return f"{stamp}_{commit}_{result.environment.machine}_{result.benchmark}"


def _rounded(value: Any) -> Any:
    """Six significant decimals are finer than any clock here and keep files small."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(each) for each in value]
    return value


def read_result(path: Path) -> Result:
    """Read what `write_result` wrote. Raises ResultError that names the file and what is wrong with it."""
    try:
        payload = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ResultError(f"{path} is not JSON: {error}") from error
    found = payload.get("schema_version") if isinstance(payload, dict) else None
    if found != SCHEMA_VERSION:
        raise ResultError(f"{path} has schema_version {found!r}, this program reads {SCHEMA_VERSION}")
    try:
        environment = Environment(**payload.pop("environment"))
        points = tuple(
            Point(**{**each, "notes": tuple(each.get("notes", ()))}) for each in payload.pop("points")
        )
        bars = tuple(Bar(**each) for each in payload.pop("bars"))
        return Result(environment=environment, points=points, bars=bars, **payload)
    except (KeyError, TypeError) as error:
        raise ResultError(f"{path} is not a benchmark result: {error}") from error
