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
# No dropout and no batch statistics, so that a batch may be cut in two without changing what is learnt. Small steps: with 3e-4 the
# weights were 7 % apart on one processor, with these a hundred-thousandth.
SETTINGS = (
    "--backbone", "resnet18", "--weights", "none", "--freeze-norm", "--image-size", "32", "--probe-epochs", "0",
    "--epochs", "2", "--learning-rate", "1e-4", "--backbone-rate", "1", "--precision", "float32", "--accelerator", "cpu",
    "--label-smoothing", "0", "--seed", "5", "--no-check",
)  # fmt: skip

# Grain, and a neighbour in the batch as background, are drawn within each process: as likely, but not the same. They are left out.
COMPARABLE = """
import sys
from train import augment
from train.__main__ import main
augment.Augment._degrade = lambda self, image, plain, draw: image
augment._backgrounds = lambda colour, opacity, plain, draw: 255.0 * draw.uniform(len(colour), 3, 1, 1).expand_as(colour)
if __name__ == "__main__":
    sys.exit(main())
"""


def train(runs: Path, manifest: Path, name: str, *more: str) -> dict[str, torch.Tensor]:
    """Train by the command line; the weights."""
    (runs / "train_comparable.py").write_text(COMPARABLE)
    script = str(runs / "train_comparable.py")
    command = [sys.executable, script, "--name", name, "--runs", str(runs), "--data", str(manifest)]
    done = subprocess.run(
        [*command, *SETTINGS, *more],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(runs / name / "model.safetensors")


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """DDP with gloo, half the batch each: weights and figures are those of one process with the whole batch."""
    manifest = small_manifest(tmp_path / "data", num_groups=40, side=32)
    one = train(tmp_path, manifest, "one", "--batch-size", "8")
    two = train(tmp_path, manifest, "two", "--batch-size", "4", "--devices", "2")
    start = load_file(tmp_path / "one" / "checkpoints" / "start.safetensors")
    weights = [key for key in start if key.endswith("weight")]
    moved = torch.cat([(one[key] - start[key]).flatten() for key in weights])
    apart = torch.cat([(two[key] - one[key]).flatten() for key in weights])
    assert float(moved.norm()) > 0.01
    assert float(apart.norm()) < 0.005 * float(moved.norm())
    figures = [
        json.loads((tmp_path / name / "metrics.json").read_text())["splits"]["test"]
        for name in ("one", "two")
    ]
    assert figures[1]["auroc"]["value"] == pytest.approx(figures[0]["auroc"]["value"], abs=0.1)
