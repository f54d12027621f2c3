"""NVIDIA's perf_analyzer as the load generator, where it is installed: the same point, measured by somebody else's program.

Its profile export holds the time stamps of every request, so that the result is of the same form as ours, raw latencies included.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.load import server_values
from benchmarks.results import Point, Scalar
from benchmarks.subject import Subject
from benchmarks.target import Target

PROGRAM = "perf_analyzer"
NUM_WINDOWS = 10
"""perf_analyzer's own limit on tries to find three windows that agree."""


class PerfAnalyzerError(Exception):
    """perf_analyzer is not there or failed; the message has its last words."""


def measure(subject: Subject, settings: dict[str, Scalar], window_s: float, timeout_s: float) -> Point:
    """Measure one point of random pixels. Raises PerfAnalyzerError."""
    program = shutil.which(PROGRAM)
    if program is None:
        raise PerfAnalyzerError(
            "perf_analyzer is not on PATH: pip install perf-analyzer (it needs glibc 2.38), or leave --engine own"
        )
    with tempfile.TemporaryDirectory() as folder:
        export = Path(folder) / "profile.json"
        command = _command(program, subject, settings, window_s, export)
        limit_s = (NUM_WINDOWS + 2) * window_s + timeout_s
        with Target(subject.statistics or subject.address) as target:
            before = target.statistics() if subject.statistics else None
            _run(command, limit_s)
            after = target.statistics() if subject.statistics else None
        split = server_values(after - before) if after is not None and before is not None else {}
        return read_profile(export, settings, split)


def _command(
    program: str, subject: Subject, settings: dict[str, Scalar], window_s: float, export: Path
) -> list[str]:
    concurrency = settings["concurrency"]
    return [
        program, "-m", subject.address.model, "-u", subject.address.url, "-i", "grpc",
        "-b", str(settings["batch_size"]), "--concurrency-range", f"{concurrency}:{concurrency}",
        "--measurement-interval", str(int(window_s * 1000)), "--profile-export-file", str(export),
    ]  # fmt: skip


def _run(command: list[str], limit_s: float) -> None:
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise PerfAnalyzerError(f"perf_analyzer did not finish within {limit_s:.0f} s") from error
    if answer.returncode:
        words = (answer.stderr or answer.stdout).strip().splitlines()
        raise PerfAnalyzerError(f"perf_analyzer ended with {answer.returncode}: {' / '.join(words[-3:])}")


def read_profile(path: Path, settings: dict[str, Scalar], split: dict[str, Scalar]) -> Point:
    """Point of a profile export (time stamps in nanoseconds). Raises PerfAnalyzerError."""
    try:
        requests: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["experiments"][0]["requests"]
        spans = [(each["timestamp"], each["response_timestamps"][-1]) for each in requests]
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise PerfAnalyzerError(f"perf_analyzer's profile export is not readable: {error!r}") from error
    if not spans:
        raise PerfAnalyzerError("perf_analyzer's profile export holds no requests")
    first = min(start for start, _ in spans)
    duration_s = (max(end for _, end in spans) - first) / 1e9
    num_images = len(spans) * int(settings["batch_size"] or 1)
    return Point(
        settings={**settings, "engine": PROGRAM},
        samples={
            "latency_ms": [(end - start) / 1e6 for start, end in spans],
            "ended_s": [(end - first) / 1e9 for _, end in spans],
        },
        values={
            "duration_s": duration_s,
            "num_images": num_images,
            "images_per_s": num_images / duration_s,
            "num_errors": 0,
            **split,
        },
    )
