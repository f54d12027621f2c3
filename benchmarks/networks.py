"""Repositories for speed alone: a named network with random weights, exported by the product's own export, FP32 and INT8.

Speed does not depend on what the weights have learnt, so benchmarks of a network need no training data. Batch-norm statistics are
taken from photographs, so that INT8 ranges are realistic; decisions of such a model mean nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from benchmarks.corpus import LABELS, load_files
from export.from_run import torch_graph, torch_reference
from export.gates import Gates, Limits
from export.int8_search import SearchConfig
from export.publish import PublishConfig, publish
from export.source import Images, Source, Split
from export.variants import VariantConfig
from moderation_client.contract import ImageSpec, ModelSpec
from moderation_client.images import decode
from moderation_client.policy import Policy, Threshold
from train.backbones import build_backbone
from train.model import ModerationModel

NUM_PHOTOGRAPHS = 32
FOLDER = Path("runs/benchmarks/networks")


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Export a network with random weights into a repository of its own."""

    backbone: str = "resnet50"
    """Any backbone that `python -m train` knows."""
    out: Path = FOLDER
    """The repository is OUT/<backbone>."""
    image_size: int = 224
    max_batch_size: int = 16
    int8: bool = True
    """Also make the INT8 file."""


def photographs(spec: ImageSpec, num_images: int) -> NDArray[np.uint8]:
    """Decoded photographs, uint8 [num_images, H, W, 3]."""
    files = load_files(None, num_images=num_images)
    return np.stack([decode(file, spec).pixels[0] for file in files])


def build_model(backbone: str, spec: ImageSpec, *, seed: int = 0) -> ModerationModel:
    """Make a network with seeded random weights and batch-norm statistics of photographs, ready for inference."""
    torch.manual_seed(seed)
    model = ModerationModel(build_backbone(backbone, image_size=spec.height), num_labels=len(LABELS))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # a plain average over what is shown
    model.train()
    with torch.no_grad():
        model(torch.from_numpy(photographs(spec, NUM_PHOTOGRAPHS // 2)))
    return model.eval()


def network_source(config: NetworkConfig) -> Source:
    """Describe the network to export: its photographs serve as calibration, selection and test."""
    spec = ImageSpec(height=config.image_size, width=config.image_size)
    model = build_model(config.backbone, spec)
    pixels = photographs(spec, NUM_PHOTOGRAPHS)
    names = tuple(f"photograph {index}" for index in range(len(pixels)))
    split = Split(pixels=pixels, owners=np.arange(len(pixels), dtype=np.int64), names=names)
    return Source(
        name=f"{config.backbone} with random weights",
        spec=ModelSpec(labels=LABELS, image=spec, description="random weights: for measuring speed only"),
        policy=Policy(
            labels=LABELS, thresholds={label: Threshold(review=0.5, block=0.9) for label in LABELS}
        ),
        reference=torch_reference(model),
        reference_name="PyTorch",
        graph=lambda _folder: torch_graph(model, spec),
        images=Images(calibration=pixels, selection=split, test=split),
    )


def ensure_network(config: NetworkConfig) -> Path:
    """Give the repository, exported now if it is not there. Raises a subtype of ExportError."""
    repository = config.out / config.backbone
    if (repository / "moderation" / "config.pbtxt").is_file():
        return repository
    anything = Limits(max_score_shift=1.0, min_agreement=0.0, max_ap_drop=1.0)
    variants = VariantConfig(
        variants=("fp32", "int8") if config.int8 else ("fp32",),
        gates=Gates(int8=anything),
        search=SearchConfig(methods=("minmax",)),
        max_batch_size=config.max_batch_size,
    )
    publish(
        network_source(config),
        PublishConfig(
            repository=repository, variants=variants, report=config.out / f"{config.backbone}-export"
        ),
    )
    return repository


if __name__ == "__main__":
    print(ensure_network(tyro.cli(NetworkConfig)))
