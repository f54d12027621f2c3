"""Every choice a training run makes, in one frozen dataclass that the command line is made of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from train.errors import TrainError

Loss = Literal["bce", "weighted", "focal"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
PresetName = Literal["default", "demo"]
FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What to train, on what, and how. Numbers fit one machine; see README for many."""

    preset: PresetName = "default"
    """Where the defaults come from: `default`, or `demo` (illustrated content, six to eight minutes on two cores with bfloat16)."""
    data: Path = Path("data/illustrated/manifest.csv")
    """Manifest (CSV or Parquet) or folder of class folders."""
    runs: Path = Path("runs")
    """Folder of run folders."""
    name: str = "default"
    """Name of this run's folder."""
    resume: bool = False
    """Go on from the last finished epoch of the run of this name."""
    check: bool = True
    """Decode every image and look for duplicates across splits before training; labels and groups are always checked."""
    labels: tuple[str, ...] = ()
    """Labels to learn, in output order; empty means every label that occurs."""
    task: Literal["multilabel", "multiclass"] = "multilabel"
    """`multilabel`: any number of labels an image; `multiclass`: exactly one (images without one are `neutral`)."""
    description: str = ""
    """What the model is for and not for, in one line; travels with the model."""

    backbone: str = "efficientnet_lite0"
    """Network: efficientnet_lite0/1/2 or any torchvision classification network (resnet50, vgg16, ...)."""
    weights: str = "default"
    """`default` (ImageNet), `none` (random) or a .safetensors/.pth file."""
    image_size: int = 224
    """Side of the model's input, which is also the size of evaluation and serving."""
    train_sizes: tuple[int, ...] = ()
    """Sides of training images, each for an equal part of the epochs: small ones are fast and fine early on; empty means image_size."""
    freeze: tuple[str, ...] = ()
    """Parts of the backbone that stay as they are: prefixes of its parameter names."""
    freeze_depthwise: bool = False
    """Keep the spatial filters of depthwise convolutions: 3 % of the weights, half of the time on a CPU."""
    freeze_norm: bool = False
    """Keep the statistics of batch normalisation as they were pre-trained."""
    frozen_passes: int = 0
    """Augmented passes whose maps behind the frozen first parts are computed once and learnt from in turn; 0 computes every epoch anew.
    For networks that can be cut, EfficientNet-Lite."""

    probe_epochs: int = 2
    """Augmented passes whose frozen features the head is fitted to first; 0 starts from a random head."""
    epochs: int = 20
    """Passes over the training split with the backbone unfrozen."""
    batch_size: int = 32
    """Images a step and device."""
    accumulate: int = 1
    """Steps whose gradients are summed before the weights move."""
    learning_rate: float = 1e-3
    """Highest learning rate, of the head."""
    backbone_rate: float = 0.3
    """Factor on it for the backbone."""
    weight_decay: float = 0.02
    """AdamW's decay of weight matrices."""
    warmup_share: float = 0.1
    """Share of the steps in which the learning rate rises, before it falls along a cosine."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this length; 0 leaves them."""
    loss: Loss = "bce"
    """`bce`, `weighted` (positives count by their rarity), or `focal` (Lin et al., 2017)."""
    balance: float = 0.0
    """0 draws images as they come, 1 draws every label set equally often."""
    label_smoothing: float = 0.05
    """How far targets stand from 0 and 1."""
    mixup: float = 0.0
    """Alpha of MixUp's Beta distribution (Zhang et al., 2018); 0 is off."""
    side_task: str = ""
    """Column of the manifest (what kind of thing is shown) that a second head learns along; it is thrown away afterwards."""
    side_weight: float = 0.5
    """Weight of its loss."""
    ema_decay: float = 0.0
    """Decay of the moving average of weights that is kept and evaluated; 0 is off."""
    average: tuple[float, ...] = (1.0,)
    """Shares of the fine-tuned weights to try when averaging with the pre-trained ones (WiSE-FT, Wortsman et al., 2022)."""
    patience: int = 0
    """Stop after so many epochs without a better early_stop AP; 0 never stops early."""

    precision: Precision = "auto"
    """Arithmetic of training; `auto` takes bfloat16 where the processor has it."""
    devices: int = 1
    """Processes or GPUs; more than one trains with DDP."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to train."""
    num_workers: int = 0
    """Processes that decode images; 0 decodes all once into memory when they fit."""
    cache_gb: float = 4.0
    """Memory for decoded training images; above it files are decoded anew in every epoch."""
    seed: int = 0
    """Start of every random choice; the same seed gives the same metrics on the same machine."""

    targets: Path = FOLDER / "targets.toml"
    """What the thresholds must keep: shares of misses and of false blocks, with confidence."""
    slices: tuple[str, ...] = ("source",)
    """Columns of the manifest by which the test split is judged in parts."""
    scratch_result: Path | None = None
    """Result of benchmarks/scratch.py to show beside this run's."""

    def __post_init__(self) -> None:
        """Check the values. Raises TrainError that names the field."""
        if not all(side >= 16 for side in self.train_sizes):
            raise TrainError(f"train_sizes must be 16 or more, got {self.train_sizes}")
        for name in ("batch_size", "accumulate", "devices", "image_size"):
            if getattr(self, name) < 1:
                raise TrainError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("epochs", "probe_epochs", "num_workers", "patience", "frozen_passes"):
            if getattr(self, name) < 0:
                raise TrainError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.frozen_passes and self.train_sizes:
            raise TrainError(
                "frozen_passes keeps maps of one size: leave train_sizes empty, or frozen_passes at 0"
            )
        if not 0.0 <= self.label_smoothing < 0.5:
            raise TrainError(f"label_smoothing must be from 0 to below 0.5, got {self.label_smoothing}")
        if not self.average or not all(0.0 <= share <= 1.0 for share in self.average):
            raise TrainError(f"average must be shares 0..1, got {self.average}")
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise TrainError(f"name must be a folder name, got {self.name!r}")

    @property
    def run(self) -> Path:
        """The folder this run writes."""
        return self.runs / self.name

    @property
    def cache_side(self) -> int:
        """Side at which training images are decoded, larger than they are trained at: they are turned and shrunk."""
        return max(*self.train_sizes, self.image_size) if self.train_sizes else self.image_size

    def size_at(self, epoch: int) -> int:
        """Side of training images in one epoch."""
        if not self.train_sizes:
            return self.image_size
        return self.train_sizes[min(epoch, self.epochs - 1) * len(self.train_sizes) // max(self.epochs, 1)]


PRESETS: dict[str, TrainConfig] = {
    "default": TrainConfig(),
    "demo": replace(
        TrainConfig(),
        preset="demo",
        name="demo",
        description="Illustrated content (stickers, emoji, clip art); not for photographs, not for nudity.",
        freeze=("stem", *(f"blocks.{index}." for index in range(8))),
        frozen_passes=4,
        freeze_norm=True,
        freeze_depthwise=True,
        probe_epochs=2,
        epochs=8,
        mixup=0.2,
        balance=0.3,
        ema_decay=0.99,
        average=(0.8, 1.0),
        targets=FOLDER / "targets_demo.toml",
        scratch_result=FOLDER.parent / "benchmarks" / "results" / "scratch.json",
    ),
}
