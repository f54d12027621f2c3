"""What a killed run goes on from: which checkpoint can be read, whether it is of this configuration, and whether training was over.

Checkpoints are Lightning's; they are only ever read with `weights_only=True`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from train.config import TrainConfig
from train.data import Example
from train.errors import RunError
from train.files import write_text

CHECKPOINTS = "checkpoints"
BEST = "best"
"""Folder within it: the checkpoint with the best figure, kept where training may stop early."""
FINGERPRINT_FILE = "fingerprint.json"
FREE = frozenset(
    "preset data runs name resume check description cache_gb num_workers devices accelerator average targets slices scratch_result".split()
)
"""Fields that may differ when a run goes on: they say where things lie, or what is done after the training."""


def is_first() -> bool:
    """Whether this process is the one of several that writes."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0  # an attribute that Lightning sets on the function


def fingerprint(config: TrainConfig, labels: Sequence[str], examples: Sequence[Example]) -> dict[str, Any]:
    """Everything that training depends on, JSON-ready: configuration, labels, and a hash of what it learns from."""
    rows = [
        (each.path.name, each.labels, each.group, each.split, each.weight)
        for each in examples
        if each.split in {"train", "early_stop"}
    ]
    found = {
        **{key: value for key, value in dataclasses.asdict(config).items() if key not in FREE},
        "labels": labels,
        "data": hashlib.sha256(repr(rows).encode()).hexdigest(),
    }
    kept: dict[str, Any] = json.loads(json.dumps(found, default=str))
    return kept


def remember(folder: Path, found: Mapping[str, Any]) -> None:
    """Write the fingerprint beside the checkpoints, and delete those of an earlier run of this name."""
    for old in [*folder.glob("epoch-*.ckpt"), *(folder / BEST).glob("*.ckpt")]:
        old.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / FINGERPRINT_FILE, json.dumps(found, indent=1) + "\n")


def check_same(folder: Path, now: Mapping[str, Any]) -> None:
    """Raise RunError that names the fields in which the checkpoints differ from now; older ones without a fingerprint pass."""
    try:
        then = json.loads((folder / FINGERPRINT_FILE).read_bytes())
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise RunError(f"{folder / FINGERPRINT_FILE} cannot be read: {error}") from error
    differing = [
        f"{key} ({then.get(key)!r} then, {now.get(key)!r} now)"
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key)
    ]
    if differing:
        raise RunError(
            f"the checkpoints in {folder} are of another run: {', '.join(differing)}; "
            "resume with the options and data of then, or train anew without --resume"
        )


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


def is_over(checkpoint: Path, epochs: int) -> bool:
    """Whether nothing is left to train: the last epoch is behind it, or early stopping had decided."""
    kept = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    stopped = [
        state["wait_count"] >= state["patience"]
        for key, state in kept.get("callbacks", {}).items()
        if key.startswith("EarlyStopping")
    ]
    return kept["epoch"] + 1 >= epochs or any(stopped)


def load_weights(module: nn.Module, checkpoint: Path) -> None:
    """Take a checkpoint's weights: averaged ones, where averaging is on. Raises RunError when they do not fit."""
    try:
        module.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])
    except (RuntimeError, KeyError) as error:
        raise RunError(f"checkpoint {checkpoint} does not fit this configuration: {error}") from error
