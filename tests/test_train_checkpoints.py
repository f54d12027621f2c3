"""What a run goes on from: the configuration it was of, whether it was over, and weights that are numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from train.checkpoints import check_same, fingerprint, is_over, load_weights, remember
from train.config import TrainConfig
from train.data import Example
from train.errors import RunError, TrainError
from train.loop import check_finite
from train.losses import side_loss

ROW = Example(path=Path("a.png"), labels=("star",), group="a", split="train")


def test_other_configuration_is_named(tmp_path: Path) -> None:
    """A field that matters, and data that changed, are named; where things lie does not matter; old runs pass."""
    config = TrainConfig(data=tmp_path / "m.csv")
    now = fingerprint(config, ("star",), [ROW])
    check_same(tmp_path / "old", now)
    remember(tmp_path / "c", now)
    moved = replace(config, runs=tmp_path, resume=True, num_workers=2)
    check_same(tmp_path / "c", fingerprint(moved, ("star",), [ROW]))
    other = fingerprint(replace(config, learning_rate=0.5), ("star",), [replace(ROW, group="b")])
    with pytest.raises(RunError, match=r"another run: data \(.*, learning_rate \(0\.001 then, 0\.5 now\)"):
        check_same(tmp_path / "c", other)


@pytest.mark.parametrize(("epoch", "waited", "over"), [(0, 0, False), (0, 2, True), (4, 0, True)])
def test_run_is_over_after_its_last_epoch_or_early_stopping(
    tmp_path: Path, epoch: int, waited: int, over: bool
) -> None:
    """What early stopping counted stands in the checkpoint."""
    state: dict[str, Any] = {
        "epoch": epoch,
        "callbacks": {"EarlyStopping{}": {"wait_count": waited, "patience": 2}},
    }
    torch.save(state, tmp_path / "epoch.ckpt")
    assert is_over(tmp_path / "epoch.ckpt", 5) is over


def test_weights_that_do_not_fit_or_are_no_numbers_are_refused(tmp_path: Path) -> None:
    """Both are errors of ours, with the name of the file or of the weight."""
    torch.save({"state_dict": nn.Linear(2, 3).state_dict()}, tmp_path / "a.ckpt")
    layer = nn.Linear(2, 2)
    with pytest.raises(RunError, match=r"a\.ckpt does not fit"):
        load_weights(layer, tmp_path / "a.ckpt")
    check_finite(layer, 0)
    nn.init.constant_(layer.bias, float("nan"))
    with pytest.raises(TrainError, match="1 weights became no numbers in epoch 3"):
        check_finite(layer, 3)


def test_side_task_without_known_kinds_still_gives_a_gradient() -> None:
    """Every process must have one for each weight, or DDP waits for ever."""
    scores = torch.ones(2, 3, requires_grad=True)
    side_loss(scores, torch.tensor([-100, -100])).backward()  # type: ignore[no-untyped-call]
    assert scores.grad is not None
    assert float(scores.grad.abs().sum()) == 0.0
    assert float(side_loss(scores.detach(), torch.tensor([1, -100]))) > 0.0
