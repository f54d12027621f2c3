"""The order of a training run: check, probe, fine-tune, average, calibrate, choose thresholds, evaluate, report.

Each step uses a split that no earlier choice was made on: train, early_stop, calibration, policy, test.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import load_file, save_file

from moderation_client.contract import ImageSpec, ModelSpec
from moderation_client.policy import Policy
from train import averaging, backbones, data, metrics, record, thresholds
from train.calibrate import calibrate
from train.checks import check
from train.config import TrainConfig
from train.data import Example
from train.errors import DataError
from train.evaluate import Scored, evaluate, paired_difference, slices
from train.loaders import Loaders
from train.loop import CHECKPOINTS, Classifier, fit, last_checkpoint, precision_of
from train.losses import Criterion, positive_weight
from train.model import ModerationModel, save_run
from train.probe import fit_head
from train.report import write_report
from train.scoring import image_logits, probabilities
from train.targets import Targets, read_targets

NUM_TOLD = 10
NEUTRAL = "neutral"
"""The class of harmless images where classes exclude each other; never moderated."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is learnt from what."""

    config: TrainConfig
    labels: tuple[str, ...]
    examples: list[Example]
    spec: ImageSpec
    targets: Targets
    problems: list[str]
    """What the checks told."""

    def split(self, name: str) -> list[Example]:
        """Examples of one split."""
        return data.in_split(self.examples, name)

    @property
    def harmful(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which labels are policy labels."""
        return np.array([label != NEUTRAL for label in self.labels])


def train(config: TrainConfig) -> Path | None:
    """Run everything and give the run's folder; None on those of several processes that only help. Raises TrainError."""
    started = time.monotonic()
    seconds: dict[str, float] = {}
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
    spec = ModelSpec(
        labels=task.labels,
        task=config.task,
        image=task.spec,
        description=config.description,
        training_record=f"{config.name}:{record.digest(run_record)}",
    )
    save_run(config.run, model=model, spec=spec, policy=policy, record=run_record)
    results["scratch"] = record.load_scratch(config.scratch_result)
    results["seconds"] = seconds | {"total": time.monotonic() - started}
    (config.run / "metrics.json").write_text(json.dumps(results, indent=1) + "\n")
    write_report(config.run)
    return config.run


def prepare(config: TrainConfig) -> Task:
    """Read manifest and targets, and fix labels and image size. Raises DataError."""
    examples = data.read_manifest(config.data)
    if config.task == "multiclass":
        examples = [replace(each, labels=each.labels or (NEUTRAL,)) for each in examples]
    labels = config.labels or data.label_names(examples)
    if not labels:
        raise DataError(f"{config.data} has no labels: every image is harmless")
    targets = read_targets(config.targets, labels)
    spec = ImageSpec(height=config.image_size, width=config.image_size)
    _check_splits(config, examples)
    findings = check(examples, labels, images=config.check)
    findings.raise_if_fatal(config.data)
    for problem in findings.told[:NUM_TOLD]:
        print(f"data: {problem}")
    if len(findings.told) > NUM_TOLD:
        print(f"data: … and {len(findings.told) - NUM_TOLD} more, all in the report")
    config.run.mkdir(parents=True, exist_ok=True)
    return Task(
        config=config, labels=labels, examples=examples, spec=spec, targets=targets, problems=findings.told
    )


def _check_splits(config: TrainConfig, examples: Sequence[Example]) -> None:
    for split in data.SPLITS:
        if not data.in_split(examples, split) and split != "early_stop":
            raise DataError(
                f"{config.data} has no images in the split {split!r}; it needs {', '.join(data.SPLITS)}"
            )


def new_model(task: Task) -> ModerationModel:
    """Build the network with its start weights."""
    config = task.config
    backbone = backbones.build_backbone(config.backbone, weights=config.weights, image_size=config.image_size)
    model = ModerationModel(backbone, num_labels=len(task.labels), task=config.task)
    return model.to(memory_format=torch.channels_last)


def _learn(
    task: Task, model: ModerationModel, seconds: dict[str, float]
) -> tuple[float | None, dict[str, torch.Tensor]]:
    """Probe, fine-tune and average; give the share of fine-tuned weights and the weights of the probe."""
    with timed(seconds, "decode"):
        loaders = Loaders(task.split("train"), task.split("early_stop"), task.labels, task.spec, task.config)
    classifier = Classifier(model, task.config, _criterion(task.config, loaders))
    with timed(seconds, "probe"):
        start = _start(classifier, loaders)
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
        model, start, shares, loaders.early_stop, examples, truth, precision=_fast(task.config)
    )
    print(
        "weight averaging, early_stop AP:", ", ".join(f"{key}: {value:.3f}" for key, value in found.items())
    )
    return share


def _start(classifier: Classifier, loaders: Loaders) -> dict[str, torch.Tensor]:
    """Fit the head, or take what the interrupted run had fitted; the weights fine-tuning starts from."""
    config, folder = classifier.config, classifier.config.run / CHECKPOINTS
    kept = folder / "start.safetensors"
    if config.resume and kept.exists() and last_checkpoint(folder):
        classifier.model.load_state_dict(load_file(kept))
        return averaging.snapshot(classifier.model)
    if config.probe_epochs:  # by every process, to the same result: none has to wait for a file
        fit_head(classifier, loaders)
    if getattr(rank_zero_only, "rank", 0) == 0:  # an attribute that Lightning sets on the function
        for old in folder.glob("epoch-*.ckpt"):
            old.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in classifier.model.state_dict().items()}, kept)
    return averaging.snapshot(classifier.model)


def judge(
    task: Task, model: ModerationModel, frozen: dict[str, torch.Tensor] | None
) -> tuple[Policy, list[dict[str, float]], dict[str, Any]]:
    """Calibrate, choose thresholds, and evaluate every held-out split; also the frozen features, when given."""
    names = ["calibration", "policy", "test", *evaluation_only(task.examples)]
    logits = {name: image_logits(model, task.split(name), task.spec, title=f"score {name}") for name in names}
    calibration = calibrate(
        model, logits["calibration"], data.targets(task.split("calibration"), task.labels)
    )
    scored = {name: score(task, model, logits[name], name) for name in names}
    policy = _policy(task, scored["policy"])
    results: dict[str, Any] = {
        "schema_version": 1,
        "labels": list(task.labels),
        "splits": {name: evaluate(scored[name], policy, task.targets.prevalence) for name in names[1:]},
        "slices": {
            column: slices(scored["test"], data.column_values(task.split("test"), column))
            for column in task.config.slices
        },
        "data_problems": task.problems,
    }
    if frozen is not None and task.config.epochs:
        results["frozen_features"] = _baseline(task, model, frozen, scored)
    record.save_scores(task.config.run, {name: (task.split(name), scored[name]) for name in names})
    return policy, calibration, results


def _policy(task: Task, scored: Scored) -> Policy:
    return thresholds.make_policy(
        scored.scores,
        scored.truth,
        units(task.split("policy"), task.targets),
        task.labels,
        task.targets,
        exempt=frozenset({NEUTRAL}),
    )


def evaluation_only(examples: Sequence[Example]) -> list[str]:
    """Splits beyond the five: an artist kept apart, say."""
    return sorted({example.split for example in examples} - set(data.SPLITS))


def units(examples: Sequence[Example], targets: Targets) -> list[str]:
    """What counts as one piece of evidence, by the targets file."""
    if targets.independent == "group":
        return [example.group for example in examples]
    return [f"{example.group}/{example.source}" for example in examples]


def score(task: Task, model: ModerationModel, logits: np.ndarray[Any, Any], name: str) -> Scored:
    """Put a split's scores and truth together."""
    examples = task.split(name)
    plain = 1.0 / (1.0 + np.exp(-logits)) if task.config.task == "multilabel" else logits
    return Scored(
        labels=task.labels,
        scores=probabilities(model, logits),
        raw=plain.astype(np.float32),
        truth=data.targets(examples, task.labels),
        groups=tuple(example.group for example in examples),
        harmful=task.harmful,
    )


def _fast(config: TrainConfig) -> torch.dtype:
    """Arithmetic for figures that only compare."""
    return torch.bfloat16 if precision_of(config) == "bf16-mixed" else torch.float32


def _baseline(
    task: Task, model: ModerationModel, frozen: dict[str, torch.Tensor], scored: dict[str, Scored]
) -> dict[str, Any]:
    """Score the probe (frozen features with logistic regression) on test and the unseen splits; leave `model` as it was."""
    ours = averaging.snapshot(model)
    found: dict[str, Any] = {}
    model.load_state_dict(frozen)
    for name in ["test", *evaluation_only(task.examples)]:
        logits = image_logits(
            model, task.split(name), task.spec, title=f"frozen {name}", precision=_fast(task.config)
        )
        other = probabilities(model, logits)
        probe = replace(scored[name], scores=other)
        weights = metrics.resampled(probe.groups)
        columns = np.flatnonzero(task.harmful)
        ap = metrics.macro(metrics.average_precision, other[:, columns], probe.truth[:, columns], weights)
        found[name] = {
            "auroc": metrics.interval(metrics.auroc(probe.worst, probe.unsafe, weights)),
            "macro_ap": metrics.interval(ap),
            "macro_ap_gain": paired_difference(metrics.average_precision, scored[name], other),
        }
    model.load_state_dict(ours)
    return found


class timed:  # noqa: N801 - used like a function
    """Context manager that notes how long a step took."""

    def __init__(self, seconds: dict[str, float], step: str) -> None:
        self.seconds, self.step = seconds, step

    def __enter__(self) -> None:
        self.start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.step] = round(time.monotonic() - self.start, 2)
