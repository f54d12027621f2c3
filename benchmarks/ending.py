"""How a program ends: the JSON first, so that nothing which fails while it is shown can lose what was measured; then table, bars, page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.report import Page
from benchmarks.results import Result, file_stem, write_result
from benchmarks.subject import print_bars

RESULTS = Path("runs/benchmarks")
INTERRUPTED = 130
"""Exit code after Ctrl-C, as a shell gives it."""


def finish(
    result: Result,
    out: Path | None,
    *,
    text: Callable[[Result], str],
    page: Callable[[Result], Page],
    suffix: str = "",
) -> int:
    """Write, print, draw; the exit code: 130 after Ctrl-C, 1 when a bar is missed."""
    stem = out or RESULTS / f"{file_stem(result)}{suffix}"
    data = write_result(result, stem.parent, name=f"{stem.name}.json")
    print(text(result))
    if result.interrupted:
        print("interrupted: only what was measured before is here")
    print_bars(result.bars)
    print(f"\n{data}\n{page(result).write(stem.parent / f'{stem.name}.html')}")
    if result.interrupted:
        return INTERRUPTED
    return 1 if result.missed else 0
