"""Make the page of a committed result again: `python benchmarks/render.py benchmarks/results/X.json`."""

from __future__ import annotations

from collections.abc import Callable
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
    soak_page,
    stages_page,
    throughput_page,
    tune_page,
)
from benchmarks.report import Page
from benchmarks.results import Result, ResultError, read_result
from benchmarks.subject import fail

PAGES: dict[str, Callable[[Result], Page]] = {
    "client": client.page,
    "compare": compare_page.page,
    "decode": decode.page,
    "faults": faults_page.page,
    "footprint": footprint.page,
    "latency": latency_page.page,
    "moderate": moderate.page,
    "overload": overload_page.page,
    "soak": soak_page.page,
    "stages": stages_page.page,
    "throughput": throughput_page.page,
    "tune": tune_page.page,
}


@dataclass(frozen=True, kw_only=True)
class RenderConfig:
    """Write the HTML page of a result file."""

    result: tyro.conf.Positional[Path]
    out: Path | None = None
    """Page to write; by default in runs/benchmarks, named like the result."""


def main(config: RenderConfig) -> int:
    """Read, render, write; prints the path."""
    try:
        result = read_result(config.result)
        if result.benchmark not in PAGES:
            raise ResultError(
                f"{config.result} is of {result.benchmark!r}, which has a page of its own program"
            )
    except ResultError as error:
        fail(error)
    out = config.out or Path("runs/benchmarks") / f"{config.result.stem}.html"
    print(PAGES[result.benchmark](result).write(out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(RenderConfig)))
