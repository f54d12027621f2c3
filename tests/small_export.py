"""A tiny but real network as something to export, in seconds: two convolutions, a head, and images of coloured shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.publish import PublishConfig
from export.session import open_session, run
from export.source import Images, Pixels, Source, Split
from export.variants import VariantConfig
from moderation_client.contract import IMAGE_INPUT, SCORES_OUTPUT, ImageSpec, ModelSpec
from moderation_client.policy import Policy, Threshold

LABELS = ("circle", "star")
SIZE = 32


def small_graph(*, seed: int = 0, size: int = SIZE, labels: tuple[str, ...] = LABELS) -> onnx.ModelProto:
    """Build the network with random weights: `image` uint8 [N, size, size, 3] -> `scores` float32 [N, num_labels]."""
    rng = np.random.default_rng(seed)

    def weight(*shape: int) -> NDArray[np.float32]:
        return np.asarray(rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:])), np.float32)

    constants = {
        "middle": np.array(127.0, np.float32),
        "spread": np.array(128.0, np.float32),
        "w1": weight(8, 3, 3, 3) * 3,
        "b1": weight(8),
        "w2": weight(16, 8, 3, 3) * 3,
        "b2": weight(16),
        "w3": weight(16, len(labels)) * 12,
        "b3": np.zeros(len(labels), np.float32),
    }
    nodes = [
        helper.make_node("Cast", [IMAGE_INPUT], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["float", "middle"], ["centred"]),
        helper.make_node("Div", ["centred", "spread"], ["normal"]),
        helper.make_node("Transpose", ["normal"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "w1", "b1"], ["c1"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "w3", "b3"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], [SCORES_OUTPUT]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(IMAGE_INPUT, TensorProto.UINT8, ["N", size, size, 3])],
        [helper.make_tensor_value_info(SCORES_OUTPUT, TensorProto.FLOAT, ["N", len(labels)])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def pictures(num: int, *, size: int = SIZE, seed: int = 0) -> Pixels:
    """Draw smooth random colour fields, uint8 [num, size, size, 3]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (num, 4, 4, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(size // 4, axis=1).repeat(size // 4, axis=2))


def small_split(num: int, *, seed: int, size: int = SIZE, labels: tuple[str, ...] = LABELS) -> Split:
    """Make labelled pictures, every second with two views."""
    num_views = np.array([1 + index % 2 for index in range(num)])
    rng = np.random.default_rng(seed)
    return Split(
        pixels=pictures(int(num_views.sum()), size=size, seed=seed),
        owners=np.repeat(np.arange(num), num_views),
        names=tuple(f"picture-{index}.png" for index in range(num)),
        targets=rng.random((num, len(labels))) < 0.3,
    )


def small_source(
    folder: Path, *, seed: int = 0, size: int = SIZE, labels: tuple[str, ...] = LABELS, name: str = "small"
) -> Source:
    """Make a source whose reference is the graph itself, run by ONNX Runtime."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"reference-{seed}.onnx"
    onnx.save(small_graph(seed=seed, size=size, labels=labels), file)
    opened = open_session(file, threads=1)
    thresholds = {label: Threshold(review=0.4, block=0.8) for label in labels}
    return Source(
        name=name,
        spec=ModelSpec(labels=labels, image=ImageSpec(height=size, width=size), description="for tests"),
        policy=Policy(labels=labels, thresholds=thresholds),
        reference=lambda pixels: run(opened, pixels, batch=16),
        reference_name="ONNX Runtime",
        graph=lambda _folder: small_graph(seed=seed, size=size, labels=labels),
        images=Images(
            calibration=pictures(24, size=size, seed=seed + 1),
            selection=small_split(16, seed=seed + 2, size=size, labels=labels),
            test=small_split(24, seed=seed + 3, size=size, labels=labels),
        ),
    )


def quick_config(repository: Path, **changes: object) -> PublishConfig:
    """Publish FP32 alone, proved in process: a second, not ten."""
    settings = {
        "repository": repository,
        "probe": "in_process",
        "report": repository.parent / "report",
        "variants": VariantConfig(variants=("fp32",), max_batch_size=8),
        **changes,
    }
    return PublishConfig(**settings)  # type: ignore[arg-type]
