"""Every random choice of training as a function of seed, epoch, step and place in the batch, and of nothing else.

So a resumed run repeats what the unbroken one saw, and two processes with half the batch see what one saw with all of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler


class EpochSampler(Sampler[int]):
    """A new order every epoch, drawn by `probabilities`; Lightning calls `set_epoch`.

    Where every image is kept in `num_passes` forms, one after the other, each epoch takes another form of each image.
    """

    def __init__(
        self,
        probabilities: NDArray[np.float64],
        *,
        seed: int,
        balanced: bool,
        rank: int = 0,
        num_replicas: int = 1,
        num_passes: int = 1,
    ) -> None:
        self.probabilities = probabilities
        self.seed = seed
        self.balanced = balanced
        self.rank = rank
        self.num_replicas = num_replicas
        self.num_passes = num_passes
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
        order = order + num * ((order + self.epoch) % self.num_passes)
        return iter(order[self.rank : len(self) * self.num_replicas : self.num_replicas].tolist())


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Random numbers of one step: those of the whole batch over all processes, of which each takes its rows."""

    seed: int
    epoch: int
    step: int
    rank: int = 0
    num_replicas: int = 1
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        """Seed the generator from where training stands."""
        digest = hashlib.sha256(f"{self.seed}/{self.epoch}/{self.step}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        object.__setattr__(self, "generator", generator)

    def uniform(self, num: int, *shape: int) -> Tensor:
        """Numbers 0..1, float32 [num, *shape], for the images of this process."""
        everyone = torch.rand((num * self.num_replicas, *shape), generator=self.generator)
        return everyone[self.rank :: self.num_replicas]
