"""Batches: which images a process loads, in which order, on how many workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader

from moderation_client.contract import ImageSpec
from train.config import TrainConfig
from train.data import Example, column_values, targets
from train.frozen import FrozenMaps
from train.losses import draw_weights
from train.model import ModerationModel
from train.pixels import NO_KIND, EvaluationImages, TrainingImages, collate_views
from train.sampling import EpochSampler

MIN_KIND = 2
"""Images that a value of the side task's column needs to be a class."""


class Loaders(lightning.LightningDataModule):
    """Training and early-stop images of one data set."""

    def __init__(
        self,
        train: Sequence[Example],
        early_stop: Sequence[Example],
        labels: Sequence[str],
        spec: ImageSpec,
        config: TrainConfig,
    ) -> None:
        super().__init__()
        self.config = config
        self.train_targets = targets(train, labels)
        kinds, self.num_kinds = side_classes(train, config.side_task)
        self.train: TrainingImages | FrozenMaps = TrainingImages(
            train,
            self.train_targets,
            side=config.cache_side,
            cache_bytes=config.cache_gb * 1e9,
            kinds=kinds,
        )
        self.early_stop = EvaluationImages(early_stop, targets(early_stop, labels), spec=spec, keep=True)

    def keep_maps(self, model: ModerationModel, depth: int, precision: torch.dtype) -> None:
        """Put what the first `depth` parts of `model` say of augmented passes in place of the images. Raises TrainError."""
        assert isinstance(self.train, TrainingImages)
        self.train = FrozenMaps(self.train, model, depth, self.config, precision)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffle by seed and epoch; the last batch is kept unless a single image would be left for normalisation."""
        config = self.config
        rank, replicas = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = EpochSampler(
            draw_weights(self.train_targets, config.balance),
            seed=config.seed,
            balanced=config.balance > 0.0,
            rank=rank,
            num_replicas=replicas,
            num_passes=max(1, self.config.frozen_passes),
        )
        return DataLoader(
            self.train,
            batch_size=config.batch_size,
            sampler=sampler,
            drop_last=len(sampler) > config.batch_size and len(sampler) % config.batch_size == 1,
            num_workers=0 if self.train.in_memory else config.num_workers,
            persistent_workers=not self.train.in_memory and config.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Early-stop images with all their views."""
        if not len(self.early_stop):
            return []
        rank, replicas = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return DataLoader(
            self.early_stop,
            batch_size=self.config.batch_size,
            sampler=range(rank, len(self.early_stop), replicas),
            collate_fn=collate_views,
        )


def side_classes(examples: Sequence[Example], column: str) -> tuple[list[int], int]:
    """Class of each image by a column, NO_KIND for values too rare to learn from, and the number of classes."""
    if not column:
        return [], 0
    values = column_values(examples, column)
    counts = Counter(values)
    names = sorted(value for value, count in counts.items() if value and count >= MIN_KIND)
    number = {name: index for index, name in enumerate(names)}
    return [number.get(value, NO_KIND) for value in values], len(names)
