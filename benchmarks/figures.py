"""Every committed figure in one go, for a machine that does nothing else: `python benchmarks/figures.py`, about 40 minutes on two cores.

`tune.py` runs first, for FP32, INT8 and a lone caller; the other programs then run with the settings that it picked and that the bars ask for, write
their results to benchmarks/results, and README's tables are made anew. A program that misses a bar does not stop the rest; what was missed is said at the end.
"""

from __future__ import annotations

import datetime
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from benchmarks.environment import ROOT, capture_environment
from benchmarks.networks import NetworkConfig, ensure_network
from benchmarks.readme_tables import newest
from benchmarks.results import Result, ResultError, read_result
from benchmarks.serving import Settings, Shape, copy_variant
from benchmarks.tune_page import winner_of

RESULTS = Path("benchmarks/results")
ONE = Shape(num_instances=1, num_threads=2, max_batch_size=8)
"""One instance that all callers share: the run in which batches must form."""
LONE = Shape(num_instances=2, num_threads=2, max_batch_size=8)
TUNED = {
    "fp32": ("model.onnx", "throughput"),
    "int8": ("model_int8.onnx", "throughput"),
    "lone": ("model.onnx", "latency"),
}
"""Name -> file and goal of the searches."""
SLO_MS = 250.0
"""Of the open-loop run."""
RATE_PER_S = 60.0
"""ResNet-50 INT8 on two cores, where no search says it better."""


@dataclass(frozen=True, kw_only=True)
class FiguresConfig:
    """Measure everything that README and the bars speak of."""

    only: tuple[str, ...] = ()
    """Names of the figures to measure; by default all. Settings then come from the newest committed searches."""
    repository: Path = Path("model_repository")
    """The demo's repository, for the figures of the demo model."""
    backbone: str = "resnet50"
    """Network of the other figures, with random weights."""
    dry_run: bool = False
    """Print the commands only."""


@dataclass(kw_only=True)
class Tuned:
    """What the searches picked; the defaults until they have."""

    shapes: dict[str, Shape] = field(default_factory=lambda: dict.fromkeys(TUNED, Shape()) | {"lone": LONE})
    int8_per_s: float = RATE_PER_S

    def take(self, name: str, result: Result) -> None:
        """Take over the winner of a search. Raises ResultError."""
        self.shapes[name], point = winner_of(result)
        if name == "int8":
            self.int8_per_s = point.number("images_per_s")

    def take_committed(self) -> None:
        """Take over the newest committed searches, those that there are."""
        for name in TUNED:
            try:
                self.take(name, read_result(newest(ROOT / RESULTS, f"tune {name}")))
            except (ResultError, KeyError):  # none yet, or of before winners had fields
                print(f"no committed search for {name}: {self.shapes[name]}")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Queue limits under which whoever is accepted is answered within the SLO."""

    max_batch_size: int
    max_queue_size: int
    timeout_ms: int


def limits(shape: Shape, rate_per_s: float) -> Limits:
    """From the measured rate: the wait in a full queue and a batch of every instance must fit into the SLO, with some room.

    A queue of Q images takes Q / rate to drain, and a batch of B on N instances at once takes N x B / rate.
    """
    batch = shape.max_batch_size
    while batch > 1 and 1000 * shape.num_instances * batch / rate_per_s > 0.45 * SLO_MS:
        batch //= 2
    batch_ms = 1000 * shape.num_instances * batch / rate_per_s
    room_ms = max(0.8 * SLO_MS - batch_ms, 0.2 * SLO_MS)
    return Limits(
        max_batch_size=batch, max_queue_size=max(2, int(room_ms * rate_per_s / 1000)), timeout_ms=int(room_ms)
    )


def searches(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Name and arguments of every search: short ones, without queue delays, which a closed loop of many callers does not need."""
    short = ["--delays-us", "0", "--slice-s", "3", "--budget-s", "120", "--num-finalists", "3", "--no-write"]
    for name, (file, goal) in TUNED.items():
        yield f"tune-{name}", ["tune.py", str(folder / "own"), "--file", file, "--goal", goal, *short]


def commands(config: FiguresConfig, folder: Path, tuned: Tuned) -> Iterator[tuple[str, list[str]]]:
    """Name and arguments of every other figure; variants of the network's repository lie in `folder`."""
    serve = ["--serve", "--repository"]
    ceiling = ["--in-process", "--rounds", "7", "--window-s", "3", "--concurrency", "16", "--batch-size", "1"]
    one, fp32, int8, lone, limited = (str(folder / name) for name in variants(tuned))
    yield "footprint", ["footprint.py", "--repository", str(config.repository)]
    yield "decode", ["decode.py"]
    yield "client", ["client.py", "--num-images", "5000"]
    yield "latency-demo", ["latency.py", *serve, str(config.repository), "--input", "pixels", "encoded"]
    yield "latency-one", ["latency.py", *serve, one, *ceiling]
    yield "latency-fp32", ["latency.py", *serve, fp32, *ceiling]
    yield "latency-int8", ["latency.py", *serve, int8, *ceiling, "--ratio-limit", "0.88"]
    yield "latency-lone", ["latency.py", *serve, lone, *ceiling, "--ratio-callers", "1"]
    compare = ["compare.py", "--backbone", config.backbone]
    for name in ("fp32", "int8"):
        compare += shape_options(name, tuned.shapes[name])
    yield "compare-jpeg", compare
    yield "compare-pixels", [*compare, "--input", "pixels", "--slice-s", "3"]
    yield "stages", ["stages.py", *serve, int8]
    yield "moderate", ["moderate.py", *serve, int8]
    found = limits(tuned.shapes["int8"], tuned.int8_per_s)
    queue = ["--max-queue-size", str(found.max_queue_size), "--queue-timeout-ms", str(found.timeout_ms)]
    slo = ["--slo-p99-ms", f"{SLO_MS:g}"]
    yield "throughput", ["throughput.py", *serve, limited, *slo, *queue, "--overload"]


def shape_options(name: str, shape: Shape) -> list[str]:
    """Options of compare.py for one of its two forms of ours."""
    numbers = {
        "num-instances": shape.num_instances,
        "num-threads": shape.num_threads,
        "max-batch-size": shape.max_batch_size,
        "max-queue-delay-us": shape.max_queue_delay_us,
    }
    return [word for option, value in numbers.items() for word in (f"--{name}.{option}", str(value))]


def variants(tuned: Tuned) -> Mapping[str, Settings]:
    """Variants of the network's repository that the programs serve."""
    shapes = tuned.shapes
    smaller = limits(shapes["int8"], tuned.int8_per_s).max_batch_size
    return {
        "one": replace(ONE.settings("model.onnx"), queue_limits=False),
        "fp32": shapes["fp32"].settings("model.onnx"),
        "int8": shapes["int8"].settings("model_int8.onnx"),
        "lone": shapes["lone"].settings("model.onnx"),
        "limited": replace(shapes["int8"], max_batch_size=smaller).settings("model_int8.onnx"),
    }


def stem(name: str) -> Path:
    """Give `<date>_<commit>_<machine>_<name>` in the folder of committed results."""
    environment = capture_environment()
    stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%S")
    return RESULTS / f"{stamp}_{(environment.commit or 'nocommit')[:7]}_{environment.machine}_{name}"


def run(name: str, arguments: list[str]) -> tuple[list[str], Result | None]:
    """Run one program; what it missed, in words, and its result."""
    out, began = stem(name), time.monotonic()
    program, *rest = arguments
    print(f"\n=== {name}\n$ python benchmarks/{program} {' '.join(rest)}", flush=True)
    command = [sys.executable, f"benchmarks/{program}", *rest, "--out", str(out)]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    print(f"=== {name} took {time.monotonic() - began:.0f} s", flush=True)
    path = ROOT / out.with_suffix(".json")
    if not path.is_file():
        return [f"{name}: failed with exit code {code}"], None
    (ROOT / out.with_suffix(".html")).unlink(
        missing_ok=True
    )  # made again from the JSON at any time; too large for git
    result = read_result(path)
    return [f"{name}: {bar}" for bar in result.missed], result


def measure(config: FiguresConfig, folder: Path) -> list[str]:
    """Search, then measure everything with what was found; what was missed."""
    missed: list[str] = []
    tuned = Tuned()
    tuned.take_committed()
    source = ensure_network(NetworkConfig(backbone=config.backbone))
    copy_variant(source, folder / "own", Settings())
    for name, arguments in searches(folder):
        if not config.only or name in config.only:
            words, result = run(name, arguments)
            missed += words
            if result is not None:
                tuned.take(name.removeprefix("tune-"), result)
    for name, settings in variants(tuned).items():
        copy_variant(source, folder / name, settings)
    for name, arguments in commands(config, folder, tuned):
        if not config.only or name in config.only:
            missed += run(name, arguments)[0]
    return missed


def main(config: FiguresConfig) -> int:
    """Measure, then make README's tables; 1 when anything was missed."""
    if config.dry_run:
        for name, arguments in [*searches(Path("VARIANTS")), *commands(config, Path("VARIANTS"), Tuned())]:
            print(f"{name}: python benchmarks/{' '.join(arguments)}")
        return 0
    with tempfile.TemporaryDirectory(prefix="moderation-figures-") as temporary:
        missed = measure(config, Path(temporary))
    subprocess.run([sys.executable, "benchmarks/readme_tables.py"], cwd=ROOT, check=False)
    print("\n".join(["", *(missed or ["every bar is met"])]))
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(FiguresConfig)))
