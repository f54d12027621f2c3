"""Tiny but complete inputs for tests: shapes as a data set, and a run directory with random weights, made in seconds."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from moderation_client.contract import ImageSpec, ModelSpec
from moderation_client.policy import Policy, Threshold
from train.backbones import build_backbone
from train.model import ModerationModel, save_run

LABELS = ("circle", "star")
SPLIT_CYCLE = ("train",) * 5 + ("early_stop", "calibration", "policy", "test", "unseen")


def small_manifest(folder: Path, *, num_groups: int = 40, side: int = 48, seed: int = 0) -> Path:
    """Draw two variants of `num_groups` shapes as RGBA PNG: circles, stars, both, and squares (harmless)."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(num_groups):
        labels = [[], ["circle"], ["star"], [], ["circle", "star"]][rng.integers(5)]
        for variant in range(2):
            path = f"images/{number:03d}_{variant}.png"
            _draw(labels, side, rng).save(folder / path)
            rows.append(
                {
                    "path": path,
                    "labels": ";".join(labels),
                    "group": f"object-{number}",
                    "split": SPLIT_CYCLE[number % len(SPLIT_CYCLE)],
                    "source": f"artist-{variant}",
                    "licence": "CC0",
                    "name": "+".join(labels) or "square",
                }
            )
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return folder / "manifest.csv"


def _draw(labels: list[str], side: int, rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    colour = tuple(int(value) for value in rng.integers(0, 256, 3))
    x, y = (int(value) for value in rng.integers(side // 12, side // 4, 2))
    r = side // 4
    if "circle" in labels:
        draw.ellipse((x, y, x + 2 * r, y + 2 * r), fill=(*colour, 255))
    if "star" in labels:
        draw.line((x, side - 4, x + 2 * r, y + r), fill=(*colour, 255), width=3)
        draw.line((x, y + r, x + 2 * r, side - 4), fill=(*colour, 255), width=3)
    if not labels:
        draw.rectangle((x, y, x + 2 * r, y + 2 * r), fill=(*colour, 255))
    return image


def small_run(
    folder: Path,
    *,
    manifest: Path | None = None,
    backbone: str = "efficientnet_lite0",
    image_size: int = 64,
    labels: tuple[str, ...] = LABELS,
    seed: int = 0,
) -> Path:
    """Write `folder` as a run of random weights whose scores spread over 0..1, with its data (`folder`/data) unless given."""
    manifest = manifest or small_manifest(folder / "data", seed=seed)
    torch.manual_seed(seed)
    model = ModerationModel(build_backbone(backbone, image_size=image_size), num_labels=len(labels)).eval()
    _spread_scores(model, manifest, image_size)
    spec = ModelSpec(
        labels=labels,
        image=ImageSpec(height=image_size, width=image_size),
        training_record=folder.name,
        description="random weights, for tests only",
    )
    policy = Policy(
        labels=labels,
        thresholds={
            label: Threshold(review=0.4, block=0.8, evidence={"made": "for tests"}) for label in labels
        },
    )
    record = {"backbone": backbone, "name": folder.name, "seed": seed, "data": {"manifest": str(manifest)}}
    save_run(folder, model=model, spec=spec, policy=policy, record=record)
    return folder


def _spread_scores(model: ModerationModel, manifest: Path, image_size: int) -> None:
    """Give the normalisation layers statistics and the logits unit spread on the drawn shapes, as training would.

    Otherwise random weights answer 0.5 to everything, or amplify rounding into different answers.
    """
    files = sorted((manifest.parent / "images").glob("*.png"))[:32]
    shapes = [Image.open(file).convert("RGB").resize((image_size, image_size)) for file in files]
    pixels = torch.from_numpy(np.stack([np.asarray(shape) for shape in shapes]))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train().logits(pixels)
        logits = model.eval().logits(pixels)
    model.scale.copy_(1.5 / logits.std(0))
    model.bias.copy_(-logits.mean(0) * model.scale)
