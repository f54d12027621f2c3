"""What the client itself costs: `moderate()` of many JPEGs against the CPU time that decoding and inference need alone.

The mix has pictures of 0.3 to 12 megapixels, as uploads have. Decoding alone runs on a thread a core, as in the call itself. With perfect overlap on every core the wall time would be
(CPU seconds of decoding + CPU seconds of inference) / cores; the ratio to that is the figure.
"""

from __future__ import annotations

import datetime
import itertools
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import tyro
from tqdm import tqdm

from benchmarks.corpus import CorpusError, load_files, photograph
from benchmarks.counters import TargetError
from benchmarks.decoding import decode_cpu_s
from benchmarks.ending import finish
from benchmarks.environment import capture_environment, num_cores
from benchmarks.in_process import modes, run_mode
from benchmarks.report import Page, number, text_table
from benchmarks.results import Bar, Point, Result, make_result
from benchmarks.serving import VariantError
from benchmarks.stats import ratio
from benchmarks.subject import (
    Subject,
    SubjectConfig,
    end_cleanly_on_sigterm,
    fail,
    open_subject,
    same_file,
)
from benchmarks.worker import Interrupted, Worker, WorkerError
from moderation_client import ModerationClient, ModerationError

SIZES = ((640, 480), (1080, 810), (1280, 960), (1920, 1440), (2592, 1944), (4000, 3000))
"""0.3 to 12 megapixels."""
NUM_OF_EACH = 4
LIMIT = 1.25
TIMEOUT_S = 600.0


@dataclass(frozen=True, kw_only=True)
class ModerateConfig(SubjectConfig):
    """Measure `moderate()` of many JPEGs against its parts."""

    images: Path | None = None
    """Folder with pictures; by default photographs of 0.3 to 12 megapixels are made."""
    num_images: int = 1000
    rounds: int = 5
    slice_s: float = 4.0
    """How long inference alone is measured in each round."""
    out: Path | None = None
    """Where to write, without ending; by default runs/benchmarks/<date>_<commit>_<machine>_moderate."""


def mixed_files(config: ModerateConfig) -> list[bytes]:
    """Make `num_images` files; a generated mix repeats, which costs the decoder the same."""
    if config.images is not None:
        different = load_files(config.images, num_images=config.num_images)
    else:
        different = [photograph(index, *size) for index in range(NUM_OF_EACH) for size in SIZES]
    return list(itertools.islice(itertools.cycle(different), config.num_images))


@dataclass(kw_only=True)
class Rounds:
    """What was measured, a value a round."""

    num_images: int
    num_cores: int
    decoding_cpu_s: list[float] = field(default_factory=list)
    inference_cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)

    @property
    def ideal_s(self) -> list[float]:
        """Wall time with perfect overlap on every core."""
        pairs = zip(self.decoding_cpu_s, self.inference_cpu_s, strict=True)
        return [(decoding + inference) / self.num_cores for decoding, inference in pairs]

    def point(self) -> Point:
        """Turn it into a point of a result."""
        names = ("decoding_cpu_s", "inference_cpu_s", "ideal_s", "wall_s")
        return Point(
            settings={"num_images": self.num_images}, samples={name: getattr(self, name) for name in names}
        )

    def bar(self) -> Bar:
        """Judge the whole against its parts."""
        found = ratio(self.wall_s, self.ideal_s)
        return Bar(
            name=f"moderate() of {self.num_images} JPEGs, wall time ÷ CPU time of its parts / {self.num_cores} cores",
            measured=found.value,
            low=found.interval.low,
            high=found.interval.high,
            limit=LIMIT,
            sense="at_most",
        )


def run_round(
    config: ModerateConfig,
    rounds: Rounds,
    files: list[bytes],
    subject: Subject,
    worker: Worker,
    client: ModerationClient,
) -> None:
    """Measure inference alone, decoding alone, and the whole. Raises TargetError when an image was not judged."""
    path = same_file(subject, config.repository)
    mode = modes(rounds.num_cores)[-1]  # a worker a core: inference at its cheapest
    cycle = files[: min(len(files), NUM_OF_EACH * len(SIZES))]
    reading = worker.call(run_mode, path, mode, config.slice_s)
    decoding_cpu_s = worker.call(decode_cpu_s, cycle, subject.spec.image, rounds.num_cores)
    started = time.perf_counter()
    verdicts = client.moderate(files, timeout_s=TIMEOUT_S)
    wall_s = time.perf_counter() - started
    broken = [verdict for verdict in verdicts if verdict.error is not None]
    if broken:
        raise TargetError(f"{len(broken)} of {len(files)} images were not judged: {broken[0].error}")
    rounds.inference_cpu_s.append(reading.cpu_s / reading.num_images * len(files))
    rounds.decoding_cpu_s.append(decoding_cpu_s * len(files))
    rounds.wall_s.append(wall_s)


def measure(config: ModerateConfig) -> Result:
    """Measure parts and whole in turns. Raises TargetError, VariantError, CorpusError, WorkerError or ModerationError.

    Raises KeyboardInterrupt when Ctrl-C came before the first round was through.
    """
    started_at = datetime.datetime.now(datetime.timezone.utc)
    files = mixed_files(config)
    rounds = Rounds(num_images=len(files), num_cores=num_cores())
    with open_subject(config) as subject, Worker() as worker, ModerationClient(subject.address.url) as client:
        environment = capture_environment(server=subject.server, model=subject.model)
        interrupted = False
        try:
            client.moderate(files[:16])
            for _ in tqdm(range(config.rounds), desc="rounds", disable=None):
                run_round(config, rounds, files, subject, worker, client)
        except (KeyboardInterrupt, Interrupted):
            interrupted = True
    if not rounds.wall_s:
        raise KeyboardInterrupt
    return make_result(
        "moderate",
        config,
        [rounds.point()],
        bars=[rounds.bar()],
        environment=environment,
        started_at=started_at,
        interrupted=interrupted,
    )


HEADER = ("round", "decoding CPU s", "inference CPU s", "ideal wall s", "moderate() wall s", "ratio")


def text(result: Result) -> str:
    """Give everything that is printed."""
    return text_table(HEADER, rows(result))


def rows(result: Result) -> list[list[str]]:
    """Rows under `HEADER`."""
    samples = result.points[0].samples
    columns = [samples[name] for name in ("decoding_cpu_s", "inference_cpu_s", "ideal_s", "wall_s")]
    return [
        [str(index + 1), *(number(value) for value in values), number(values[3] / values[2])]
        for index, values in enumerate(zip(*columns, strict=True))
    ]


def page(result: Result) -> Page:
    """Build the HTML page."""
    document = Page(
        "moderate() of many files", "The whole call against the CPU time that its parts need alone."
    )
    document.bars(result.bars)
    document.heading("Rounds")
    document.table(HEADER, rows(result))
    document.environment(result)
    return document


def main(config: ModerateConfig) -> int:
    """Measure, print, write; 1 when the bar is missed."""
    try:
        result = measure(config)
    except (TargetError, VariantError, CorpusError, WorkerError, ModerationError) as error:
        fail(error)
    except grpc.RpcError as error:
        fail(f"the server did not answer: {error.code().name}: {error.details()}")
    except KeyboardInterrupt:
        fail("interrupted before anything was measured")
    return finish(result, config.out, text=text, page=page)


if __name__ == "__main__":
    end_cleanly_on_sigterm()
    raise SystemExit(main(tyro.cli(ModerateConfig)))
