"""README's figures, generated from committed results: `python benchmarks/readme_tables.py` writes them, `--check` says whether they are current.

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`. NAME is a benchmark, or a benchmark and a word of its file's name
(`compare pixels`); the newest file in benchmarks/results that fits gives the figures, so that none can be typed by hand. A benchmark without a table of
its own gives its bars, NAME with ` bars` at its end the bars alone, and `all results` one line for the newest file of every kind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks import (
    client,
    compare_page,
    decode,
    faults_page,
    footprint,
    latency_page,
    moderate,
    overload_page,
    stages_page,
    throughput_page,
    tune_page,
)
from benchmarks.environment import ROOT
from benchmarks.report import BAR_HEADER, bar_rows, markdown_table
from benchmarks.results import Bar, Result, ResultError, read_result
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


def _overload(result: Result) -> Table:
    return ("phase", "what", "value"), [
        [str(point.settings["phase"]), *cells]
        for point in result.points
        for cells in overload_page.rows(point)
    ]


def _faults(result: Result) -> Table:
    return faults_page.HEADER, [list(faults_page.row(point)) for point in faults_page.faults_of(result)]


TABLES: dict[str, Callable[[Result], Table]] = {
    "client": lambda result: (client.HEADER, client.rows(result)),
    "compare": _compare,
    "decode": lambda result: (decode.HEADER, decode.rows(result)),
    "faults": _faults,
    "footprint": lambda result: (footprint.HEADER, footprint.rows(result)),
    "latency": _latency,
    "moderate": lambda result: (moderate.HEADER, moderate.rows(result)),
    "overload": _overload,
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
    parts = []
    if not name.endswith(" bars") and result.benchmark in TABLES:
        header, rows = TABLES[result.benchmark](result)
        parts.append(markdown_table(header, rows))
    if result.bars:
        parts.append(markdown_table(BAR_HEADER, bar_rows(result.bars)))
    if not parts:
        raise ResultError(
            f"{path.name} has neither table nor bars; there are tables for {', '.join(sorted(TABLES))}"
        )
    environment = result.environment
    parts.append(
        f"<sub>{environment.cpu_model}, {environment.cpu_quota:g} cores, commit {commit_of(result)}, {result.started_at[:10]}; "
        f"raw samples: `benchmarks/results/{path.name}`</sub>"
    )
    return "\n\n".join(parts) + "\n"


def commit_of(result: Result) -> str:
    """Commit that was measured, and whether that is all of it."""
    environment = result.environment
    return f"{(environment.commit or 'no commit')[:7]}{' with local changes' if environment.dirty else ''}"


def label(path: Path) -> str:
    """Word for what a file holds: the end of its name, after date, commit and machine."""
    return path.stem.split("_", 3)[-1]


def overview(folder: Path) -> str:
    """Markdown of the newest result of every kind: how many bars were met, and what it was measured on. Raises ResultError."""
    found: dict[str, tuple[Path, Result]] = {}
    for path in sorted(folder.glob("*.json")):
        result = read_result(path)
        known = found.get(label(path))
        if known is None or known[1].started_at <= result.started_at:
            found[label(path)] = path, result
    if not found:
        raise ResultError(f"{folder.name} holds no results")
    header = ("result", "bars met", "goals met", "measured on", "commit", "date")
    rows = [
        [
            f"[{name}](benchmarks/results/{path.name})",
            *(_met([bar for bar in result.bars if bar.goal is goal]) for goal in (False, True)),
            f"{result.environment.cpu_model}, {result.environment.cpu_quota:g} cores",
            commit_of(result),
            result.started_at[:10],
        ]
        for name, (path, result) in sorted(found.items())
    ]
    return markdown_table(header, rows) + "\n"


def _met(bars: Sequence[Bar]) -> str:
    return f"{sum(bar.met for bar in bars)} of {len(bars)}" if bars else "-"


def rewritten(text: str, folder: Path) -> str:
    """README with every table made anew. Raises ResultError."""

    def fill(match: re.Match[str]) -> str:
        name = match[2]
        if name == "all results":
            table = overview(folder)
        else:
            table = render(newest(folder, name.removesuffix(" bars")), name)
        return f"{match[1]}\n{table}\n{match[4]}"

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
