"""Result files: what is written is what is read, and what must not be in them is not."""

from __future__ import annotations

import dataclasses
import json
import socket
from pathlib import Path

import pytest

from benchmarks.environment import capture_environment
from benchmarks.results import Bar, Point, Result, ResultError, make_result, read_result, write_result


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Config:
    url: str = "127.0.0.1:8001"
    images: Path = Path("/somebody/home/pictures")
    concurrency: tuple[int, ...] = (1, 16)


def _result(**changes: object) -> Result:
    point = Point(
        settings={"concurrency": 16}, samples={"latency_ms": [1.0, 2.5, 3.25]}, values={"duration_s": 2.0}
    )
    bar = Bar(name="throughput ratio", measured=0.9, limit=0.85, sense="at_least", low=0.88, high=0.92)
    result = make_result("latency", _Config(), [point], bars=[bar])
    return dataclasses.replace(result, **changes)  # type: ignore[arg-type]


def test_round_trip(tmp_path: Path) -> None:
    """Reading gives back the same result, and the same environment."""
    written = _result()
    path = write_result(written, tmp_path)
    found = read_result(path)
    assert found.points[0].summary().p50 == 2.5
    assert found.bars == written.bars
    assert found.config["concurrency"] == [1, 16]
    assert found.environment.cpu_model == written.environment.cpu_model
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_nan_is_refused(tmp_path: Path) -> None:
    """A figure that is not a number never reaches a file, and no half file stays."""
    with pytest.raises(ValueError, match="JSON compliant"):
        write_result(_result(points=(Point(settings={}, values={"x_ms": float("nan")}),)), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ('{"schema_version": 99}', "schema_version 99"),
        ('{"schema_version": 1}', "not a benchmark"),
    ],
)
def test_unusable_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    """The error says which file and why."""
    path = tmp_path / "old.json"
    path.write_text(text)
    with pytest.raises(ResultError, match=message) as caught:
        read_result(path)
    assert "old.json" in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    """No bare FileNotFoundError."""
    with pytest.raises(ResultError, match=r"nothing\.json"):
        read_result(tmp_path / "nothing.json")


def test_neither_host_name_nor_folders_are_recorded(tmp_path: Path) -> None:
    """Result files are published: they say what machine, not whose."""
    text = write_result(_result(), tmp_path).read_text()
    assert "/somebody" not in text
    assert str(Path.home()) not in text.replace('"/"', "")
    assert socket.gethostname() not in json.dumps(dataclasses.asdict(capture_environment()))


def test_bars_pass_and_miss_in_both_senses() -> None:
    """At least and at most, with equality passing."""
    assert Bar(name="a", measured=1.0, limit=1.0, sense="at_least").met
    assert Bar(name="a", measured=1.0, limit=1.0, sense="at_most").met
    missed = Bar(name="a", measured=2.0, limit=1.0, sense="at_most")
    assert str(missed).startswith("miss  a: 2, bar <= 1")
    goal = Bar(name="b", measured=0.0, limit=1.0, sense="at_least", goal=True)
    assert _result(bars=(missed, goal)).missed == [missed]


def test_a_config_must_be_a_dataclass() -> None:
    """A loose dict cannot carry its own names."""
    with pytest.raises(TypeError, match="dataclass"):
        make_result("latency", {"url": "x"}, [])
