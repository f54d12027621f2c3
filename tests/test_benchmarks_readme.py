"""README's figures come from committed results and are current."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.environment import ROOT
from benchmarks.readme_tables import TABLES, ReadmeTablesConfig, label, main, overview, render, rewritten
from benchmarks.results import Point, ResultError, make_result, read_result, write_result


@dataclass(frozen=True, kw_only=True)
class _Config:
    repeats: int = 1


def _write_footprint(folder: Path, start_s: float, started_at: str) -> None:
    point = Point(
        settings={"part": "client, imported"},
        samples={"start_s": [start_s], "memory_bytes": [2.0**24]},
        values={"start_s": start_s, "memory_bytes": 2**24},
    )
    result = make_result("footprint", _Config(), [point])
    object.__setattr__(result, "started_at", started_at)
    write_result(result, folder)


def test_readme_is_current() -> None:
    """Whoever commits a new result also runs `python benchmarks/readme_tables.py`."""
    assert main(ReadmeTablesConfig(check=True)) == 0


def test_committed_results_are_readable_and_say_where_they_come_from() -> None:
    """Every file is of a known schema, made from a commit, and names no folder of anybody's machine."""
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        result = read_result(path)
        assert result.environment.commit, path.name
        assert not result.interrupted, path.name
        text = path.read_text(encoding="utf-8")
        assert "/home/" not in text, path.name
        assert str(ROOT) not in text, path.name


def test_tables_are_made_from_the_newest_result(tmp_path: Path) -> None:
    """A second result replaces the first one's figures; running again changes nothing."""
    text = "# x\n<!-- table: footprint -->\nold\n<!-- end of table -->\nrest\n"
    _write_footprint(tmp_path, 0.25, "2026-01-01T00:00:00Z")
    first = rewritten(text, tmp_path)
    assert "| client, imported | 0.25 | 0.25 | 16 |" in first
    assert "old" not in first
    _write_footprint(tmp_path, 0.5, "2026-02-01T00:00:00Z")
    second = rewritten(first, tmp_path)
    assert "| client, imported | 0.50 |" in second
    assert rewritten(second, tmp_path) == second
    assert second.endswith("rest\n")


def test_a_table_without_a_result_is_an_error(tmp_path: Path) -> None:
    """A marker that nothing fits must not stay as it is in silence."""
    with pytest.raises(ResultError, match="compare pixels"):
        rewritten("<!-- table: compare pixels -->\n<!-- end of table -->\n", tmp_path)


def test_every_committed_result_can_be_shown() -> None:
    """Each has a table or bars, one line in the overview, and says when its commit had local changes."""
    folder = ROOT / "benchmarks" / "results"
    table = overview(folder)
    for path in folder.glob("*.json"):
        result = read_result(path)
        if result.bars or result.benchmark in TABLES:
            shown = render(path, result.benchmark)
            assert ("with local changes" in shown) == bool(result.environment.dirty)
        assert f"[{label(path)}]" in table


def test_check_notices_an_edited_table(tmp_path: Path) -> None:
    """A figure typed by hand fails the check, and writing repairs it."""
    _write_footprint(tmp_path, 0.25, "2026-01-01T00:00:00Z")
    readme = tmp_path / "README.md"
    readme.write_text("<!-- table: footprint -->\n<!-- end of table -->\n")
    assert main(ReadmeTablesConfig(readme=readme, results=tmp_path)) == 0
    readme.write_text(readme.read_text().replace("0.25", "0.05"))
    assert main(ReadmeTablesConfig(readme=readme, results=tmp_path, check=True)) == 1
