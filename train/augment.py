"""What training images go through: made for moderation, so nothing that shows the harm may leave the frame or vanish.

Pictures are turned, flipped, shrunk and moved inside the frame but never cropped; art on transparency gets any background that it
stands out from; colours may change altogether, since a weapon is a weapon in pink. Whole batches at once, on the device of the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from train.sampling import Draw

MIN_CONTRAST = 48.0
"""Levels of brightness by which a picture and its background must differ, else the background is inverted."""
BACKGROUND_KINDS = 6
COARSE = 8
"""Side at which smooth backgrounds are drawn before they are enlarged."""


@dataclass(frozen=True, kw_only=True)
class Strength:
    """How far augmentation goes; each probability is per image."""

    plain: float = 0.6
    """Left where it is, on white or black: as the service will see it."""
    smallest: float = 0.55
    """Smallest scale of the picture in the frame."""
    turn_degrees: float = 25.0
    """Largest rotation."""
    recolour: float = 0.5
    """Hue, saturation and brightness changed."""
    invert: float = 0.1
    """Colours inverted: white line art on dark ground."""
    grey: float = 0.15
    """Colours taken away."""
    soften: float = 0.2
    """Blurred a little."""
    noise: float = 0.15
    """Grain added."""


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Callable: uint8 [N, 4, S, S] (colour times opacity, opacity) -> float32 [N, size, size, 3] of 0..255."""

    size: int
    strength: Strength = Strength()

    def __call__(self, layers: Tensor, draw: Draw) -> Tensor:
        """Take all random numbers from `draw`, so that seed and epoch decide, whatever the device."""
        num = len(layers)
        plain = draw.uniform(num) < self.strength.plain
        moved = self._move(layers, plain, draw)
        colour, opacity = self._recolour(moved, draw), moved[:, 3:]
        ground = _backgrounds(colour, opacity, plain, draw)
        ground = _stand_out(colour, opacity, ground)
        image = colour + (1.0 - opacity / 255.0) * ground
        image = self._degrade(image, plain, draw)
        return image.clamp_(0.0, 255.0).permute(0, 2, 3, 1)

    def _move(self, layers: Tensor, plain: Tensor, draw: Draw) -> Tensor:
        """Flip, turn, shrink, move; outside the picture is transparent. uint8 [N, 4, S, S] -> float32 [N, 4, size, size]."""
        num, most = len(layers), math.radians(self.strength.turn_degrees)
        scale = self.strength.smallest + (1.0 - self.strength.smallest) * draw.uniform(num)
        angle = (2.0 * draw.uniform(num) - 1.0) * most
        stretch = (0.8 + 0.4 * draw.uniform(num)).sqrt()
        flip = torch.where(draw.uniform(num) < 0.5, -1.0, 1.0)
        scale, angle, stretch = (
            torch.where(plain, torch.full_like(each, still), each)
            for each, still in ((scale, 1.0), (angle, 0.0), (stretch, 1.0))
        )
        # A turned or stretched square must still fit: shrink by what its bounding box grew.
        fit = (angle.cos() + angle.sin().abs()) * torch.maximum(stretch, 1.0 / stretch)
        scale = torch.where(plain, scale, torch.minimum(scale, 1.0 / fit))
        room = (1.0 - scale * fit).clamp(min=0.0)
        shift = (2.0 * draw.uniform(num, 2) - 1.0) * room[:, None]
        turn = torch.stack(
            [angle.cos() * stretch, angle.sin() * stretch, -angle.sin() / stretch, angle.cos() / stretch], 1
        ).view(num, 2, 2)
        turn[:, 0] *= flip[:, None]
        turn /= scale[:, None, None]
        theta = torch.cat([turn, -(turn @ shift[:, :, None])], 2)
        if layers.shape[-1] != self.size:
            return self._sample(layers, theta)
        # mirroring is all that happens to a plain one of this size
        mirrored = (flip < 0).view(num, 1, 1, 1).to(layers.device)
        moved = torch.where(mirrored, layers.flip(3), layers).float()
        others = ~plain
        if others.any():
            chosen = others.to(layers.device)
            moved[chosen] = self._sample(layers[chosen], theta[others])
        return moved

    def _sample(self, layers: Tensor, theta: Tensor) -> Tensor:
        """Look at pictures through affine maps [N, 2, 3] from the frame to the picture."""
        shape = [len(layers), 4, self.size, self.size]
        grid = functional.affine_grid(theta.to(layers.device), shape, align_corners=False)
        return functional.grid_sample(layers.float(), grid, align_corners=False)

    def _recolour(self, moved: Tensor, draw: Draw) -> Tensor:
        """Change hue, saturation, brightness and contrast by one linear map an image, premultiplied as the colour is."""
        num = len(moved)
        matrix, offset = _colour_maps(num, self.strength, draw)
        opacity = moved[:, 3:]
        colour = torch.einsum("nij,njhw->nihw", matrix.to(moved), moved[:, :3])
        colour += offset.to(moved).view(num, 1, 1, 1) * opacity
        return torch.minimum(colour.clamp_(min=0.0), opacity)

    def _degrade(self, image: Tensor, plain: Tensor, draw: Draw) -> Tensor:
        """Blur and add grain to some, as screenshots and recompression do."""
        num = len(image)
        soften = (draw.uniform(num) < self.strength.soften) & ~plain
        noisy = (draw.uniform(num) < self.strength.noise) & ~plain
        if soften.any():
            chosen = soften.to(image.device)
            small = functional.avg_pool2d(image[chosen], 2, ceil_mode=True)
            image[chosen] = functional.interpolate(
                small, image.shape[2:], mode="bilinear", align_corners=False
            )
        if noisy.any():
            chosen = noisy.to(image.device)
            grain = torch.randn(image[chosen].shape, generator=draw.generator) * 12.0
            image[chosen] += grain.to(image)
        return image


def _colour_maps(num: int, strength: Strength, draw: Draw) -> tuple[Tensor, Tensor]:
    """Give per image a matrix [num, 3, 3] and an offset [num] in units of full brightness."""
    identity = torch.eye(3).expand(num, 3, 3)
    luma = torch.tensor([0.299, 0.587, 0.114]).expand(3, 3)
    # Rotation about the grey axis turns the hue; mixing with luma changes saturation.
    angle = (2.0 * draw.uniform(num) - 1.0)[:, None, None] * math.pi
    axis = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3.0)
    hue = identity + angle.sin() * axis + (1.0 - angle.cos()) * (axis @ axis)
    saturation = (0.5 + draw.uniform(num))[:, None, None]
    gain = (0.7 + 0.6 * draw.uniform(num))[:, None, None]
    changed = gain * (saturation * hue + (1.0 - saturation) * luma)
    recolour = (draw.uniform(num) < strength.recolour)[:, None, None]
    matrix = torch.where(recolour, changed, identity)
    matrix = torch.where((draw.uniform(num) < strength.grey)[:, None, None], luma @ matrix, matrix)
    inverted = draw.uniform(num) < strength.invert
    sign = torch.where(inverted, -1.0, 1.0)
    return matrix * sign[:, None, None], inverted.float()


def _backgrounds(colour: Tensor, opacity: Tensor, plain: Tensor, draw: Draw) -> Tensor:
    """Give each image one of: white or black, a colour, a gradient, soft blobs, stripes, another image out of focus."""
    num, _, height, width = colour.shape
    kind = (BACKGROUND_KINDS * draw.uniform(num)).long()
    kind = torch.where(plain, 0, kind)
    low = (num, 3, COARSE, COARSE)
    extreme = (255.0 * (draw.uniform(num) < 0.5)).view(num, 1, 1, 1).expand(low)
    solid = 255.0 * draw.uniform(num, 3, 1, 1).expand(low)
    gradient = _grown(255.0 * draw.uniform(num, 3, 2, 2), (COARSE, COARSE))
    blobs = 255.0 * draw.uniform(*low)
    under = 255.0 * draw.uniform(num, 3, 1, 1)
    pooled = functional.adaptive_avg_pool2d(torch.cat([colour, opacity], 1), COARSE).cpu()
    others = (pooled[:, :3] + (1.0 - pooled[:, 3:] / 255.0) * under).roll(1, 0)
    coarse = torch.stack([extreme, solid, gradient, blobs, others, extreme])[kind, torch.arange(num)]
    ground = _grown(coarse.to(colour), (height, width))
    waves, ends = 120.0 * draw.uniform(num, 2) - 60.0, 255.0 * draw.uniform(num, 2, 3, 1, 1)
    striped = kind == BACKGROUND_KINDS - 1
    if striped.any():
        stripes = _stripes(waves[striped], ends[striped], (height, width))
        ground[striped.to(colour.device)] = stripes.to(ground)
    return ground


def _grown(low: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(low, size, mode="bilinear", align_corners=False)


def _stripes(waves: Tensor, ends: Tensor, size: tuple[int, int]) -> Tensor:
    """Stripes between two colours: waves [N, 2] down and across, ends [N, 2, 3, 1, 1] -> [N, 3, *size]."""
    rows = torch.linspace(0.0, 1.0, size[0])[:, None]
    columns = torch.linspace(0.0, 1.0, size[1])[None]
    phase = waves[:, :1, None] * rows + waves[:, 1:, None] * columns
    mix = (0.5 + 0.5 * phase.sin())[:, None]
    return mix * ends[:, 0] + (1.0 - mix) * ends[:, 1]


def _stand_out(colour: Tensor, opacity: Tensor, ground: Tensor) -> Tensor:
    """Invert backgrounds on which the picture could not be seen: a black gun on black is a wrong label."""
    share = opacity.sum((1, 2, 3)).clamp(min=1.0) / 255.0
    picture = colour.mean(1).sum((1, 2)) / share
    behind = (ground.mean(1) * opacity[:, 0]).sum((1, 2)) / 255.0 / share
    hidden = ((picture - behind).abs() < MIN_CONTRAST).view(-1, 1, 1, 1)
    inverted = 255.0 - ground
    farther = ((picture - (255.0 - behind)).abs() > (picture - behind).abs()).view(-1, 1, 1, 1)
    return torch.where(hidden & farther, inverted, ground)
