"""What the frozen first parts of a network say of augmented images, computed once and learnt from again and again.

A part that never changes need not run in every epoch: what it makes of a few augmented passes over the training split is kept, and the
rest of the network learns from that. On a CPU, where the first parts are the slow ones, this pays for a higher resolution.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from train.augment import Augment
from train.config import TrainConfig
from train.efficientnet_lite import EfficientNetLite
from train.errors import TrainError
from train.model import ModerationModel
from train.pixels import TrainingImages
from train.sampling import Draw
from train.scoring import folded

BATCH_IMAGES = 16
FROZEN_EPOCH = 2_000_000
"""The passes draw their random numbers as if in these epochs, which neither the probe nor fine-tuning reaches."""


def frozen_depth(body: nn.Module, config: TrainConfig) -> int:
    """How many first parts of the network stay as they are. Raises TrainError where there are none to keep the maps of."""
    names = list(body.parts()) if isinstance(body, EfficientNetLite) else []
    depth = 0
    while depth < len(names) and config.freeze and names[depth].startswith(config.freeze):
        depth += 1
    if not depth:
        raise TrainError(
            f"frozen_passes needs a network that can be cut, whose first parts are frozen: EfficientNet-Lite and --freeze stem "
            f"blocks.0. ..., got {config.backbone} and {config.freeze}; or leave frozen_passes at 0"
        )
    return depth


class FrozenMaps(Dataset[tuple[Tensor, Tensor, float, int]]):
    """Maps float16 [h, w, C] of every image, one augmented pass after the other; targets, weight and kind as the images have them."""

    in_memory = True

    def __init__(
        self,
        images: TrainingImages,
        model: ModerationModel,
        depth: int,
        config: TrainConfig,
        precision: torch.dtype,
    ) -> None:
        """Run the first `depth` parts. Raises TrainError when the maps do not fit into the configuration's cache_gb."""
        self.images = images
        self.maps = torch.empty(0)
        total, done = config.frozen_passes * len(images), 0
        with tqdm(total=total, desc="frozen maps", unit=" images", leave=False) as bar:
            for maps in _computed(images, model, depth, config, precision):
                if not done:
                    self.maps = _room(total, maps, config.cache_gb)
                self.maps[done : done + len(maps)] = maps
                done += len(maps)
                bar.update(len(maps))

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, float, int]:
        of = index % len(self.images)
        return (
            self.maps[index],
            self.images.targets[of],
            self.images.examples[of].weight,
            self.images.kinds[of],
        )


def _computed(
    images: TrainingImages, model: ModerationModel, depth: int, config: TrainConfig, precision: torch.dtype
) -> Iterator[Tensor]:
    """Maps float16 [n, h, w, C] of pass after pass, batch after batch."""
    body, device = folded(model.body), model.mean.device
    loader = DataLoader(
        images, batch_size=BATCH_IMAGES, num_workers=0 if images.in_memory else config.num_workers
    )
    for index in range(config.frozen_passes):
        for step, (layers, *_) in enumerate(loader):
            draw = Draw(seed=config.seed, epoch=FROZEN_EPOCH + index, step=step)
            seen = model.normalise(Augment(size=config.image_size)(layers.to(device), draw))
            fast = precision != torch.float32
            with torch.inference_mode(), torch.autocast(device.type, precision, enabled=fast):
                maps: Tensor = body.begin(seen, depth)  # type: ignore[operator] # frozen_depth saw what it is
            yield maps.permute(0, 2, 3, 1).half().cpu()


def _room(total: int, like: Tensor, cache_gb: float) -> Tensor:
    """Memory for all maps, when it is granted."""
    needed_gb = total * like[0].numel() * like.element_size() / 1e9
    if needed_gb > cache_gb:
        raise TrainError(
            f"the maps of all frozen passes take {needed_gb:.1f} GB, more than cache_gb = {cache_gb:g}: raise it, or take fewer frozen_passes"
        )
    return torch.empty((total, *like.shape[1:]), dtype=like.dtype)
