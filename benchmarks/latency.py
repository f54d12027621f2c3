"""Latency and throughput in a closed loop: `python benchmarks/latency.py` sweeps callers x batch x input against a server.

A closed loop answers "how fast is it with so many callers?". It sends the next request only when the last is answered, so it cannot
overload a server and hides what queueing does to arrivals that do not wait: `throughput.py` is for that.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from tqdm import tqdm

from benchmarks import latency_page, perf_analyzer
from benchmarks.ceiling import ceiling_bars, measure_ceiling
from benchmarks.corpus import CorpusError, load_files
from benchmarks.counters import TargetError
from benchmarks.ending import finish
from benchmarks.environment import capture_environment, cpu_quota
from benchmarks.in_process import modes
from benchmarks.load import Schedule, run_closed
from benchmarks.payloads import Input, Payloads
from benchmarks.results import Bar, Point, Result, make_result
from benchmarks.senders import Route
from benchmarks.serving import VariantError
from benchmarks.subject import (
    Subject,
    SubjectConfig,
    end_cleanly_on_sigterm,
    fail,
    open_subject,
    same_file,
)
from benchmarks.worker import Interrupted, Worker, WorkerError


@dataclass(frozen=True, kw_only=True)
class LatencyConfig(SubjectConfig):
    """Measure a server in a closed loop and say p50 to p99, throughput, and where the time goes."""

    concurrency: tuple[int, ...] = (1, 4, 16)
    """Callers at the same time, each with one request in flight."""
    batch_size: tuple[int, ...] = (1, 8)
    """Images in one request (with --via client: in one `moderate` call)."""
    input: tuple[Input, ...] = ("pixels",)
    """`pixels`: uint8 arrays of the model's size; `encoded`: JPEG files (over the wire: model moderation_encoded)."""
    via: Literal["wire", "client"] = "wire"
    """`wire`: prepared gRPC messages, the server's own speed; `client`: the product's client, decoding included."""
    engine: Literal["own", "perf_analyzer"] = "own"
    """Load generator: this project's, or NVIDIA's where it is installed (pixels over the wire only)."""
    images: Path | None = None
    """Folder with pictures to send; by default photographs of 1080 x 810 are made."""
    num_images: int = 32
    """Different pictures to cycle through."""
    warmup_s: float = 1.5
    """Load before each point that is not counted."""
    window_s: float = 1.5
    """Length of a measuring window; three that agree are needed."""
    max_windows: int = 6
    """Stop waiting for agreement after so many windows, and say so."""
    timeout_s: float = 60.0
    """A request that takes longer is an error."""
    in_process: bool = False
    """Also run the same ONNX file in process, in interleaved rounds, and give the ratio."""
    rounds: int = 5
    """Rounds for --in-process."""
    ratio_callers: int = 16
    """Single-image callers of --in-process; 1 compares with batch 1 and judges the added latency, too."""
    ratio_limit: float = 0.93
    """Bar of --in-process: served throughput over in-process throughput."""
    ratio_goal: float | None = 0.97
    """Goal beside the bar, for what is asked of FP32."""
    out: Path | None = None
    """Where to write, without ending: OUT.json and OUT.html; by default runs/benchmarks/<date>_<commit>_<machine>_latency."""

    def __post_init__(self) -> None:
        """Check the values. Raises ValueError that names the option."""
        super().__post_init__()
        for name in ("concurrency", "batch_size"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ValueError(f"--{name.replace('_', '-')} needs numbers of at least 1")
        for name in (
            "num_images",
            "ratio_callers",
            "warmup_s",
            "window_s",
            "max_windows",
            "timeout_s",
            "rounds",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"--{name.replace('_', '-')} must be above 0, got {getattr(self, name)}")
        if self.engine == "perf_analyzer" and (self.via != "wire" or self.input != ("pixels",)):
            raise ValueError(
                "--engine perf_analyzer sends pixels over the wire: leave --input and --via alone"
            )

    @property
    def schedule(self) -> Schedule:
        """How long each point takes."""
        return Schedule(warmup_s=self.warmup_s, window_s=self.window_s, max_windows=max(self.max_windows, 3))


@dataclass(kw_only=True)
class Measured:
    """What a run has so far: filled as it goes, so that Ctrl-C loses nothing."""

    points: list[Point] = dataclasses.field(default_factory=list)
    bars: list[Bar] = dataclasses.field(default_factory=list)
    interrupted: bool = False


def sweep(
    config: LatencyConfig, subject: Subject, payloads: Payloads, load: Worker, measured: Measured
) -> None:
    """Measure every combination of input, batch size and concurrency."""
    grid = list(itertools.product(config.input, config.batch_size, config.concurrency))
    for input_, batch_size, concurrency in tqdm(grid, desc="points", disable=None):
        settings = {"input": input_, "via": config.via, "batch_size": batch_size, "concurrency": concurrency}
        if config.engine == "perf_analyzer":
            measured.points.append(
                perf_analyzer.measure(subject, settings, config.window_s, config.timeout_s)
            )
            continue
        job = payloads.job(input_, batch_size, concurrency)
        try:
            measured.points.append(load.call(run_closed, job).point(settings))
        except Interrupted as stopped:
            if stopped.partial.latency_ms:
                measured.points.append(stopped.partial.point(settings))
            raise


def against_ceiling(
    config: LatencyConfig, subject: Subject, payloads: Payloads, load: Worker, measured: Measured
) -> None:
    """Measure single-image callers in rounds with the in-process modes, and judge the bars."""
    path = same_file(subject, config.repository)
    num_callers = config.ratio_callers
    only = modes(max(1, int(cpu_quota())))[:1] if num_callers == 1 else None
    schedule = dataclasses.replace(config.schedule, window_s=config.window_s / 3, max_windows=3, warmup_s=0.7)
    job = dataclasses.replace(payloads.job("pixels", 1, num_callers), schedule=schedule)
    try:
        report = measure_ceiling(
            path, job, load=load, num_rounds=config.rounds, slice_s=config.window_s, only=only
        )
    except Interrupted as stopped:
        report = stopped.partial
        measured.interrupted = True
    if report.served:
        measured.points += report.points()
        measured.bars += ceiling_bars(
            report,
            limit=config.ratio_limit,
            goal=config.ratio_goal if num_callers > 1 else None,
            one_instance=subject.model.get("instances") == "1",
        )


def measure(config: LatencyConfig) -> Result:
    """Run everything that was asked for. Raises TargetError, VariantError, CorpusError or WorkerError."""
    started_at = datetime.datetime.now(datetime.timezone.utc)
    files = load_files(config.images, num_images=config.num_images)
    measured = Measured()
    with (
        open_subject(config, encoded="encoded" in config.input and config.via == "wire") as subject,
        Worker() as load,
    ):
        environment = capture_environment(server=subject.server, model=subject.model)
        route = Route(via=config.via, url=subject.address.url, timeout_s=config.timeout_s)
        payloads = Payloads(subject=subject, route=route, files=files, schedule=config.schedule)
        try:
            if config.in_process:
                against_ceiling(config, subject, payloads, load, measured)
            if not measured.interrupted:
                sweep(config, subject, payloads, load, measured)
        except (KeyboardInterrupt, Interrupted):
            measured.interrupted = True
    return make_result(
        "latency",
        config,
        measured.points,
        bars=measured.bars,
        environment=environment,
        started_at=started_at,
        interrupted=measured.interrupted,
    )


def main(config: LatencyConfig) -> int:
    """Measure, print the tables, write both files; 1 when a bar is missed, 130 after Ctrl-C."""
    try:
        result = measure(config)
    except (TargetError, VariantError, CorpusError, WorkerError, perf_analyzer.PerfAnalyzerError) as error:
        fail(error)
    except KeyboardInterrupt:
        fail("interrupted before anything was measured")
    return finish(result, config.out, text=latency_page.text, page=latency_page.page)


if __name__ == "__main__":
    end_cleanly_on_sigterm()
    raise SystemExit(main(tyro.cli(LatencyConfig)))
