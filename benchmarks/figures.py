"""Every committed figure in one go, for a machine that does nothing else: `python benchmarks/figures.py`, about half an hour on two cores.

Runs the other programs with the settings that the bars ask for, writes their results to benchmarks/results, and makes README's tables anew. A program
that misses a bar does not stop the rest; what was missed is said at the end.
"""

from __future__ import annotations

import datetime
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.environment import ROOT, capture_environment
from benchmarks.networks import NetworkConfig, ensure_network
from benchmarks.results import read_result
from benchmarks.serving import Settings, copy_variant

RESULTS = Path("benchmarks/results")
ONE = Settings(num_instances=1, num_threads=2, max_batch_size=8, max_queue_delay_us=0, file="model.onnx")
FP32 = Settings(num_instances=2, num_threads=1, max_batch_size=4, max_queue_delay_us=0, file="model.onnx")
INT8 = Settings(
    num_instances=2, num_threads=1, max_batch_size=4, max_queue_delay_us=0, file="model_int8.onnx"
)


@dataclass(frozen=True, kw_only=True)
class FiguresConfig:
    """Measure everything that README and the bars speak of."""

    only: tuple[str, ...] = ()
    """Names of the figures to measure; by default all."""
    repository: Path = Path("model_repository")
    """The demo's repository, for the figures of the demo model."""
    backbone: str = "resnet50"
    """Network of the other figures, with random weights."""
    dry_run: bool = False
    """Print the commands only."""


def commands(config: FiguresConfig, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Name and arguments of every figure; variants of the network's repository lie in `folder`."""
    serve = ["--serve", "--repository"]
    ceiling = ["--in-process", "--rounds", "7", "--window-s", "2", "--concurrency", "16", "--batch-size", "1"]
    lone = ["--ratio-callers", "1", "--ratio-limit", "0.93"]
    one, fp32, int8 = (str(folder / name) for name in ("one", "fp32", "int8"))
    yield "footprint", ["footprint.py", "--repository", str(config.repository)]
    yield "latency-demo", ["latency.py", *serve, str(config.repository), "--input", "pixels", "encoded"]
    yield "latency-one", ["latency.py", *serve, one, *ceiling]
    yield "latency-fp32", ["latency.py", *serve, fp32, *ceiling, "--ratio-limit", "0.93"]
    yield "latency-int8", ["latency.py", *serve, int8, *ceiling, "--ratio-limit", "0.88"]
    yield "latency-lone", ["latency.py", *serve, one, *ceiling, *lone]
    yield "compare-jpeg", ["compare.py", "--backbone", config.backbone]
    yield "compare-pixels", ["compare.py", "--backbone", config.backbone, "--input", "pixels"]
    yield "stages", ["stages.py", *serve, int8]
    yield "moderate", ["moderate.py", *serve, int8]
    limits = ["--slo-p99-ms", "250", "--max-queue-size", "16", "--queue-timeout-ms", "200"]
    yield "throughput", ["throughput.py", *serve, int8, *limits, "--overload"]
    for name in ("model.onnx", "model_int8.onnx"):
        kind = "fp32" if name == "model.onnx" else "int8"
        yield f"tune-{kind}", ["tune.py", str(folder / "own"), "--file", name]
    yield "tune-lone", ["tune.py", str(folder / "own"), "--file", "model.onnx", "--goal", "latency"]


def prepare(config: FiguresConfig, folder: Path) -> None:
    """Write the variants of the network's repository."""
    source = ensure_network(NetworkConfig(backbone=config.backbone))
    for name, settings in (("one", ONE), ("fp32", FP32), ("int8", INT8), ("own", Settings())):
        copy_variant(source, folder / name, settings)


def stem(name: str) -> Path:
    """Give `<date>_<commit>_<machine>_<name>` in the folder of committed results."""
    environment = capture_environment()
    stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%S")
    return RESULTS / f"{stamp}_{(environment.commit or 'nocommit')[:7]}_{environment.machine}_{name}"


def run(name: str, arguments: list[str]) -> list[str]:
    """Run one program; what it missed, in words."""
    out = stem(name)
    program, *rest = arguments
    print(f"\n=== {name}\n$ python benchmarks/{program} {' '.join(rest)}", flush=True)
    command = [sys.executable, f"benchmarks/{program}", *rest, "--out", str(out)]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    path = ROOT / out.with_suffix(".json")
    if not path.is_file():
        return [f"{name}: failed with exit code {code}"]
    (ROOT / out.with_suffix(".html")).unlink(
        missing_ok=True
    )  # made again from the JSON at any time; too large for git
    return [f"{name}: {bar}" for bar in read_result(path).missed]


def main(config: FiguresConfig) -> int:
    """Measure, then make README's tables; 1 when anything was missed."""
    missed = []
    with tempfile.TemporaryDirectory(prefix="moderation-figures-") as temporary:
        folder = Path(temporary)
        if not config.dry_run:
            prepare(config, folder)
        for name, arguments in commands(config, folder):
            if config.only and name not in config.only:
                continue
            if config.dry_run:
                print(f"{name}: python benchmarks/{' '.join(arguments)}")
            else:
                missed += run(name, arguments)
    if not config.dry_run:
        subprocess.run([sys.executable, "benchmarks/readme_tables.py"], cwd=ROOT, check=False)
        print("\n".join(["", *(missed or ["every bar is met"])]))
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(FiguresConfig)))
