"""Which networks can be trained: EfficientNet-Lite and every torchvision classification family, by name, as feature extractors.

The 1000-class head is taken off and a new one put on, never stacked on top of the old logits.
"""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import safetensors
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from train import efficientnet_lite
from train.errors import WeightsError

IMAGENET_CLASSES = 1000
WAYS = "--weights none (random weights) or --weights PATH (a .safetensors or .pth file you have)"


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A network without its head, and how its images are normalised."""

    body: nn.Module
    """Normalised images float [N, 3, H, W] -> features float [N, num_features]."""
    num_features: int
    """Width of what the head sees."""
    mean: tuple[float, float, float]
    """Subtracted from the 0..255 values of red, green and blue."""
    std: tuple[float, float, float]
    """Divided by afterwards."""


def names() -> list[str]:
    """Every name that `build_backbone` knows."""
    return sorted({*efficientnet_lite.VARIANTS, *torchvision.models.list_models(module=torchvision.models)})


def default_image_size(name: str) -> int:
    """Side of the images that the published weights of `name` were trained on."""
    if name in efficientnet_lite.VARIANTS:
        return efficientnet_lite.VARIANTS[name].image_size
    return int(_transforms(name).crop_size[0]) if name in names() else 224


def build_backbone(name: str, *, weights: str = "none", image_size: int = 224) -> Backbone:
    """Build `name` without its head; `weights` is `default` (published ImageNet ones), `none`, or a file.

    Raises WeightsError for an unknown name, a download that fails, or a file that does not fit.
    """
    if name not in names():
        raise WeightsError(f"backbone {name!r} is not known; choose one of {', '.join(names())}")
    build = _build_lite if name in efficientnet_lite.VARIANTS else _build_torchvision
    backbone = build(name, weights == "default", image_size)
    if weights not in {"default", "none"}:
        load_weights(backbone.body, Path(weights))
    return backbone


def _build_lite(name: str, pretrained: bool, _: int) -> Backbone:
    body = efficientnet_lite.EfficientNetLite(efficientnet_lite.VARIANTS[name])
    if pretrained:
        efficientnet_lite.load_imagenet(body, name)
    return Backbone(
        body=body, num_features=efficientnet_lite.NUM_FEATURES, mean=(127.0,) * 3, std=(128.0,) * 3
    )


def _build_torchvision(name: str, pretrained: bool, image_size: int) -> Backbone:
    weights = torchvision.models.get_model_weights(name).DEFAULT if pretrained else None
    options = _size_options(name, image_size, pretrained)
    if not pretrained and name in {"inception_v3", "googlenet"}:
        options |= {"aux_logits": False, "init_weights": True}
    try:
        with warnings.catch_warnings():  # googlenet and inception warn of their own defaults
            warnings.simplefilter("ignore")
            body = torchvision.models.get_model(name, weights=weights, **options)
    except (URLError, OSError, RuntimeError) as error:
        raise WeightsError(f"weights of {name} could not be downloaded ({error}); use {WAYS}") from error
    _drop_auxiliary_heads(body)
    num_features = _remove_head(body, name)
    transforms = _transforms(name)
    mean = tuple(255.0 * value for value in transforms.mean)
    std = tuple(255.0 * value for value in transforms.std)
    return Backbone(body=body, num_features=num_features, mean=mean, std=std)


def _transforms(name: str) -> Any:
    return torchvision.models.get_model_weights(name).DEFAULT.transforms()


def _size_options(name: str, image_size: int, pretrained: bool) -> dict[str, Any]:
    """Tell transformers with a fixed grid of patches their image size, as they want it when they are built."""
    parameters = inspect.signature(torchvision.models.get_model_builder(name)).parameters
    if name.startswith("vit_") and image_size != default_image_size(name):
        if pretrained:
            raise WeightsError(
                f"the published weights of {name} are for {default_image_size(name)} px, not {image_size}; "
                f"use --image-size {default_image_size(name)} or {WAYS}"
            )
        return {"image_size": image_size}
    if name.startswith("maxvit") and "input_size" not in parameters and image_size != 224:
        return {"input_size": (image_size, image_size)}
    return {}


def _drop_auxiliary_heads(body: nn.Module) -> None:
    """Inception's and GoogLeNet's side exits only help training from nothing, and would change the output type."""
    if hasattr(body, "aux_logits"):
        setattr(body, "aux_logits", False)  # noqa: B010 - a plain attribute, which typed torch takes for a module
    for name in ("AuxLogits", "aux1", "aux2"):
        if hasattr(body, name):
            setattr(body, name, None)


def _remove_head(body: nn.Module, name: str) -> int:
    """Replace the last layer that gives 1000 classes by the identity; give the width that went into it."""
    heads = [
        (path, module)
        for path, module in body.named_modules()
        if getattr(module, "out_features", getattr(module, "out_channels", None)) == IMAGENET_CLASSES
        and isinstance(module, nn.Linear | nn.Conv2d)
    ]
    if not heads:
        raise WeightsError(f"{name} has no layer with {IMAGENET_CLASSES} outputs to replace")
    path, head = heads[-1]
    parent, _, attribute = path.rpartition(".")
    setattr(body.get_submodule(parent), attribute, nn.Identity())
    return head.in_features if isinstance(head, nn.Linear) else head.in_channels


def load_weights(body: nn.Module, path: Path) -> None:
    """Fill `body` from a state dict: a network's own .pth or .safetensors, or the model.safetensors of a run.

    Entries of a head are left out. Raises WeightsError that names what is missing or does not fit.
    """
    tensors = _read_tensors(path)
    if any(key.startswith("body.") for key in tensors):
        tensors = {key[5:]: value for key, value in tensors.items() if key.startswith("body.")}
    own = body.state_dict()
    missing = sorted(key for key in own if key not in tensors)
    wrong = sorted(key for key in own if key in tensors and tensors[key].shape != own[key].shape)
    if missing or wrong:
        raise WeightsError(
            f"{path} does not fit this backbone: {len(missing)} tensors are missing ({', '.join(missing[:3])}), "
            f"{len(wrong)} have another shape ({', '.join(wrong[:3])})"
        )
    body.load_state_dict({key: tensors[key].contiguous() for key in own})


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, safetensors.SafetensorError) as error:
        raise WeightsError(f"weights {path} cannot be read: {error}") from error
    except (
        Exception
    ) as error:  # unpickling raises pickle.UnpicklingError and, on hostile files, anything else
        raise WeightsError(f"weights {path} are not a plain state dict: {error}") from error
    tensors = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    return {str(key): value for key, value in tensors.items() if isinstance(value, Tensor)}
