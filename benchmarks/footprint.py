"""What it costs to have the parts at all: start-up time and idle memory of client, server and trainer.

Each start is a fresh process with files in the page cache; memory is the proportional set size (shared pages counted once) when the
part is ready and does nothing. The client's import time is without the interpreter's own start.
"""

from __future__ import annotations

import datetime
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import tqdm

from benchmarks import machine
from benchmarks.environment import ROOT
from benchmarks.report import Page, figure, text_table
from benchmarks.results import Point, Result, file_stem, make_result, write_result
from benchmarks.serving import VariantError, serving
from benchmarks.subject import end_cleanly_on_sigterm, fail

RESULTS = Path("runs/benchmarks")
TIMED = """
import json, sys, time
started = time.perf_counter()
{code}
took = time.perf_counter() - started
rollup = open("/proc/self/smaps_rollup").read()
pss = next(line for line in rollup.splitlines() if line.startswith("Pss:"))
print(json.dumps([took, int(pss.split()[1]) * 1024]))
"""
CODE = {
    "interpreter": "pass",
    "client, imported": "import moderation_client",
    "client, ready to ask": (
        "import moderation_client; client = moderation_client.ModerationClient('127.0.0.1:9');"
        " import tritonclient.grpc, PIL.Image"
    ),
    "trainer, network built": (
        "import train.model, train.backbones; train.backbones.build_backbone('efficientnet_lite0')"
    ),
}


@dataclass(frozen=True, kw_only=True)
class FootprintConfig:
    """Measure start-up time and idle memory of client, server and trainer."""

    repository: Path = Path("model_repository")
    """What the server loads."""
    repeats: int = 7
    """Fresh processes of each kind."""
    server_repeats: int = 3
    """Starts of the server."""
    out: Path | None = None
    """Where to write, without ending; by default runs/benchmarks/<date>_<commit>_<machine>_footprint."""


def run_code(code: str) -> tuple[float, int]:
    """Seconds and bytes of a fresh interpreter that runs `code`."""
    command = [sys.executable, "-c", TIMED.format(code=code)]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    took_s, memory_bytes = json.loads(answer.stdout.splitlines()[-1])
    return float(took_s), int(memory_bytes)


def start_server(repository: Path) -> tuple[float, int]:
    """Seconds until ready and bytes of all its processes, idle."""
    started = time.perf_counter()
    with serving(repository) as running:
        took_s = time.perf_counter() - started
        time.sleep(1.0)  # let it settle after the warm-up
        return took_s, machine.memory_bytes(running.pids)


def repeat(name: str, measure: Callable[[], tuple[float, int]], times: int) -> Point:
    """Measure several times; the first start, which fills the page cache, is not counted."""
    measure()
    readings = [measure() for _ in tqdm(range(times), desc=name, disable=None)]
    return Point(
        settings={"part": name},
        samples={
            "start_s": [took_s for took_s, _ in readings],
            "memory_bytes": [float(memory) for _, memory in readings],
        },
        values={
            "start_s": statistics.median(took_s for took_s, _ in readings),
            "memory_bytes": int(statistics.median(memory for _, memory in readings)),
        },
    )


def measure(config: FootprintConfig) -> Result:
    """Measure everything. Raises VariantError when the server does not start."""
    started_at = datetime.datetime.now(datetime.timezone.utc)
    points = []
    for name, code in CODE.items():
        points.append(repeat(name, lambda code=code: run_code(code), config.repeats))  # type: ignore[misc]
    points.append(repeat("server, ready", lambda: start_server(config.repository), config.server_repeats))
    return make_result("footprint", config, points, started_at=started_at)


HEADER = ("part", "start-up s", "slowest s", "idle MiB")


def rows(result: Result) -> list[list[str]]:
    """Rows under `HEADER`, for terminal, page and README."""
    return [
        [
            str(point.settings["part"]),
            f"{point.number('start_s'):.2f}",
            f"{max(point.samples['start_s']):.2f}",
            f"{point.number('memory_bytes') / 2**20:.0f}",
        ]
        for point in result.points
    ]


def page(result: Result) -> Page:
    """Build the HTML page."""
    document = Page(
        "Start-up time and idle memory",
        "Fresh processes, files in the page cache; memory is the proportional set size once ready.",
    )
    document.heading("Parts")
    document.table(HEADER, rows(result))
    names = [str(point.settings["part"]) for point in result.points]
    drawing, (left, right) = figure(columns=2, height=3.0)
    left.barh(names, [point.number("start_s") for point in result.points])
    right.barh(names, [point.number("memory_bytes") / 2**20 for point in result.points], color="#d55e00")
    left.set(xlabel="start-up, s")
    right.set(xlabel="idle memory, MiB")
    right.set_yticklabels([])
    left.invert_yaxis()
    right.invert_yaxis()
    document.figure(drawing, "Start-up time and idle memory of each part.")
    document.environment(result)
    return document


def main(config: FootprintConfig) -> int:
    """Measure, print, write."""
    try:
        result = measure(config)
    except VariantError as error:
        fail(error)
    print(text_table(HEADER, rows(result)))
    stem = config.out or RESULTS / file_stem(result)
    data = write_result(result, stem.parent, name=f"{stem.name}.json")
    print(f"\n{data}\n{page(result).write(stem.parent / f'{stem.name}.html')}")
    return 0


if __name__ == "__main__":
    end_cleanly_on_sigterm()
    raise SystemExit(main(tyro.cli(FootprintConfig)))
