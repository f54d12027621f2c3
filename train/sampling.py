"""Which training images each process sees in an epoch: a function of seed, epoch and rank alone, so that resuming repeats it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler


class EpochSampler(Sampler[int]):
    """A new order every epoch, drawn by `probabilities`; Lightning calls `set_epoch`."""

    def __init__(
        self,
        probabilities: NDArray[np.float64],
        *,
        seed: int,
        balanced: bool,
        rank: int = 0,
        num_replicas: int = 1,
    ) -> None:
        self.probabilities = probabilities
        self.seed = seed
        self.balanced = balanced
        self.rank = rank
        self.num_replicas = num_replicas
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; called before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.probabilities) // self.num_replicas

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        num = len(self.probabilities)
        order = rng.choice(num, num, p=self.probabilities) if self.balanced else rng.permutation(num)
        return iter(order[self.rank : len(self) * self.num_replicas : self.num_replicas].tolist())
