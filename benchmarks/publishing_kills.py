"""Kills publishers at random moments and looks at what they leave: the state before or after one of their steps, and all of it.

A process publishes a model that scores differently from all before it, rolls back and prunes, and gets SIGKILL right before one of its
file operations: every second time anywhere, otherwise while folders are swapped or just after it. After each kill the active version
and the versions that are there must be those before or after one of its steps, every file must be as its manifest says, the active
file must give its golden scores, lint must find no error, and now and then the real server must load the state and give them, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from tqdm import tqdm

from benchmarks.networks import NetworkConfig
from benchmarks.results import Point
from export import listing, operations
from export.errors import ExportError, GraphError, RepositoryError
from export.golden import check_golden
from export.lint import lint
from export.probe import probe
from export.publish import PublishConfig, publish
from export.repository import ModelFolder
from export.session import open_session, run
from export.source import Images, Source, Split
from export.variants import VariantConfig
from export.version import Version
from serve.config import ServerConfig
from serve.errors import ServeError
from serve.server import TritonServer

FILE_EVENTS = ("open", "os.", "shutil.", "ctypes.", "tempfile.", "fcntl.")
"""Python's audit events that come right before something happens to a file."""
SWAP_EVENTS = ("os.rename", "ctypes.dlsym")
"""Those right before a folder is moved or two are exchanged."""
COUNTS = ("num_killed", "num_survived", "num_failed", "num_broken", "num_loads", "num_refused")
KEEP = 2
"""Versions that pruning leaves."""
SAME_SCORE = 1e-4
GOLDEN_RATIO = 0.618034
"""Its multiples, without whole parts, lie far apart: no two publishers publish the same scores."""


@dataclass(frozen=True, kw_only=True)
class PublishingConfig:
    """What to measure."""

    repository: Path = Path("model_repository")
    """Published model; it is copied and not changed."""
    backbone: str = NetworkConfig().backbone
    """Network with random weights that is taken where the repository holds no model."""
    num_kills: int = 200
    """Publishers that are killed."""
    load_every: int = 20
    """Of the states they leave, so often one is loaded by a real server."""
    num_loads: int = 5
    """Fresh servers whose first requests are timed."""
    num_steady: int = 300
    """Requests that the first 20 are compared with."""
    seed: int = 0
    """Of the moments."""
    out: Path = Path("benchmarks/results")
    """Folder for the JSON."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """When SIGKILL comes: `num_events` file operations after the `num_swaps`-th swap began; never when both are 0."""

    num_swaps: int
    num_events: int


NEVER = Moment(num_swaps=0, num_events=0)


def changed(file: Path, num_labels: int, number: int) -> onnx.ModelProto:
    """Give the model with other biases, so that publisher `number` publishes scores of its own. Raises GraphError."""
    model = onnx.load(file)
    for tensor in model.graph.initializer:
        if list(tensor.dims) == [num_labels] and tensor.data_type == onnx.TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor) + np.float32(2.0 * (number * GOLDEN_RATIO % 1.0))
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
            return model
    raise GraphError(
        f"{file} has no float32 constant of {num_labels} values, one a label, that could be changed"
    )


def source_of_version(version: Version, scratch: Path, number: int) -> Source:
    """Make a published version a source again: its own graph with other biases, its golden images."""
    golden = version.golden()
    names = tuple(f"golden {index}" for index in range(len(golden)))
    split = Split(pixels=golden, owners=np.arange(len(golden), dtype=np.int64), names=names)
    model = changed(version.path / "model.onnx", len(version.spec.labels), number)
    file = scratch / "changed.onnx"
    onnx.save(model, file)
    return Source(
        name="again",
        spec=dataclasses.replace(version.spec, version=None, files={}),
        policy=version.policy,
        reference=lambda pixels: run(open_session(file), pixels, batch=8),
        reference_name="the published file",
        graph=lambda _folder: model,
        images=Images(calibration=golden, selection=split, test=split),
    )


def change_until_killed(original: Version, repository: Path, number: int, moment: Moment) -> None:
    """Publish, roll back, prune; how many file operations and swaps that took is written down by who survives."""
    source = source_of_version(original, repository.parent, number)
    config = PublishConfig(
        repository=repository,
        variants=VariantConfig(variants=("fp32",), max_batch_size=8),
        probe="in_process",
        report=repository.parent / "report",
    )
    events = swaps = 0

    def count(event: str, _arguments: object) -> None:
        nonlocal events, swaps
        if event == "os.kill":
            return
        events += event.startswith(FILE_EVENTS) and swaps >= moment.num_swaps
        swaps += event in SWAP_EVENTS
        if moment != NEVER and swaps >= moment.num_swaps and events >= moment.num_events:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    with contextlib.redirect_stdout(io.StringIO()):  # progress of 200 publishers helps nobody
        publish(source, config)
    operations.rollback(repository)
    operations.prune(repository, keep=KEEP)
    (repository.parent / "events.json").write_text(json.dumps([swaps, events]))


def run_publisher(original: Version, repository: Path, number: int, moment: Moment) -> int:
    """Run it in a process of its own; its exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.publishing_kills"])
    process = context.Process(target=change_until_killed, args=(original, repository, number, moment))
    process.start()
    process.join()
    return int(process.exitcode or 0)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A state as a caller sees it."""

    active: int
    versions: frozenset[int]
    scores: Any
    """Golden scores of the active version's CPU file."""

    @classmethod
    def of(cls, repository: Path) -> Seen:
        """Read it. Raises RepositoryError."""
        folder, version = active_version(repository)
        scores = version.golden_scores[version.cpu_file]
        return cls(active=version.number, versions=frozenset(folder.versions), scores=scores)


def active_version(repository: Path) -> tuple[ModelFolder, Version]:
    """Give the version that answers. Raises RepositoryError where there is none."""
    folder = ModelFolder(repository)
    if folder.state is None:
        raise RepositoryError(f"{repository} holds no model")
    return folder, folder.get(folder.state.active)


def steps(before: Seen, new: int) -> set[tuple[int, frozenset[int]]]:
    """Active version and versions before and after each step of a publisher that makes version `new`."""
    more = before.versions | {new}
    kept = frozenset({*sorted(more)[-KEEP:], before.active})
    return {
        (before.active, before.versions),
        (new, more),
        (before.active, more),
        (before.active, kept),
    }


def faults(repository: Path, before: Seen, new: int) -> list[str]:
    """Say what is wrong with the state that a killed publisher left; nothing when it is old or new and whole."""
    try:
        after = Seen.of(repository)
        found = [str(each) for each in lint(repository) if each.severity == "error"]
        found += listing.verify(repository)
        probe(repository, active_version(repository)[1], "in_process")
    except ExportError as error:
        return [f"{type(error).__name__}: {error}"]
    if (after.active, after.versions) not in steps(before, new):
        found.append(f"version {after.active} of {sorted(after.versions)} is no state before or after a step")
    same = np.abs(after.scores - before.scores).max() <= SAME_SCORE
    if same != (after.active == before.active):
        found.append(f"version {after.active} has the golden scores of another one")
    return found


def refused(repository: Path) -> list[str]:
    """Say why the real server does not load all of it and give the golden scores; nothing when it does."""
    try:
        with TritonServer(server_config(repository)) as server:
            check_golden(server.grpc_url, active_version(repository)[1])
    except (ExportError, ServeError) as error:
        return [f"{type(error).__name__}: {error}"]
    return []


def server_config(repository: Path, *models: str) -> ServerConfig:
    """Free ports; all models unless some are named."""
    return ServerConfig(
        repository=repository,
        load_models=models,
        model_config_name="cpu",
        http_port=0,
        grpc_port=0,
        metrics_port=0,
    )


def moments(rng: random.Random, num_swaps: int, num_events: int) -> Iterator[Moment]:
    """Draw endlessly: anywhere, then at a swap or up to three operations after it, and so on."""
    while True:
        yield Moment(num_swaps=0, num_events=rng.randint(1, num_events))
        yield Moment(num_swaps=rng.randint(1, num_swaps), num_events=rng.randint(0, 3))


@dataclass(kw_only=True)
class Campaign:
    """Kills of publishers of one repository, counted."""

    source: Path
    """The repository that everything begins with; not changed."""
    repository: Path
    """Where the publishers are at work."""
    original: Version
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))

    def begin(self) -> None:
        """Copy the repository, anew where it is there."""
        shutil.rmtree(self.repository, ignore_errors=True)
        shutil.copytree(self.source, self.repository)

    def kill(self, number: int, moment: Moment, *, load: bool) -> None:
        """Run publisher `number`, look at what it leaves, begin anew where that is broken."""
        before, new = Seen.of(self.repository), ModelFolder(self.repository).next_version
        code = run_publisher(self.original, self.repository, number, moment)
        self.counts[{-signal.SIGKILL: "num_killed", 0: "num_survived"}.get(code, "num_failed")] += 1
        found = faults(self.repository, before, new)
        self.counts["num_broken"] += bool(found)
        if load and not found:
            found = refused(self.repository)
            self.counts["num_loads"] += 1
            self.counts["num_refused"] += bool(found)
        if found:
            tqdm.write("\n".join(found))
            self.begin()


def measure_kills(config: PublishingConfig) -> Point:
    """Kill publishers; count states that are not whole. Raises RepositoryError when one fails that nobody killed."""
    with tempfile.TemporaryDirectory() as temporary:
        original = active_version(config.repository)[1]
        repository = Path(temporary) / "repository"
        campaign = Campaign(source=config.repository, repository=repository, original=original)
        campaign.begin()
        if run_publisher(original, repository, 0, NEVER) != 0:
            raise RepositoryError(f"{config.repository} cannot be published again; the reason is above")
        num_swaps, num_events = json.loads((Path(temporary) / "events.json").read_text())
        drawn = moments(random.Random(config.seed), num_swaps, num_events)
        counts = campaign.counts
        with tqdm(total=config.num_kills, unit="kill") as progress:
            for number in range(1, 2 * config.num_kills + 1):
                if counts["num_killed"] < config.num_kills:
                    campaign.kill(number, next(drawn), load=number % config.load_every == 1)
                    progress.update(counts["num_killed"] - progress.n)
    values = {**counts, "num_file_operations": num_events, "num_swaps": num_swaps}
    return Point(settings={"measure": "kills"}, values=values)
