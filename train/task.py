"""What a run learns from what: labels, examples, targets and checks, settled before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from moderation_client.contract import ImageSpec
from train import backbones, data
from train.checks import check
from train.config import TrainConfig
from train.data import Example
from train.errors import DataError
from train.model import ModerationModel
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


def prepare(config: TrainConfig) -> Task:
    """Read manifest and targets, and fix labels and image size. Raises DataError."""
    examples = data.read_manifest(config.data)
    if config.task == "multiclass":
        several = next((each for each in examples if len(each.labels) > 1), None)
        if several:
            raise DataError(f"{several.path} has {len(several.labels)} labels: use --task multilabel")
        examples = [replace(each, labels=each.labels or (NEUTRAL,)) for each in examples]
    labels = config.labels or data.label_names(examples)
    if not labels:
        raise DataError(f"{config.data} has no labels: every image is harmless")
    targets = read_targets(config.targets, labels)
    spec = ImageSpec(height=config.image_size, width=config.image_size)
    _check_splits(config, examples)
    findings = check(examples, labels, images=config.check)
    findings.raise_if_fatal(config.data)
    problems = [*data.ignored_files(config.data), *findings.told]
    for problem in problems[:NUM_TOLD]:
        print(f"data: {problem}")
    if len(problems) > NUM_TOLD:
        print(f"data: … and {len(problems) - NUM_TOLD} more, all in the report")
    config.run.mkdir(parents=True, exist_ok=True)
    return Task(
        config=config, labels=labels, examples=examples, spec=spec, targets=targets, problems=problems
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
