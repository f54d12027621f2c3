"""Several processes: the same model as one, within what floating point and differently grouped batches give."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.small_run import small_manifest

ROOT = Path(__file__).parent.parent
# No dropout and no batch statistics, so that a batch may be cut in two without changing what is learnt.
SETTINGS = (
    "--backbone", "resnet18", "--weights", "none", "--freeze-norm", "--image-size", "32", "--probe-epochs", "0",
    "--epochs", "2", "--learning-rate", "3e-4", "--backbone-rate", "1", "--precision", "float32", "--accelerator", "cpu",
    "--label-smoothing", "0", "--seed", "5", "--no-check",
)  # fmt: skip


def train(runs: Path, manifest: Path, name: str, *more: str) -> dict[str, torch.Tensor]:
    """Train by the command line; the weights."""
    command = [sys.executable, "-m", "train", "--name", name, "--runs", str(runs), "--data", str(manifest)]
    done = subprocess.run(
        [*command, *SETTINGS, *more],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(runs / name / "model.safetensors")


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """DDP with gloo, half the batch each: weights and figures are those of one process with the whole batch."""
    manifest = small_manifest(tmp_path / "data", num_groups=40, side=32)
    one = train(tmp_path, manifest, "one", "--batch-size", "8")
    two = train(tmp_path, manifest, "two", "--batch-size", "4", "--devices", "2")
    moved = 0.0
    for key, value in one.items():
        if key.endswith("weight"):
            torch.testing.assert_close(two[key], value, rtol=0.05, atol=5e-3)
            moved = max(moved, float(value.std()))
    assert moved > 0.0
    figures = [
        json.loads((tmp_path / name / "metrics.json").read_text())["splits"]["test"]
        for name in ("one", "two")
    ]
    assert figures[1]["auroc"]["value"] == pytest.approx(figures[0]["auroc"]["value"], abs=0.1)
