"""The network that is served: uint8 pixels in, calibrated probabilities out, everything between inside one module.

Also how it is kept: a run directory with `model.safetensors`, `spec.json`, `policy.json` and `training.json`, read by `load_run`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from moderation_client import ContractError, PolicyError
from moderation_client.contract import ModelSpec, Task
from moderation_client.policy import Policy
from train.backbones import Backbone, build_backbone
from train.errors import RunError
from train.files import write_tensors, write_text

RECORD_SCHEMA_VERSION = 1
MODEL_FILE = "model.safetensors"


class ModerationModel(nn.Module):
    """Normalisation, backbone, head, calibration and activation in one graph."""

    mean: Tensor
    std: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, backbone: Backbone, *, num_labels: int, task: Task = "multilabel") -> None:
        super().__init__()
        self.body = backbone.body
        self.head = nn.Linear(backbone.num_features, num_labels)
        self.task = task
        self.register_buffer("mean", torch.tensor(backbone.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(backbone.std).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.ones(num_labels))
        self.register_buffer("bias", torch.zeros(num_labels))

    def normalise(self, image: Tensor) -> Tensor:
        """Pixels [N, H, W, 3], uint8 or float 0..255 -> float32 [N, 3, H, W] as the backbone was trained on."""
        return (image.permute(0, 3, 1, 2).to(self.mean.dtype) - self.mean) / self.std

    def features(self, image: Tensor) -> Tensor:
        """Pixels [N, H, W, 3] -> what the head sees, float [N, num_features]."""
        features: Tensor = self.body(self.normalise(image))
        return features

    def logits(self, image: Tensor) -> Tensor:
        """Pixels [N, H, W, 3] -> logits before calibration, float [N, num_labels]."""
        logits: Tensor = self.head(self.features(image))
        return logits

    def scores(self, logits: Tensor) -> Tensor:
        """Calibrate logits [..., num_labels] and turn them into probabilities."""
        calibrated = logits.float() * self.scale + self.bias
        return calibrated.sigmoid() if self.task == "multilabel" else calibrated.softmax(-1)

    def forward(self, image: Tensor) -> Tensor:
        """Pixels uint8 [N, H, W, 3] RGB -> calibrated probabilities float32 [N, num_labels]."""
        return self.scores(self.logits(image))


@dataclass(frozen=True, kw_only=True)
class LoadedRun:
    """What a run directory holds."""

    path: Path
    model: ModerationModel
    """In evaluation mode, on the CPU, float32."""
    spec: ModelSpec
    policy: Policy
    record: dict[str, Any]
    """training.json: backbone, configuration, calibration, data, seed, versions."""


def save_run(
    run: Path, *, model: ModerationModel, spec: ModelSpec, policy: Policy, record: dict[str, Any]
) -> None:
    """Write the four files that make a run loadable. `record` needs the key `backbone`.

    training.json comes last and names the weights, so that a kill between two files leaves a run that `load_run` refuses, never new
    weights under an old policy. Raises RunError when a file cannot be written.
    """
    run.mkdir(parents=True, exist_ok=True)
    write_tensors(run / MODEL_FILE, model.state_dict())
    record = {"schema_version": RECORD_SCHEMA_VERSION, "task": model.task, **record}
    record["weights_sha256"] = hashlib.sha256((run / MODEL_FILE).read_bytes()).hexdigest()
    write_text(run / "spec.json", spec.to_json() + "\n")
    write_text(run / "policy.json", policy.to_json(indent=1) + "\n")
    write_text(run / "training.json", json.dumps(record, indent=1, default=str) + "\n")


def load_run(run: Path) -> LoadedRun:
    """Read a run directory. Raises RunError that names the file which is missing or does not fit."""
    run = Path(run)
    record = _read_record(run)
    try:
        spec = ModelSpec.from_json((run / "spec.json").read_bytes())
        policy = Policy.load(run / "policy.json")
        policy.check_labels(spec.labels)
        content = (run / MODEL_FILE).read_bytes()
        tensors = load_tensors(content)
    except (OSError, ContractError, PolicyError, safetensors.SafetensorError) as error:
        raise RunError(f"run {run} cannot be read: {error}") from error
    _check_weights(run, content, record)
    backbone = build_backbone(record["backbone"], image_size=spec.image.height)
    model = ModerationModel(backbone, num_labels=len(spec.labels), task=spec.task)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise RunError(f"{run / MODEL_FILE} does not fit {record['backbone']}: {error}") from error
    return LoadedRun(path=run, model=model.eval(), spec=spec, policy=policy, record=record)


def _check_weights(run: Path, content: bytes, record: dict[str, Any]) -> None:
    """Raise RunError when training.json was written for other weights; runs from before it named them are taken as they are."""
    expected = record.get("weights_sha256")
    if expected and hashlib.sha256(content).hexdigest() != expected:
        raise RunError(
            f"{run / MODEL_FILE} is not the file that training.json was written for: writing the run was interrupted, or a file "
            "was exchanged; finish it with --resume, or train again"
        )


def _read_record(run: Path) -> dict[str, Any]:
    path = run / "training.json"
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise RunError(
            f"{run} is not a run directory: it has no training.json; train one: python -m train"
        ) from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    if record.get("schema_version") != RECORD_SCHEMA_VERSION or "backbone" not in record:
        raise RunError(f"{path} is not a training record of version {RECORD_SCHEMA_VERSION}")
    return record
