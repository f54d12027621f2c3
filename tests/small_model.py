"""A real but tiny moderation model whose scores follow from a picture's colours, and a repository that holds it.

The score of a label is the sigmoid of how far the mean of its colour channel is from the middle, so that a test can say
what a picture must score: `expected_scores`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf import text_format
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import model_config_pb2 as pb

from moderation_client.contract import (
    ENCODED_INPUT,
    ENCODED_MODEL_NAME,
    IMAGE_INPUT,
    MODEL_NAME,
    SCORES_OUTPUT,
    VERDICT_OUTPUT,
    ImageSpec,
    ModelSpec,
    policy_parameter,
    spec_parameter,
)
from moderation_client.policy import Policy, Threshold

LABELS = ("weapon", "substance", "gambling")
"""Scored by how red, green and blue a picture is."""
SIZE = 32
"""Rows and columns of the model's input."""
STEEPNESS = 8.0


def expected_scores(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Scores of RGB pictures [..., H, W, 3] -> [..., 3]."""
    means = pixels.astype(np.float64).mean(axis=(-3, -2)) / 255.0
    return np.asarray(1.0 / (1.0 + np.exp(-STEEPNESS * (means - 0.5))))


def build_onnx(path: Path, *, size: int = SIZE, steepness: float = STEEPNESS) -> Path:
    """Write the model: `image` uint8 [N, size, size, 3] in, `scores` float32 [N, 3] out."""
    constants: dict[str, NDArray[Any]] = {
        "axes": np.array([1, 2], dtype=np.int64),
        "scale": np.array(steepness / 255.0, dtype=np.float32),
        "shift": np.array(-0.5 * steepness, dtype=np.float32),
    }
    nodes = [
        helper.make_node("Cast", [IMAGE_INPUT], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], [SCORES_OUTPUT]),
    ]
    graph = helper.make_graph(
        nodes,
        "small_moderation",
        [helper.make_tensor_value_info(IMAGE_INPUT, TensorProto.UINT8, ["N", size, size, 3])],
        [helper.make_tensor_value_info(SCORES_OUTPUT, TensorProto.FLOAT, ["N", len(LABELS)])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def small_spec(*, version: int = 1, size: int = SIZE) -> ModelSpec:
    """Spec of the model."""
    return ModelSpec(
        labels=LABELS,
        image=ImageSpec(height=size, width=size),
        version=version,
        description="a test model that scores colours",
    )


def small_policy() -> Policy:
    """Policy of the model: review at 0.5, block at 0.9."""
    return Policy(
        labels=LABELS, thresholds={label: Threshold(review=0.5, block=0.9) for label in LABELS}, name="small"
    )


def small_config(*, max_batch_size: int = 8, num_instances: int = 2, max_queue_delay_us: int = 500) -> Any:
    """Triton configuration (`ModelConfig` message) with batching, queue limits and warm-up, as the export writes it."""
    config = pb.ModelConfig(name=MODEL_NAME, backend="onnxruntime", max_batch_size=max_batch_size)
    config.default_model_filename = "model.onnx"
    config.input.add(name=IMAGE_INPUT, data_type=pb.TYPE_UINT8, dims=[SIZE, SIZE, 3])
    config.output.add(name=SCORES_OUTPUT, data_type=pb.TYPE_FP32, dims=[len(LABELS)])
    config.instance_group.add(count=num_instances, kind=pb.ModelInstanceGroup.KIND_CPU)
    config.dynamic_batching.max_queue_delay_microseconds = max_queue_delay_us
    queue = config.dynamic_batching.default_queue_policy
    queue.max_queue_size = 256
    queue.default_timeout_microseconds = 5_000_000
    queue.allow_timeout_override = True
    config.parameters["intra_op_thread_count"].string_value = "1"
    config.parameters["inter_op_thread_count"].string_value = "1"
    for batch_size in (1, max_batch_size):
        warmup = config.model_warmup.add(name=f"batch_{batch_size}", batch_size=batch_size)
        warmup.inputs[IMAGE_INPUT].CopyFrom(
            pb.ModelWarmup.Input(data_type=pb.TYPE_UINT8, dims=[SIZE, SIZE, 3], zero_data=True)
        )
    return config


def encoded_config(*, num_instances: int = 2, max_queue_size: int = 256) -> Any:
    """Triton configuration of `moderation_encoded`, as the export writes it."""
    config = pb.ModelConfig(name=ENCODED_MODEL_NAME, backend="moderation_encoded", max_batch_size=8)
    config.input.add(name=ENCODED_INPUT, data_type=pb.TYPE_STRING, dims=[1])
    config.output.add(name=SCORES_OUTPUT, data_type=pb.TYPE_FP32, dims=[-1])
    config.output.add(name=VERDICT_OUTPUT, data_type=pb.TYPE_STRING, dims=[1])
    config.instance_group.add(count=num_instances, kind=pb.ModelInstanceGroup.KIND_CPU)
    queue = config.dynamic_batching.default_queue_policy
    queue.max_queue_size = max_queue_size
    return config


def add_version(repository: Path, version: int, *, steepness: float = STEEPNESS) -> Path:
    """Write version `version` of the model with its manifest and spec; the version's folder."""
    folder = repository / MODEL_NAME / str(version)
    model: Path = build_onnx(folder / "model.onnx", steepness=steepness)
    spec = folder / "spec.json"
    spec.write_text(small_spec(version=version).to_json(), encoding="utf-8")
    files = {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in (model, spec)}
    (folder / "manifest.json").write_text(json.dumps({"files": files}), encoding="utf-8")
    return folder


def write_config(repository: Path, config: Any, *, versions: tuple[int, ...] = (1,)) -> Path:
    """Write a model's config.pbtxt with the spec and policy of each version in its parameters."""
    for version in versions:
        config.parameters[spec_parameter(version)].string_value = small_spec(version=version).to_json()
        config.parameters[policy_parameter(version)].string_value = small_policy().to_json()
    path = Path(repository, str(config.name), "config.pbtxt")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text_format.MessageToString(config), encoding="utf-8")
    return path


def build_repository(repository: Path, *, config: Any | None = None, encoded: Any | None = None) -> Path:
    """Write a whole repository with version 1 of the model and `moderation_encoded`; its path."""
    add_version(repository, 1)
    write_config(repository, config if config is not None else small_config())
    write_config(repository, encoded if encoded is not None else encoded_config())
    (repository / ENCODED_MODEL_NAME / "1").mkdir()
    return repository
