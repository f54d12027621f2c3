"""Whether training waits for its images: images/s with the real input pipeline over images/s on one batch kept in memory.

The whole network learns from images that two processes decode anew in every epoch, as with a data set too large for memory. The two
ways are measured in turns within one run, so that a busy neighbour slows both; the workers run only in the pipeline's turns. Memory,
the workers' included, is read after every epoch of the pipeline.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from benchmarks.results import Bar, Point, make_result, write_result
from benchmarks.stats import ratio
from train.augment import Augment
from train.config import PRESETS
from train.judge import fast_precision
from train.loaders import Loaders
from train.loop import Classifier, freeze, parameter_groups
from train.losses import Criterion, positive_weight
from train.memory import keep_freed_memory
from train.sampling import Draw
from train.task import new_model, prepare

WARM_UP = 4
"""Steps before the clock: as many batches may lie ready when the first one comes."""
Batch = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """Compare the training step with and without its input pipeline."""

    data: Path = Path("data/illustrated/manifest.csv")
    """Manifest of the demo's images."""
    rounds: int = 3
    """Turns; each runs both ways."""
    steps: int = 8
    """Training steps of each way in a turn."""
    batch_size: int = 16
    """Images a step."""
    num_workers: int = 2
    """Processes that decode."""
    epochs: int = 8
    """Epochs of the memory check, of the input pipeline alone."""
    out: Path = Path("benchmarks/results")
    """Folder of the result file."""


def main() -> None:
    """Measure, print the bars, write input_pipeline.json."""
    config = tyro.cli(InputConfig, description=__doc__)
    keep_freed_memory()  # as every training does
    classifier, loaders = build(config)
    rates = measure(config, classifier, loaders)
    memory = memory_mb(config, classifier, loaders)
    points = [
        *(Point(settings={"kind": kind}, samples={"images_per_s": values}) for kind, values in rates.items()),
        Point(settings={"kind": "memory"}, samples={"rss_mb": memory}),
    ]
    bars = _bars(rates, memory)
    for bar in bars:
        print(bar)
    print(
        write_result(
            make_result("input_pipeline", config, points, bars=bars), config.out, name="input_pipeline.json"
        )
    )


def _bars(rates: dict[str, list[float]], memory: list[float]) -> list[Bar]:
    found = ratio(rates["pipeline"], rates["cached"])
    half = len(memory) // 2
    return [
        Bar(
            name="images/s with the input pipeline over images/s on a kept batch",
            measured=found.value,
            limit=0.9,
            sense="at_least",
        ),
        Bar(
            name="growth of memory over the second half of the epochs, MB",
            measured=memory[-1] - memory[half],
            limit=20.0,
            sense="at_most",
        ),
    ]


def build(config: InputConfig) -> tuple[Classifier, Loaders]:
    """The demo's network with nothing frozen, and as many images of its training split as a turn takes."""
    settings = replace(
        PRESETS["demo"],
        data=config.data,
        runs=Path("runs/benchmarks"),
        name="input",
        check=False,
        freeze=(),
        frozen_passes=0,
        freeze_norm=False,
        freeze_depthwise=False,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        cache_gb=0.0,
    )
    task = prepare(settings)
    num_images = (config.steps + WARM_UP) * config.batch_size
    loaders = Loaders(task.split("train")[:num_images], [], task.labels, task.spec, settings)
    criterion = Criterion(
        task=settings.task,
        loss=settings.loss,
        smoothing=settings.label_smoothing,
        positive_weight=positive_weight(loaders.train_targets),
    )
    return Classifier(new_model(task), settings, criterion), loaders


def epochs(loaders: Loaders) -> Iterator[Iterator[Batch]]:
    """Batches of one epoch after the other, each in an order of its own, by workers that stay."""
    loader = loaders.train_dataloader()
    for epoch in itertools.count():
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        yield iter(loader)


def measure(config: InputConfig, classifier: Classifier, loaders: Loaders) -> dict[str, list[float]]:
    """Images/s of both ways, a value a turn; the first turn warms up and is dropped."""
    optimizer = torch.optim.AdamW(parameter_groups(classifier.model, classifier.config))
    augment = Augment(size=classifier.config.size_at(0))
    kept = next(next(epochs(loaders)))
    images = augment(kept[0], Draw(seed=0, epoch=0, step=0))

    def cached(_: int) -> int:
        return step(classifier, optimizer, images, kept)

    rates: dict[str, list[float]] = {"cached": [], "pipeline": []}
    for turn in tqdm(range(config.rounds + 1), "turns", leave=False):
        rates["cached"].append(_rate(cached, config.steps))
        batches = next(epochs(loaders))  # workers start here and end with the turn

        def pipeline(number: int, batches: Iterator[Batch] = batches, turn: int = turn) -> int:
            batch = next(batches)
            return step(
                classifier, optimizer, augment(batch[0], Draw(seed=0, epoch=turn, step=number)), batch
            )

        _rate(pipeline, WARM_UP)
        rates["pipeline"].append(_rate(pipeline, config.steps))
        del batches, pipeline
    return {kind: values[1:] for kind, values in rates.items()}


def _rate(run: Callable[[int], int], steps: int) -> float:
    start = time.perf_counter()
    num_images = sum(run(number) for number in range(steps))
    return num_images / (time.perf_counter() - start)


def step(classifier: Classifier, optimizer: Any, images: Tensor, batch: Batch) -> int:
    """One step of the demo's training; the number of images."""
    classifier.model.train()
    freeze(classifier.model, classifier.config)
    fast = fast_precision(classifier.config)
    with torch.autocast("cpu", fast, enabled=fast != torch.float32):
        loss = classifier.criterion(classifier.model.logits(images), batch[1], batch[2].float())
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return len(images)


def memory_mb(config: InputConfig, classifier: Classifier, loaders: Loaders) -> list[float]:
    """Resident memory of this process and its workers after every epoch of loading and augmenting."""
    found, augment, process = [], Augment(size=classifier.config.size_at(0)), psutil.Process()
    for epoch, batches in zip(range(config.epochs), epochs(loaders), strict=False):
        for number, batch in enumerate(batches):
            augment(batch[0], Draw(seed=0, epoch=epoch, step=number))
        family = [process, *process.children(recursive=True)]
        found.append(sum(each.memory_info().rss for each in family) / 1e6)
    return found


if __name__ == "__main__":
    main()
