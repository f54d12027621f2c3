"""Where the time of one request goes, from the file on disk to the verdict: `python benchmarks/stages.py --serve`.

Every picture is taken through the stages one by one, with the product's own functions, and then through `moderate()` whole; the stages must
add up to the whole. Time inside the server is from its own statistics; `network` is what a prepared message takes beyond that.
"""

from __future__ import annotations

import datetime
import functools
import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm
from tritonclient.grpc import service_pb2

from benchmarks.corpus import CorpusError, load_files
from benchmarks.counters import TargetError
from benchmarks.environment import capture_environment
from benchmarks.report import COLOURS, Page, figure, number, text_table
from benchmarks.results import Bar, Point, Result, file_stem, make_result, write_result
from benchmarks.senders import unary
from benchmarks.serving import VariantError
from benchmarks.stats import bootstrap
from benchmarks.subject import Subject, SubjectConfig, end_cleanly_on_sigterm, fail, open_subject, print_bars
from benchmarks.target import Target, pixel_message
from moderation_client import ModerationClient, Policy
from moderation_client.contract import policy_parameter
from moderation_client.images import decode

RESULTS = Path("runs/benchmarks")
STAGES = (
    "read", "decode", "resize", "serialise", "network", "queue", "copy in", "compute", "copy out", "decide",
)  # fmt: skip
SERVER = {
    "queue": "queue",
    "copy in": "compute_input",
    "compute": "compute_infer",
    "copy out": "compute_output",
}
LIMIT = 0.05


@dataclass(frozen=True, kw_only=True)
class StagesConfig(SubjectConfig):
    """Say where one request's time goes, at one caller."""

    images: Path | None = None
    """Folder with pictures; by default photographs of 1080 x 810 are made."""
    num_images: int = 32
    repeats: int = 4
    """Times that each picture is taken through."""
    out: Path | None = None
    """Where to write, without ending; by default runs/benchmarks/<date>_<commit>_<machine>_stages."""


class Clock:
    """Collects milliseconds under names."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.samples: dict[str, list[float]] = {}

    def time(self, name: str, function: Callable[[], Any]) -> Any:
        """Run it and remember how long it took."""
        started = time.perf_counter()
        answer = function()
        self.samples.setdefault(name, []).append((time.perf_counter() - started) * 1000)
        return answer


def decoded_only(file: bytes, size: tuple[int, int]) -> Image.Image:
    """Decode without resizing, at the reduced scale that a JPEG allows."""
    image = Image.open(io.BytesIO(file))
    if image.format == "JPEG":
        image.draft(None, size)
    image.load()
    return image


def take_apart(clock: Clock, path: Path, subject: Subject, call: Any, policy: Policy) -> None:
    """One picture, stage by stage."""
    spec = subject.spec.image
    file = clock.time("read", path.read_bytes)
    clock.time("decode", lambda: decoded_only(file, (spec.width, spec.height)))
    pixels = clock.time("decode and resize", lambda: decode(file, spec).pixels)
    message = clock.time("serialise", lambda: pixel_message(pixels[:1]))
    answer = clock.time("wire", lambda: call(message))
    clock.time("decide", lambda: decide(answer, policy))


def decide(answer: bytes, policy: Policy) -> Any:
    """Read the answer and judge it."""
    response = service_pb2.ModelInferResponse.FromString(answer)
    return policy.decide(np.frombuffer(response.raw_output_contents[0], dtype=np.float32))


def policy_of(subject: Subject, target: Target) -> Policy:
    """Policy that travels with the model, or one that reviews everything above a half."""
    text = target.config.parameters.get(policy_parameter(target.version))
    if text is not None:
        return Policy.from_json(text.string_value)
    from moderation_client import Threshold  # noqa: PLC0415  only where none travels

    labels = subject.spec.labels
    return Policy(labels=labels, thresholds={label: Threshold(review=0.5) for label in labels})


def run(config: StagesConfig, subject: Subject, paths: list[Path]) -> Clock:
    """Take all pictures apart and through the client, in turns. Raises TargetError."""
    clock = Clock()
    if subject.statistics is None:
        raise TargetError(
            "stages needs the server's statistics: give --token-file or --metrics-url, or use --serve"
        )
    with (
        Target(subject.statistics) as target,
        grpc.insecure_channel(subject.address.url) as channel,
        ModerationClient(subject.address.url) as client,
    ):
        policy, call = policy_of(subject, target), unary(channel)
        for path in paths[:4]:  # warm-up of server, client and caches
            client.moderate([path])
            take_apart(Clock(), path, subject, call, policy)
        before = target.statistics()
        for path in tqdm(paths * config.repeats, desc="pictures", disable=None):
            take_apart(clock, path, subject, call, policy)
            clock.time("whole", functools.partial(client.moderate, [path]))
        split = target.statistics() - before
    for stage, part in SERVER.items():
        clock.samples[stage] = [split.mean_ms(part) or 0.0]
    return clock


def stage_means(clock: Clock) -> dict[str, float]:
    """Mean of each stage; resizing and the network are what is left of the steps that contain them."""
    means = {name: float(np.mean(values)) for name, values in clock.samples.items()}
    means["resize"] = max(means["decode and resize"] - means["decode"], 0.0)
    means["network"] = max(means["wire"] - sum(means[stage] for stage in SERVER), 0.0)
    return {stage: means[stage] for stage in STAGES}


def measure(config: StagesConfig) -> Result:
    """Measure. Raises TargetError, VariantError or CorpusError."""
    started_at = datetime.datetime.now(datetime.timezone.utc)
    files = load_files(config.images, num_images=config.num_images)
    with open_subject(config) as subject, tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{index:04}.jpg" for index in range(len(files))]
        for path, file in zip(paths, files, strict=True):
            path.write_bytes(file)
        clock = run(config, subject, paths)
        environment = capture_environment(server=subject.server, model=subject.model)
    points, bar = judge(clock)
    return make_result("stages", config, points, bars=[bar], environment=environment, started_at=started_at)


def judge(clock: Clock) -> tuple[list[Point], Bar]:
    """Give one point a stage, the whole last, and whether they add up."""
    means = stage_means(clock)
    whole = float(np.mean(clock.samples["whole"]))
    points = [
        Point(
            settings={"stage": stage},
            samples={"latency_ms": clock.samples.get(stage, [])},
            values={"mean_ms": mean},
        )
        for stage, mean in means.items()
    ]
    points.append(
        Point(
            settings={"stage": "whole"},
            samples={"latency_ms": clock.samples["whole"]},
            values={"mean_ms": whole},
        )
    )
    gap = abs(whole - sum(means.values())) / whole
    bar = Bar(
        name="stages against the whole request, share that does not add up",
        measured=gap,
        limit=LIMIT,
        sense="at_most",
    )
    return points, bar


HEADER = ("stage", "mean ms", "share")


def rows(result: Result) -> list[list[str]]:
    """Rows under `HEADER`, the whole last."""
    whole = result.points[-1].number("mean_ms")
    found = [
        [
            str(point.settings["stage"]),
            number(point.number("mean_ms")),
            f"{point.number('mean_ms') / whole:.1%}",
        ]
        for point in result.points[:-1]
    ]
    total = sum(point.number("mean_ms") for point in result.points[:-1])
    interval = bootstrap(result.points[-1].samples["latency_ms"], lambda values: float(np.mean(values)))
    return [
        *found,
        ["all stages", number(total), f"{total / whole:.1%}"],
        [
            "moderate([path])",
            f"{number(interval.value)} ({number(interval.low)} - {number(interval.high)})",
            "100.0%",
        ],
    ]


def page(result: Result) -> Page:
    """Build the HTML page."""
    document = Page(
        "Where the time of one request goes",
        "From the file on disk to the verdict, one caller. The server's part is from its own statistics.",
    )
    document.bars(result.bars)
    document.heading("Stages")
    document.table(HEADER, rows(result))
    drawing, axes = figure(height=3.0)
    left = 0.0
    colours = (*COLOURS, "#7a5195", "#bc5090")
    for point, colour in zip(result.points[:-1], colours, strict=True):
        axes.barh(
            "stages", point.number("mean_ms"), left=left, color=colour, label=str(point.settings["stage"])
        )
        left += point.number("mean_ms")
    axes.barh("moderate()", result.points[-1].number("mean_ms"), color="#c8d0d9")
    axes.invert_yaxis()
    axes.set(xlabel="ms")
    axes.legend(fontsize=8, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.35))
    document.figure(drawing, "The stages on end, above the whole request as its caller measures it.")
    document.environment(result)
    return document


def main(config: StagesConfig) -> int:
    """Measure, print, write; 1 when the stages do not add up."""
    try:
        result = measure(config)
    except (TargetError, VariantError, CorpusError) as error:
        fail(error)
    print(text_table(HEADER, rows(result)))
    print_bars(result.bars)
    stem = config.out or RESULTS / file_stem(result)
    data = write_result(result, stem.parent, name=f"{stem.name}.json")
    print(f"\n{data}\n{page(result).write(stem.parent / f'{stem.name}.html')}")
    return 1 if result.missed else 0


if __name__ == "__main__":
    end_cleanly_on_sigterm()
    raise SystemExit(main(tyro.cli(StagesConfig)))
