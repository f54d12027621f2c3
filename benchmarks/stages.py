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
from unittest import mock

import grpc
import numpy as np
import tyro
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from tqdm import tqdm
from tritonclient.grpc import service_pb2

from benchmarks import stages_page
from benchmarks.corpus import CorpusError, load_files
from benchmarks.counters import TargetError
from benchmarks.ending import finish
from benchmarks.environment import capture_environment
from benchmarks.results import Bar, Point, Result, make_result
from benchmarks.senders import unary
from benchmarks.serving import VariantError
from benchmarks.subject import Subject, SubjectConfig, end_cleanly_on_sigterm, fail, open_subject
from benchmarks.target import Target, pixel_message
from moderation_client import ModerationClient, ModerationError, Policy
from moderation_client.contract import ImageSpec, policy_parameter
from moderation_client.images import decode

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


def drafted_size(file: bytes, spec: ImageSpec) -> tuple[int, int] | None:
    """Size at which the product asks for a JPEG: overheard from its own decoding, so that the stage does the same work."""
    asked: list[tuple[int, int]] = []
    real = JpegImageFile.draft

    def overheard(image: Any, mode: Any, size: Any) -> Any:
        asked.append(size)
        return real(image, mode, size)

    with mock.patch.object(JpegImageFile, "draft", overheard):
        decode(file, spec)
    return asked[0] if asked else None


def decoded_only(file: bytes, size: tuple[int, int] | None) -> Image.Image:
    """Decode without resizing, at the reduced scale that the product would choose."""
    image = Image.open(io.BytesIO(file))
    if size is not None:
        image.draft(None, size)
    image.load()
    return image


def take_apart(
    clock: Clock, path: Path, subject: Subject, call: Any, policy: Policy, size: tuple[int, int] | None
) -> None:
    """One picture, stage by stage; `size` is what its decoder is asked for."""
    spec = subject.spec.image
    file = clock.time("read", path.read_bytes)
    clock.time("decode", lambda: decoded_only(file, size))
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


def run(config: StagesConfig, subject: Subject, paths: list[Path], clock: Clock) -> bool:
    """Take all pictures apart and through the client, in turns; True when Ctrl-C cut it short. Raises TargetError."""
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
        sizes = {path: drafted_size(path.read_bytes(), subject.spec.image) for path in paths}
        for path in paths[:4]:  # warm-up of server, client and caches
            client.moderate([path])
            take_apart(Clock(), path, subject, call, policy, sizes[path])
        before = target.statistics()
        interrupted = False
        try:
            for path in tqdm(paths * config.repeats, desc="pictures", disable=None):
                take_apart(clock, path, subject, call, policy, sizes[path])
                clock.time("whole", functools.partial(judged, client, path))
        except KeyboardInterrupt:
            interrupted = True
        split = target.statistics() - before
    for stage, part in SERVER.items():
        clock.samples[stage] = [split.mean_ms(part) or 0.0]
    return interrupted


def judged(client: ModerationClient, path: Path) -> None:
    """Ask for one picture's verdict. Raises TargetError when there is none: an error is no measurement."""
    error = client.moderate([path])[0].error
    if error is not None:
        raise TargetError(f"{path.name} was not judged: {error}")


def stage_means(clock: Clock) -> dict[str, float]:
    """Mean of each stage; resizing and the network are what is left of the steps that contain them."""
    means = {name: float(np.mean(values)) for name, values in clock.samples.items()}
    means["resize"] = max(means["decode and resize"] - means["decode"], 0.0)
    means["network"] = max(means["wire"] - sum(means[stage] for stage in SERVER), 0.0)
    return {stage: means[stage] for stage in STAGES}


def measure(config: StagesConfig) -> Result:
    """Measure. Raises TargetError, VariantError, CorpusError, ModerationError or grpc.RpcError.

    Raises KeyboardInterrupt when Ctrl-C came before a single picture was through.
    """
    started_at = datetime.datetime.now(datetime.timezone.utc)
    files = load_files(config.images, num_images=config.num_images)
    with open_subject(config) as subject, tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{index:04}.jpg" for index in range(len(files))]
        for path, file in zip(paths, files, strict=True):
            path.write_bytes(file)
        environment = capture_environment(server=subject.server, model=subject.model)
        clock = Clock()
        interrupted = run(config, subject, paths, clock)
    if not clock.samples.get("whole"):
        raise KeyboardInterrupt
    points, bar = judge(clock)
    return make_result(
        "stages",
        config,
        points,
        bars=[bar],
        environment=environment,
        started_at=started_at,
        interrupted=interrupted,
    )


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


def main(config: StagesConfig) -> int:
    """Measure, print, write; 1 when the stages do not add up."""
    try:
        result = measure(config)
    except (TargetError, VariantError, CorpusError, ModerationError) as error:
        fail(error)
    except grpc.RpcError as error:
        fail(
            f"the server at {config.url or 'its own address'} did not answer: {error.code().name}: {error.details()}"
        )
    except KeyboardInterrupt:
        fail("interrupted before anything was measured")
    return finish(result, config.out, text=stages_page.text, page=stages_page.page)


if __name__ == "__main__":
    end_cleanly_on_sigterm()
    raise SystemExit(main(tyro.cli(StagesConfig)))
