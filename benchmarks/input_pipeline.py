"""Whether training waits for its images: images/s with the real input pipeline over images/s on one batch kept in memory.

The two are measured in turns within one run, so that a busy neighbour slows both. Memory is read after every epoch of the pipeline.
"""

from __future__ import annotations

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
from train.config import PRESETS, TrainConfig
from train.loaders import Loaders
from train.loop import Classifier, freeze, parameter_groups
from train.losses import Criterion, positive_weight
from train.sampling import Draw
from train.task import new_model, prepare

Batch = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """Compare the training step with and without its input pipeline."""

    data: Path = Path("data/illustrated/manifest.csv")
    """Manifest of the demo's images."""
    rounds: int = 6
    """Turns; each runs both ways."""
    steps: int = 8
    """Training steps of each way in a turn."""
    num_images: int = 512
    """Images of an epoch of the memory check."""
    epochs: int = 8
    """Epochs of the memory check, of the input pipeline alone."""
    out: Path = Path("benchmarks/results")
    """Folder of the result file."""


def main() -> None:
    """Measure, print the bars, write input_pipeline.json."""
    config = tyro.cli(InputConfig, description=__doc__)
    settings = replace(
        PRESETS["demo"], data=config.data, runs=Path("runs/benchmarks"), name="input", check=False
    )
    classifier, loaders = build(settings, config.num_images)
    rates = measure(config, classifier, loaders)
    found = ratio(rates["pipeline"], rates["cached"])
    memory = memory_mb(config, classifier, loaders)
    points = [
        *(Point(settings={"kind": kind}, samples={"images_per_s": values}) for kind, values in rates.items()),
        Point(settings={"kind": "memory"}, samples={"rss_mb": memory}),
    ]
    half = len(memory) // 2
    bars = [
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
    for bar in bars:
        print(bar)
    print(
        write_result(
            make_result("input_pipeline", config, points, bars=bars), config.out, name="input_pipeline.json"
        )
    )


def build(settings: TrainConfig, num_images: int) -> tuple[Classifier, Loaders]:
    """The demo's network and the first images of its training split."""
    task = prepare(settings)
    loaders = Loaders(task.split("train")[:num_images], [], task.labels, task.spec, settings)
    criterion = Criterion(
        task=settings.task,
        loss=settings.loss,
        smoothing=settings.label_smoothing,
        positive_weight=positive_weight(loaders.train_targets),
    )
    return Classifier(new_model(task), settings, criterion), loaders


def batches(loaders: Loaders) -> Iterator[Batch]:
    """Batches without end, a new order every epoch."""
    loader, epoch = loaders.train_dataloader(), 0
    while True:
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        yield from loader
        epoch += 1


def measure(config: InputConfig, classifier: Classifier, loaders: Loaders) -> dict[str, list[float]]:
    """Images/s of both ways, a value a turn; the first turn warms up and is dropped."""
    optimizer = torch.optim.AdamW(parameter_groups(classifier.model, classifier.config))
    stream = batches(loaders)
    kept = next(stream)
    augment = Augment(size=classifier.config.size_at(0))
    images = augment(kept[0], Draw(seed=0, epoch=0, step=0))

    def cached(_: int) -> int:
        return step(classifier, optimizer, images, kept)

    def pipeline(number: int) -> int:
        batch = next(stream)
        return step(classifier, optimizer, augment(batch[0], Draw(seed=0, epoch=1, step=number)), batch)

    rates: dict[str, list[float]] = {"cached": [], "pipeline": []}
    for _ in tqdm(range(config.rounds + 1), "turns", leave=False):
        for kind, run in (("cached", cached), ("pipeline", pipeline)):
            rates[kind].append(_rate(run, config.steps))
    return {kind: values[1:] for kind, values in rates.items()}


def _rate(run: Callable[[int], int], steps: int) -> float:
    start = time.perf_counter()
    num_images = sum(run(number) for number in range(steps))
    return num_images / (time.perf_counter() - start)


def step(classifier: Classifier, optimizer: Any, images: Tensor, batch: Batch) -> int:
    """One step of the demo's training; the number of images."""
    classifier.model.train()
    freeze(classifier.model, classifier.config)
    with torch.autocast("cpu", torch.bfloat16):
        loss = classifier.criterion(classifier.model.logits(images), batch[1], batch[2].float())
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return len(images)


def memory_mb(config: InputConfig, classifier: Classifier, loaders: Loaders) -> list[float]:
    """Resident memory after every epoch of loading and augmenting."""
    found, augment = [], Augment(size=classifier.config.size_at(0))
    for epoch in range(config.epochs):
        for number, batch in enumerate(loaders.train_dataloader()):
            augment(batch[0], Draw(seed=0, epoch=epoch, step=number))
        found.append(psutil.Process().memory_info().rss / 1e6)
    return found


if __name__ == "__main__":
    main()
