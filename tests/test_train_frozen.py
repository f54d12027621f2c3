"""Maps of frozen parts stand for the images they were made of, and a run learns from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.small_run import LABELS, small_manifest
from train import data
from train.__main__ import main
from train.augment import Augment
from train.backbones import build_backbone
from train.config import TrainConfig
from train.errors import TrainError
from train.frozen import BATCH_IMAGES, FROZEN_EPOCH, FrozenMaps, frozen_depth
from train.model import ModerationModel, load_run
from train.pixels import TrainingImages
from train.sampling import Draw, EpochSampler

SIDE = 64
CONFIG = TrainConfig(
    image_size=SIDE,
    freeze=("stem", "blocks.0.", "blocks.1."),
    freeze_norm=True,
    frozen_passes=2,
    num_workers=0,
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> TrainingImages:
    """The training images of forty drawn shapes."""
    manifest = small_manifest(tmp_path_factory.mktemp("shapes"), side=SIDE)
    examples = data.in_split(data.read_manifest(manifest), "train")
    return TrainingImages(examples, data.targets(examples, LABELS), side=SIDE, cache_bytes=1e9)


@pytest.fixture(scope="module")
def model() -> ModerationModel:
    """EfficientNet-Lite0 with random weights and statistics that normalisation must take into account."""
    torch.manual_seed(0)
    model = ModerationModel(build_backbone("efficientnet_lite0"), num_labels=len(LABELS))
    with torch.no_grad():
        for name, value in model.body.named_buffers():
            if name.endswith("running_mean"):
                value.normal_(0.0, 0.1)
    return model.eval()


def test_maps_continue_to_the_features_of_their_images(
    images: TrainingImages, model: ModerationModel
) -> None:
    """Begin, keep and finish gives what the whole network says of the same augmented images."""
    depth = frozen_depth(model.body, CONFIG)
    assert depth == 3
    kept = FrozenMaps(images, model, depth, CONFIG, torch.float32)
    assert len(kept) == 2 * len(images)
    num = min(BATCH_IMAGES, len(images))
    layers = torch.stack([images[index][0] for index in range(num)])
    for which in range(2):
        draw = Draw(seed=CONFIG.seed, epoch=FROZEN_EPOCH + which, step=0)
        rows = [kept[which * len(images) + index] for index in range(num)]
        with torch.inference_mode():
            whole = model.features(Augment(size=SIDE)(layers, draw))
            maps = torch.stack([row[0] for row in rows]).float().permute(0, 3, 1, 2)
            finished = model.body.finish(maps, depth)  # type: ignore[operator]
        assert (whole - finished).abs().max() < 0.02 * whole.abs().max()
        assert torch.equal(torch.stack([row[1] for row in rows]), images.targets[:num])


def test_epochs_take_every_pass_in_turn() -> None:
    """Over as many epochs as there are passes, each image is drawn in each of its forms."""
    sampler = EpochSampler(torch.full((10,), 0.1).double().numpy(), seed=0, balanced=False, num_passes=3)
    seen: set[int] = set()
    for epoch in range(3):
        sampler.set_epoch(epoch)
        drawn = list(sampler)
        assert {index % 10 for index in drawn} == set(range(10))
        seen |= set(drawn)
    assert seen == set(range(30))


def test_what_cannot_be_kept_is_said(images: TrainingImages, model: ModerationModel) -> None:
    """Nothing frozen, a network that cannot be cut, several sizes, too little memory: each names the way out."""
    with pytest.raises(TrainError, match="--freeze stem"):
        frozen_depth(model.body, replace(CONFIG, freeze=("top",)))
    with pytest.raises(TrainError, match="resnet18"):
        frozen_depth(build_backbone("resnet18").body, replace(CONFIG, backbone="resnet18"))
    with pytest.raises(TrainError, match="train_sizes"):
        replace(CONFIG, train_sizes=(32, 64))
    with pytest.raises(TrainError, match=r"more than cache_gb = 1e-05"):
        FrozenMaps(images, model, 3, replace(CONFIG, cache_gb=1e-5), torch.float32)


def test_run_learns_from_maps_and_keeps_what_is_frozen(tmp_path: Path) -> None:
    """The same seed gives the same weights; frozen parts are those of the start, the others are not."""
    manifest = small_manifest(tmp_path, num_groups=60, side=32)
    words = [
        "--runs",
        str(tmp_path),
        "--data",
        str(manifest),
        "--weights",
        "none",
        "--image-size",
        "32",
        "--epochs",
        "2",
    ]
    words += [
        "--freeze",
        "stem",
        "blocks.0.",
        "--freeze-norm",
        "--frozen-passes",
        "2",
        "--precision",
        "float32",
    ]
    for name in ("one", "two"):
        assert main(["--name", name, *words, "--accelerator", "cpu"]) == 0
    one, two = (load_run(tmp_path / name).model.state_dict() for name in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    start = ModerationModel(build_backbone("efficientnet_lite0"), num_labels=len(LABELS)).state_dict()
    assert one.keys() == start.keys()
