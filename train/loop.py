"""The training loop: a Lightning module, and the trainer that drives it with checkpoints, logs, averaging and resuming.

Every random choice of a step is drawn from a generator seeded by (seed, epoch, step, rank), so a run that was killed and resumed at
the last finished epoch sees what the unbroken run saw.
"""

from __future__ import annotations

import logging
import pickle
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import callbacks, loggers
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import MultilabelAveragePrecision

from train.augment import Augment
from train.config import TrainConfig
from train.errors import RunError, TrainError
from train.loaders import Loaders
from train.losses import Criterion, mix
from train.model import ModerationModel
from train.pixels import worst_view
from train.sampling import Draw

CHECKPOINTS = "checkpoints"
EXPECTED = "|".join(
    (
        ".*does not have many workers",  # images are decoded already, or the user chose the number
        ".*exists and is not empty",  # the start weights are there, and so are checkpoints to go on from
        ".*smaller than the logging interval",
        ".*available but not used",
        ".*deterministic",  # what has no deterministic form runs all the same
        ".*lr_scheduler.step",  # a step that float16 skipped
        ".*in eval mode",  # frozen normalisation is meant
        ".*LeafSpec",  # Lightning 2.6 with torch 2.14
    )
)
"""Warnings of Lightning and torch that tell a user nothing."""


class Classifier(lightning.LightningModule):
    """Augment, score, compare; validation scores images as the service does: the worst view counts."""

    def __init__(
        self,
        model: ModerationModel,
        config: TrainConfig,
        criterion: Criterion,
        *,
        num_kinds: int = 0,
        depth: int = 0,
    ) -> None:
        super().__init__()
        self.side_head = nn.Linear(model.head.in_features, num_kinds) if num_kinds else None
        self.model = model
        self.config = config
        self.criterion = criterion
        self.depth = depth  # of the frozen parts whose maps come in place of images
        self.average_precision = MultilabelAveragePrecision(model.head.out_features, average="macro")

    def look(self, layers: Tensor, size: int, draw: Draw) -> Tensor:
        """Augmented images float32 [N, size, size, 3] of layers; maps that were kept come as they are, float16 [N, h, w, C]."""
        return layers.float() if self.depth else Augment(size=size)(layers, draw)

    def features(self, seen: Tensor) -> Tensor:
        """What the head sees, float [N, num_features], of what `look` gave."""
        if not self.depth:
            return self.model.features(seen)
        features: Tensor = self.model.body.finish(seen.permute(0, 3, 1, 2), self.depth)  # type: ignore[operator]
        return features

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        """One step on layers uint8 [N, 4, S, S], or on kept maps; stops with a clear error when the loss is no number."""
        layers, targets, weight, kinds = batch
        draw = Draw(
            seed=self.config.seed,
            epoch=self.current_epoch,
            step=batch_idx,
            rank=self.global_rank,
            num_replicas=self.trainer.world_size,
        )
        torch.manual_seed(draw.generator.initial_seed())  # what dropout and stochastic depth draw from
        seen = self.look(layers, self.config.size_at(self.current_epoch), draw)
        if self.config.mixup > 0.0:
            seen, targets = mix(seen, targets, self.config.mixup, draw)
        features = self.features(seen)
        loss = self.criterion(self.model.head(features), targets, weight.float())
        if self.side_head is not None and bool((kinds >= 0).any()):
            side = functional.cross_entropy(self.side_head(features).float(), kinds, label_smoothing=0.1)
            loss = loss + self.config.side_weight * side
        if not torch.isfinite(loss):
            raise TrainError(
                f"the loss became {float(loss.detach())} in epoch {self.current_epoch}, step {batch_idx}: lower learning_rate "
                f"(now {self.config.learning_rate}) or train with --precision float32; the last good checkpoint is kept"
            )
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(layers), sync_dist=True)
        return loss

    def on_train_epoch_start(self) -> None:
        """Set the modes anew: Lightning keeps those it found, which are evaluation's after a probe."""
        self.model.train()
        freeze(self.model, self.config)

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], _: int) -> None:
        """Score every view; keep the worst of each image."""
        views, counts, targets = batch
        logits = worst_view(self.model.logits(views).float(), counts)
        self.average_precision.update(self.model.scores(logits), targets.int())

    def on_validation_epoch_end(self) -> None:
        """Report macro AP of the early-stop split."""
        with warnings.catch_warnings():  # a label without positives in a small split counts as 0
            warnings.simplefilter("ignore")
            value = self.average_precision.compute()
        self.average_precision.reset()
        self.log("early_stop_ap", value.nan_to_num(0.0), prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """AdamW, lower rate for the backbone, no decay of vectors; warm-up, then a cosine."""
        config, groups = self.config, parameter_groups(self.model, self.config)
        if self.side_head is not None:
            groups.append({"params": list(self.side_head.parameters()), "lr": config.learning_rate})
        optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in groups],
            total_steps=steps + 1,
            pct_start=max(config.warmup_share, 1.5 / (steps + 1)),
            cycle_momentum=False,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def freeze(model: ModerationModel, config: TrainConfig) -> None:
    """Stop gradients of frozen parts; keep frozen normalisation and dropout in evaluation mode."""
    for name, parameter in model.body.named_parameters():
        parameter.requires_grad_(not name.startswith(config.freeze) if config.freeze else True)
    for name, module in model.body.named_modules():
        norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        frozen = bool(config.freeze) and f"{name}.".startswith(config.freeze)
        if frozen or (norm and config.freeze_norm):
            module.eval()
        if _is_depthwise(module) and config.freeze_depthwise:
            module.weight.requires_grad_(False)


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1


def parameter_groups(model: ModerationModel, config: TrainConfig) -> list[dict[str, Any]]:
    """Four groups: head and backbone, with and without weight decay."""
    freeze(model, config)
    groups: list[dict[str, Any]] = []
    for part, rate in ((model.head, 1.0), (model.body, config.backbone_rate)):
        trained = [parameter for parameter in part.parameters() if parameter.requires_grad]
        for decay in (True, False):
            chosen = [parameter for parameter in trained if (parameter.ndim > 1) == decay]
            extra = {} if decay else {"weight_decay": 0.0}
            if chosen:
                groups.append({"params": chosen, "lr": config.learning_rate * rate, **extra})
    return groups


def fit(classifier: Classifier, loaders: Loaders) -> bool:
    """Train, from the last finished epoch when the configuration says resume; true on the process that goes on.

    Raises TrainError when the disk is full or the loss no number, RunError for a checkpoint that does not fit.
    """
    config = classifier.config
    folder = config.run / CHECKPOINTS
    checkpoint = last_checkpoint(folder) if config.resume else None
    if checkpoint is not None and _finished(classifier, checkpoint):
        return True
    freeze(classifier.model, config)  # before DDP looks which parameters it must wait for
    trainer = make_trainer(config, validate=len(loaders.early_stop) > 0)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=EXPECTED)
            trainer.fit(classifier, datamodule=loaders, ckpt_path=checkpoint, weights_only=True)
    except (RuntimeError, KeyError) as error:
        if checkpoint is None or trainer.global_step:
            raise
        raise RunError(f"checkpoint {checkpoint} does not fit this configuration: {error}") from error
    except OSError as error:
        raise TrainError(f"training stopped: {error}; the last good checkpoint is in {folder}") from error
    if trainer.interrupted:
        raise TrainError(f"training was interrupted; go on with --resume (checkpoints in {folder})")
    return trainer.is_global_zero


def _finished(classifier: Classifier, checkpoint: Path) -> bool:
    """Take the weights of a checkpoint of the last epoch: averaged ones, where averaging is on. Lightning would not."""
    kept = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if kept["epoch"] + 1 < classifier.config.epochs:
        return False
    classifier.load_state_dict(kept["state_dict"])
    return True


def make_trainer(config: TrainConfig, *, validate: bool) -> lightning.Trainer:
    """Set Lightning up: checkpoints after every epoch, CSV and TensorBoard logs, averaging, early stopping."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logs = config.run / "logs"
    return lightning.Trainer(
        default_root_dir=config.run,
        max_epochs=config.epochs,
        accelerator=config.accelerator,
        devices=config.devices,
        strategy="ddp" if config.devices > 1 else "auto",
        precision=precision_of(config),  # type: ignore[arg-type]
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.clip_norm or None,
        callbacks=_callbacks(config, validate=validate),
        logger=[
            loggers.CSVLogger(logs, name="", version="csv"),
            loggers.TensorBoardLogger(str(logs), name="", version="tensorboard"),
        ],
        # Without early stopping nothing hangs on these figures: a few along the way are enough.
        check_val_every_n_epoch=1 if config.patience else max(1, config.epochs // 4),
        log_every_n_steps=10,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        use_distributed_sampler=False,
        deterministic="warn",
    )


def _callbacks(config: TrainConfig, *, validate: bool) -> list[callbacks.Callback]:
    chosen: list[callbacks.Callback] = [
        callbacks.ModelCheckpoint(
            dirpath=config.run / CHECKPOINTS,
            filename="epoch-{epoch:03d}",
            auto_insert_metric_name=False,
            save_on_train_epoch_end=True,  # after validation: a resumed run starts with a whole epoch behind it
        ),
        callbacks.TQDMProgressBar(refresh_rate=5),
    ]
    if config.ema_decay > 0.0:
        chosen.append(callbacks.EMAWeightAveraging(decay=config.ema_decay))
    if config.patience and validate:
        chosen.append(callbacks.EarlyStopping("early_stop_ap", mode="max", patience=config.patience))
    return chosen


def precision_of(config: TrainConfig) -> str:
    """Lightning's word for the arithmetic; `auto` takes bfloat16 only where it is not emulated."""
    if config.precision != "auto":
        return {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}[config.precision]
    if config.accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if fast else "32-true"


def last_checkpoint(folder: Path) -> Path | None:
    """Newest checkpoint that can be read; a kill while writing leaves one that cannot, and the one before it.

    Raises RunError when there are checkpoints and none can be read.
    """
    found = sorted(folder.glob("epoch-*.ckpt"), reverse=True)
    for path in found:
        try:
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            print(f"checkpoint {path} cannot be read ({error}): trying the one before")
        else:
            return path
    if found:
        raise RunError(f"no checkpoint in {folder} can be read; delete them to start again")
    return None
