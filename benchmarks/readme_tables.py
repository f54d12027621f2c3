"""README's figures, generated from committed results: `python benchmarks/readme_tables.py` writes them, `--check` says whether they are current.

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`. NAME is a benchmark, or a benchmark and a word of its file's name
(`compare pixels`); the newest file in benchmarks/results that fits gives the figures, so that none can be typed by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks import compare_page, footprint, latency_page, stages_page, throughput_page, tune_page
from benchmarks.environment import ROOT
from benchmarks.report import BAR_HEADER, bar_rows, markdown_table
from benchmarks.results import Result, ResultError, read_result
from benchmarks.subject import fail

RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- table: ([\w -]+?) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)
Table = tuple[tuple[str, ...], list[list[str]]]


@dataclass(frozen=True, kw_only=True)
class ReadmeTablesConfig:
    """Write README's tables from committed results."""

    readme: Path = ROOT / "README.md"
    results: Path = RESULTS
    check: bool = False
    """Change nothing; exit 1 when a table is not current."""


def _latency(result: Result) -> Table:
    rows = [
        latency_page.row(point)[: latency_page.NUM_LATENCY] for point in latency_page.sweep_points(result)
    ]
    return latency_page.HEADER[: latency_page.NUM_LATENCY], rows


def _compare(result: Result) -> Table:
    ordered = sorted(result.points, key=lambda point: str(point.settings["key"]))
    return compare_page.HEADER, [compare_page.row(point, result.points) for point in ordered]


def _throughput(result: Result) -> Table:
    return throughput_page.HEADER, [throughput_page.row(point) for point in result.points]


def _tune(result: Result) -> Table:
    finals = [point for point in result.points if point.settings["phase"] == "final"]
    return tune_page.HEADER, [tune_page.row(point) for point in finals]


TABLES: dict[str, Callable[[Result], Table]] = {
    "compare": _compare,
    "footprint": lambda result: (footprint.HEADER, footprint.rows(result)),
    "latency": _latency,
    "stages": lambda result: (stages_page.HEADER, stages_page.rows(result)),
    "throughput": _throughput,
    "tune": _tune,
}


def newest(folder: Path, name: str) -> Path:
    """Newest result whose file name holds every word of `name`. Raises ResultError when there is none."""
    words = name.split()
    found = [
        path for path in folder.glob("*.json") if set(words) <= set(re.split(r"[_.-]", path.stem)) and words
    ]
    if not found:
        raise ResultError(f"README asks for the table {name!r}, and {folder.name} holds no such result")
    return max(found, key=lambda path: read_result(path).started_at)


def render(path: Path, name: str) -> str:
    """Markdown of one result: table, bars, and what it was measured on. Raises ResultError."""
    result = read_result(path)
    kind, _, _ = name.partition(" ")
    parts = []
    if not name.endswith(" bars"):
        if kind not in TABLES:
            raise ResultError(f"there is no table for {kind!r}; there are {', '.join(sorted(TABLES))}")
        header, rows = TABLES[kind](result)
        parts.append(markdown_table(header, rows))
    if result.bars:
        parts.append(markdown_table(BAR_HEADER, bar_rows(result.bars)))
    environment = result.environment
    commit = (environment.commit or "no commit")[:7]
    parts.append(
        f"<sub>{environment.cpu_model}, {environment.cpu_quota:g} cores, commit {commit}, {result.started_at[:10]}; "
        f"raw samples: `benchmarks/results/{path.name}`</sub>"
    )
    return "\n\n".join(parts) + "\n"


def rewritten(text: str, folder: Path) -> str:
    """README with every table made anew. Raises ResultError."""

    def fill(match: re.Match[str]) -> str:
        name = match[2]
        return f"{match[1]}\n{render(newest(folder, name.removesuffix(' bars')), name)}\n{match[4]}"

    return BLOCK.sub(fill, text)


def main(config: ReadmeTablesConfig) -> int:
    """Write, or check."""
    before = config.readme.read_text(encoding="utf-8")
    try:
        after = rewritten(before, config.results)
    except ResultError as error:
        fail(error)
    names = ", ".join(match[1] for match in BLOCK.findall(before)) or "none"
    if after == before:
        print(f"README is current; tables: {names}")
        return 0
    if config.check:
        print("README's tables are not those of the committed results: python benchmarks/readme_tables.py")
        return 1
    config.readme.write_text(after, encoding="utf-8")
    print(f"README rewritten; tables: {names}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(ReadmeTablesConfig)))
