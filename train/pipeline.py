"""The order of a training run: check, probe, fine-tune, average, calibrate, choose thresholds, evaluate, report.

Each step uses a split that no earlier choice was made on: train, early_stop, calibration, policy, test.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from moderation_client.contract import ModelSpec
from train import averaging, data, record
from train.checkpoints import CHECKPOINTS, check_same, fingerprint, is_first, last_checkpoint, remember
from train.config import TrainConfig
from train.errors import RunError
from train.files import write_tensors, write_text
from train.frozen import frozen_depth
from train.judge import fast_precision, judge
from train.loaders import Loaders
from train.loop import Classifier, fit
from train.losses import Criterion, positive_weight
from train.memory import keep_freed_memory
from train.model import ModerationModel, save_run
from train.probe import fit_head
from train.report import write_report
from train.task import Task, new_model, prepare


def train(config: TrainConfig) -> Path | None:
    """Run everything and give the run's folder; None on those of several processes that only help. Raises TrainError."""
    started = time.monotonic()
    seconds: dict[str, float] = {}
    keep_freed_memory()
    task = prepare(config)
    lightning.seed_everything(config.seed, verbose=False)
    model = new_model(task)
    share, frozen = _learn(task, model, seconds)
    if share is None:
        return None
    with timed(seconds, "evaluate"):
        policy, calibration, results = judge(task, model, frozen)
    run_record = record.describe(config, task.labels, task.examples) | {
        "calibration": dict(zip(task.labels, calibration, strict=True)),
        "average": share,
        "seconds": seconds,
    }
    spec = _spec(task, run_record, results["score_counts"])
    save_run(config.run, model=model, spec=spec, policy=policy, record=run_record)
    results["scratch"] = record.load_scratch(config.scratch_result)
    results["seconds"] = seconds | {"total": time.monotonic() - started}
    write_text(config.run / "metrics.json", json.dumps(results, indent=1) + "\n")
    write_report(config.run)
    return config.run


def _spec(task: Task, run_record: dict[str, Any], score_counts: dict[str, tuple[int, ...]]) -> ModelSpec:
    config = task.config
    return ModelSpec(
        labels=task.labels,
        task=config.task,
        image=task.spec,
        description=config.description,
        training_record=f"{config.name}:{record.digest(run_record)}",
        score_counts=score_counts,
    )


def _learn(
    task: Task, model: ModerationModel, seconds: dict[str, float]
) -> tuple[float | None, dict[str, torch.Tensor]]:
    """Probe, fine-tune and average; give the share of fine-tuned weights and the weights of the probe."""
    with timed(seconds, "decode"):
        loaders = Loaders(task.split("train"), task.split("early_stop"), task.labels, task.spec, task.config)
    depth = frozen_depth(model.body, task.config) if task.config.frozen_passes else 0
    criterion = _criterion(task.config, loaders)
    classifier = Classifier(model, task.config, criterion, num_kinds=loaders.num_kinds, depth=depth)
    if depth:
        with timed(seconds, "frozen"):
            loaders.keep_maps(model, depth, fast_precision(task.config))
    with timed(seconds, "probe"):
        start = _start(classifier, loaders, fingerprint(task.config, task.labels, task.examples))
    if not task.config.epochs:
        return 0.0, start
    with timed(seconds, "fine_tune"):
        goes_on = fit(classifier, loaders)
    model.to("cpu")
    if not goes_on:
        return None, start
    with timed(seconds, "average"):
        return _average(task, model, start, loaders), start


def _criterion(config: TrainConfig, loaders: Loaders) -> Criterion:
    return Criterion(
        task=config.task,
        loss=config.loss,
        smoothing=config.label_smoothing,
        positive_weight=positive_weight(loaders.train_targets),
    )


def _average(task: Task, model: ModerationModel, start: dict[str, torch.Tensor], loaders: Loaders) -> float:
    """Average with the weights before fine-tuning, by the share that is best on the early-stop split."""
    examples, shares = task.split("early_stop"), task.config.average
    if not examples or len(shares) == 1:
        averaging.load_mixture(model, start, averaging.snapshot(model), shares[-1])
        return shares[-1]
    truth = data.targets(examples, task.labels)
    share, found = averaging.choose_share(
        model, start, shares, loaders.early_stop, examples, truth, precision=fast_precision(task.config)
    )
    print(
        "weight averaging, early_stop AP:", ", ".join(f"{key}: {value:.3f}" for key, value in found.items())
    )
    return share


def _start(classifier: Classifier, loaders: Loaders, found: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Fit the head, or take what the interrupted run had fitted; the weights fine-tuning starts from."""
    config, folder = classifier.config, classifier.config.run / CHECKPOINTS
    kept = folder / "start.safetensors"
    if config.resume and kept.exists() and last_checkpoint(folder):
        check_same(folder, found)
        try:
            classifier.model.load_state_dict(load_file(kept))
        except (RuntimeError, OSError, SafetensorError) as error:
            raise RunError(f"{kept} cannot be used: {error}; train anew without --resume") from error
        return averaging.snapshot(classifier.model)
    if config.probe_epochs:  # by every process, to the same result: none has to wait for a file
        fit_head(classifier, loaders)
    if is_first():
        remember(folder, found)
        write_tensors(kept, classifier.model.state_dict())
    return averaging.snapshot(classifier.model)


class timed:  # noqa: N801 - used like a function
    """Context manager that notes how long a step took."""

    def __init__(self, seconds: dict[str, float], step: str) -> None:
        self.seconds, self.step = seconds, step

    def __enter__(self) -> None:
        self.start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.step] = round(time.monotonic() - self.start, 2)
