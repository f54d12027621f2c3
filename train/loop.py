"""The training loop: a Lightning module, and the trainer that drives it with checkpoints, logs, averaging and resuming.

Every random choice of a step is drawn from a generator seeded by (seed, epoch, step, rank), so a run that was killed and resumed at
the last finished epoch sees what the unbroken run saw.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import callbacks, loggers
from torch import Tensor, nn
from torchmetrics.classification import MultilabelAveragePrecision

from train.augment import Augment
from train.checkpoints import BEST, CHECKPOINTS, is_first, is_over, last_checkpoint, load_weights
from train.config import TrainConfig
from train.errors import RunError, TrainError
from train.loaders import Loaders
from train.losses import Criterion, mix, side_loss
from train.model import ModerationModel
from train.pixels import worst_view
from train.sampling import Draw

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
        self.has_started = False
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
        if self.side_head is not None:
            loss = loss + self.config.side_weight * side_loss(self.side_head(features).float(), kinds)
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

    def on_train_start(self) -> None:
        """A checkpoint has been taken over by now; what fails from here on is no fault of its."""
        self.has_started = True

    def on_train_epoch_end(self) -> None:
        """Look at the weights of the last step, which no loss has been computed with."""
        check_finite(self.model, self.current_epoch)

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


def check_finite(module: nn.Module, epoch: int) -> None:
    """Raise TrainError when a weight became NaN or infinite, before such a checkpoint takes the place of a good one."""
    broken = [
        name
        for name, value in module.state_dict().items()
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    if broken:
        raise TrainError(
            f"{len(broken)} weights became no numbers in epoch {epoch} (first: {broken[0]}): lower learning_rate or train with "
            "--precision float32; the last good checkpoint is kept"
        )


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
    if checkpoint is None or not is_over(checkpoint, config.epochs):
        _run_trainer(classifier, loaders, checkpoint)
        checkpoint = None
    if config.patience and len(loaders.early_stop):
        checkpoint = last_checkpoint(folder / BEST) or checkpoint
    if checkpoint is not None:
        load_weights(classifier, checkpoint)
    return is_first()


def _run_trainer(classifier: Classifier, loaders: Loaders, checkpoint: Path | None) -> None:
    """Train to the end, and put what Lightning raises into our errors."""
    freeze(classifier.model, classifier.config)  # before DDP looks which parameters it must wait for
    trainer = make_trainer(classifier.config, validate=len(loaders.early_stop) > 0)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=EXPECTED)
            trainer.fit(classifier, datamodule=loaders, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as error:  # how Lightning ends after Ctrl-C
        if not trainer.interrupted:
            raise
        raise KeyboardInterrupt from error
    except (RuntimeError, KeyError, ValueError) as error:
        if checkpoint is None or classifier.has_started:
            raise
        raise RunError(f"checkpoint {checkpoint} does not fit this configuration: {error}") from error
    except OSError as error:
        folder = classifier.config.run / CHECKPOINTS
        raise TrainError(f"training stopped: {error}; the last good checkpoint is in {folder}") from error


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
        _keep(config.run / CHECKPOINTS, "epoch", 2),  # the one before is there should the last be broken
        callbacks.TQDMProgressBar(refresh_rate=5),
    ]
    if config.ema_decay > 0.0:
        chosen.append(callbacks.EMAWeightAveraging(decay=config.ema_decay))
    if config.patience and validate:
        chosen.append(callbacks.EarlyStopping("early_stop_ap", mode="max", patience=config.patience))
        # Before the others, so that the checkpoint to go on from knows which epoch was best.
        chosen.insert(0, _keep(config.run / CHECKPOINTS / BEST, "early_stop_ap", 1))
    return chosen


def _keep(folder: Path, monitor: str, num: int) -> callbacks.ModelCheckpoint:
    """Checkpoints with the largest figures, written when an epoch is over: a resumed run starts with whole ones behind it."""
    return callbacks.ModelCheckpoint(
        dirpath=folder,
        filename="epoch-{epoch:03d}",
        monitor=monitor,
        mode="max",
        save_top_k=num,
        auto_insert_metric_name=False,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )


def precision_of(config: TrainConfig) -> str:
    """Lightning's word for the arithmetic; `auto` takes bfloat16 only where it is not emulated."""
    if config.precision != "auto":
        return {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}[config.precision]
    if config.accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if fast else "32-true"
