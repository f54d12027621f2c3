"""The same images and weights through everything people use: `python benchmarks/compare.py`, ratios from interleaved rounds.

(a) PyTorch eager in process, (b) ONNX Runtime in process in its best mode, FP32 and INT8, (c) the tutorial server, (d) the best simple
server, INT8, (e) LitServe, (f) ours without dynamic batching, (g) ours, FP32, (h) ours, INT8. Everything, load included, shares one machine's cores;
end to end from JPEG bytes to decision, or from pixels.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import tyro
from tqdm import tqdm

from benchmarks import compare_page
from benchmarks.contenders import Contender, ContenderError, ours, peer, run_onnx, run_torch
from benchmarks.corpus import load_files
from benchmarks.ending import finish
from benchmarks.environment import capture_environment, num_cores, sha256_of
from benchmarks.in_process import modes, run_mode
from benchmarks.load import Job, LoadReport, Schedule, run_closed
from benchmarks.networks import NetworkConfig, ensure_network, photographs
from benchmarks.results import Point, Result, make_result
from benchmarks.serving import Shape, VariantError, model_file
from benchmarks.subject import end_cleanly_on_sigterm, fail
from benchmarks.worker import Interrupted, Worker, WorkerError
from moderation_client.contract import ImageSpec


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Put this service beside what people run today."""

    backbone: str = "resnet50"
    """Network, with random weights: speed does not depend on them."""
    input: Literal["jpeg", "pixels"] = "jpeg"
    """`jpeg`: from the bytes of 1080 x 810 files to the decision; `pixels`: decoded before the clock starts."""
    num_callers: int = 16
    rounds: int = 5
    """Interleaved rounds; five are the fewest that can be significant."""
    slice_s: float = 4.0
    """How long each is measured in each round."""
    tutorial_slice_s: float = 12.0
    """The same for the tutorial server, whose slowest requests take several seconds."""
    num_images: int = 32
    fp32: Shape = field(default_factory=Shape)
    """How ours serves FP32; from `tune.py`."""
    int8: Shape = field(default_factory=Shape)
    """How ours serves INT8; from `tune.py`."""
    out: Path | None = None
    """Where to write, without ending; by default runs/benchmarks/<date>_<commit>_<machine>_compare."""

    def __post_init__(self) -> None:
        """Check the values. Raises ValueError that names the option."""
        for name in ("num_callers", "rounds", "slice_s", "tutorial_slice_s", "num_images"):
            if getattr(self, name) <= 0:
                raise ValueError(f"--{name.replace('_', '-')} must be above 0, got {getattr(self, name)}")

    def schedule(self, key: str) -> Schedule:
        """How long the contender of this letter is measured; what is open at the end is waited for."""
        slice_s = self.tutorial_slice_s if key == "c" and self.input == "jpeg" else self.slice_s
        return Schedule(warmup_s=1.0, window_s=slice_s / 3, max_windows=3)


@dataclass(kw_only=True)
class Measured:
    """What one contender did, a value a round."""

    key: str
    name: str
    images_per_s: list[float] = field(default_factory=list)
    latency_ms: list[list[float]] = field(default_factory=list)
    errors: list[int] = field(default_factory=list)

    def add(self, report: LoadReport) -> None:
        """Keep a round of a server."""
        self.images_per_s.append(report.images_per_s)
        self.latency_ms.append(report.latency_ms)
        self.errors.append(sum(report.errors.values()))

    def point(self) -> Point:
        """Turn it into a point of a result; a round without an answer has a p99 of 0, and is not compared."""
        num_errors = sum(self.errors)
        return Point(
            settings={"key": self.key, "name": self.name},
            samples={
                "images_per_s": self.images_per_s,
                "latency_ms": [value for each in self.latency_ms for value in each],
                "p99_ms": [compare_page.p99(each) if each else 0.0 for each in self.latency_ms],
                "errors": [float(each) for each in self.errors],
            },
            values={"num_errors": num_errors, "num_rounds": len(self.images_per_s)},
            valid=not num_errors,
            notes=(f"{num_errors} errors",) if num_errors else (),
        )


@contextlib.contextmanager
def servers(config: CompareConfig, repository: Path) -> Iterator[list[Contender]]:
    """Start everybody. Raises ContenderError or VariantError."""
    fp32, int8 = (str(model_file(repository, name)) for name in ("model.onnx", "model_int8.onnx"))
    plain, quantised = config.fp32.settings("model.onnx"), config.int8.settings("model_int8.onnx")
    unbatched = replace(plain, dynamic_batching=False)
    with contextlib.ExitStack() as running:
        enter = running.enter_context
        yield [
            enter(peer("c", "FastAPI + PyTorch in the handler", "tutorial", ["--backbone", config.backbone])),
            enter(peer("d", "FastAPI + ORT INT8, a worker a core", "simple", ["--model", int8])),
            enter(peer("e", "LitServe + ORT FP32, batch 8", "litserve", ["--model", fp32])),
            enter(ours("f", "ours FP32, no dynamic batching", repository, unbatched)),
            enter(ours("g", "ours FP32", repository, plain)),
            enter(ours("h", "ours INT8", repository, quantised)),
        ]


Reference = Callable[[], float]


def references(
    config: CompareConfig, repository: Path, worker: Worker, files: list[bytes]
) -> dict[tuple[str, str], Reference]:
    """In-process runs: PyTorch, and ONNX Runtime in each mode and precision."""
    found: dict[tuple[str, str], Reference] = {
        ("a", "PyTorch eager in process"): lambda: worker.call(
            run_torch, config.backbone, files if config.input == "jpeg" else None, config.slice_s
        )
    }
    for precision, name in (("FP32", "model.onnx"), ("INT8", "model_int8.onnx")):
        path = model_file(repository, name)
        for mode in modes(num_cores()):

            def run(path: Path = path, mode: Any = mode) -> float:
                if config.input == "jpeg":
                    return worker.call(run_onnx, path, files, mode, config.slice_s / 2)
                return worker.call(run_mode, path, mode, config.slice_s / 2).images_per_s

            found["b", f"ORT {precision} in process, {mode.name}"] = run
    return found


def requests_for(contender: Contender, config: CompareConfig, files: list[bytes], pixels: Any) -> list[Any]:
    """What this contender is sent: bodies, or lists for `moderate`."""
    if contender.route.via == "client":
        return [[file] for file in files] if config.input == "jpeg" else [[each] for each in pixels]
    return files if config.input == "jpeg" else [each.tobytes() for each in pixels]


def run_rounds(config: CompareConfig, repository: Path, measured: dict[str, Measured]) -> None:
    """Measure everybody once a round, in an order that turns. Raises Interrupted or KeyboardInterrupt."""
    files = load_files(None, num_images=config.num_images)
    pixels = photographs(ImageSpec(), config.num_images)
    with servers(config, repository) as everybody, Worker() as load, Worker() as worker:
        in_process = references(config, repository, worker, files)
        jobs = {
            each.key: Job(
                route=each.route,
                requests=requests_for(each, config, files, pixels),
                images_per_request=1,
                concurrency=config.num_callers,
                schedule=config.schedule(each.key),
            )
            for each in everybody
        }
        for index in tqdm(range(config.rounds), desc="rounds", disable=None):
            for (key, name), run in in_process.items():
                measured.setdefault(name, Measured(key=key, name=name)).images_per_s.append(run())
            for each in everybody[index % len(everybody) :] + everybody[: index % len(everybody)]:
                with each.awake():
                    report = load.call(run_closed, jobs[each.key])
                entry = measured.setdefault(each.name, Measured(key=each.key, name=each.name))
                entry.add(report)


def measure(config: CompareConfig) -> Result:
    """Run every round. Raises ContenderError, VariantError or WorkerError."""
    started_at = datetime.datetime.now(datetime.timezone.utc)
    repository = ensure_network(NetworkConfig(backbone=config.backbone))
    hashes = {
        f"{name}_sha256": sha256_of(model_file(repository, name))
        for name in ("model.onnx", "model_int8.onnx")
    }
    environment = capture_environment(model={"network": f"{config.backbone}, random weights", **hashes})
    measured: dict[str, Measured] = {}
    interrupted = False
    try:
        run_rounds(config, repository, measured)
    except (KeyboardInterrupt, Interrupted):
        interrupted = True
    points = [each.point() for each in measured.values() if each.images_per_s]
    return make_result(
        "compare",
        config,
        points,
        bars=compare_page.bars(points, config.input, config.backbone),
        environment=environment,
        started_at=started_at,
        interrupted=interrupted,
    )


def main(config: CompareConfig) -> int:
    """Measure, print, write; 1 when a bar is missed, 130 after Ctrl-C."""
    try:
        result = measure(config)
    except (ContenderError, VariantError, WorkerError) as error:
        fail(error)
    return finish(
        result, config.out, text=compare_page.text, page=compare_page.page, suffix=f"_{config.input}"
    )


if __name__ == "__main__":
    end_cleanly_on_sigterm()
    raise SystemExit(main(tyro.cli(CompareConfig)))
