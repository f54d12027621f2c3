"""What a trained network is worth and what may be decided with it: calibration, thresholds, figures on every held-out split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.special import expit, softmax

from moderation_client.contract import SCORE_EDGES
from moderation_client.policy import Policy
from train import averaging, data, metrics, record, thresholds
from train.calibrate import calibrate
from train.config import TrainConfig
from train.data import Example
from train.evaluate import Scored, evaluate, paired_difference, slices
from train.image_risk import image_risk
from train.loop import precision_of
from train.model import ModerationModel
from train.scoring import image_logits, probabilities
from train.targets import Targets
from train.task import NEUTRAL, Task


def judge(
    task: Task, model: ModerationModel, frozen: dict[str, torch.Tensor] | None
) -> tuple[Policy, list[dict[str, Any]], dict[str, Any]]:
    """Calibrate, choose thresholds, and evaluate every held-out split; also the frozen features, when given."""
    names = ["calibration", "policy", "test", *evaluation_only(task.examples)]
    logits = {name: image_logits(model, task.split(name), task.spec, title=f"score {name}") for name in names}
    calibration = _calibrate(task, model, logits["calibration"])
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
        "image_risk": image_risk(policy, scored["test"], units(task.split("test"), task.targets)),
        "score_counts": count_scores(scored["test"]),
        "data_problems": task.problems,
    }
    if frozen is not None and task.config.epochs:
        results["frozen_features"] = _baseline(task, model, frozen, scored)
    record.save_scores(task.config.run, {name: (task.split(name), scored[name]) for name in names})
    return policy, calibration, results


def _calibrate(task: Task, model: ModerationModel, logits: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    examples = task.split("calibration")
    groups = [example.group for example in examples]
    return calibrate(model, logits, data.targets(examples, task.labels), groups)


def _policy(task: Task, scored: Scored) -> Policy:
    return thresholds.make_policy(
        scored.scores,
        scored.truth,
        units(task.split("policy"), task.targets),
        task.labels,
        task.targets,
        exempt=frozenset({NEUTRAL}),
        groups=scored.groups,
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
    plain = expit(logits) if task.config.task == "multilabel" else softmax(logits, axis=1)
    return Scored(
        labels=task.labels,
        scores=probabilities(model, logits),
        raw=plain.astype(np.float32),
        truth=data.targets(examples, task.labels),
        groups=tuple(example.group for example in examples),
        harmful=task.harmful,
    )


def count_scores(scored: Scored) -> dict[str, tuple[int, ...]]:
    """Label -> how many calibrated scores fall into each bin of the contract's `SCORE_EDGES`."""
    bins = np.searchsorted(SCORE_EDGES, scored.scores)  # a score on an edge is in the lower bin
    counts = (np.bincount(column, minlength=len(SCORE_EDGES)) for column in bins.T)
    return {label: tuple(each.tolist()) for label, each in zip(scored.labels, counts, strict=True)}


def fast_precision(config: TrainConfig) -> torch.dtype:
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
            model, task.split(name), task.spec, title=f"frozen {name}", precision=fast_precision(task.config)
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
