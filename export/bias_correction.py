"""Takes out the systematic part of INT8's error: every layer's mean output, channel by channel, is moved back to FP32's.

Rounded weights times inputs that are never negative shift a channel's mean, and in narrow networks (depthwise layers) that shift
is most of the error. Method: empirical bias correction, Nagel et al., "Data-Free Quantization Through Weight Equalization and
Bias Correction" (2019), section 4.2 and appendix D. Each layer's shift is measured on calibration images with the FP32
network's own inputs, rounded as the INT8 graph rounds them, so that one pass measures all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export import session
from export.source import Pixels
from moderation_client.contract import IMAGE_INPUT

Means = dict[str, NDArray[np.float64]]
"""Layer name -> one value for each output channel, float64 [num_channels]."""


@dataclass(frozen=True, kw_only=True)
class RoundedLayer:
    """What the INT8 graph makes of one convolution."""

    scale: NDArray[np.float32]
    zero_point: NDArray[np.uint8]
    """Of its input."""
    weight: NDArray[np.float32]
    """Rounded weights as floats."""


def correct_biases(
    prepared: Path, quantized: Path, corrected: Path, pixels: Pixels, *, weights_of: Path
) -> None:
    """Write to `corrected` the graph `weights_of` with biases that undo the mean error of `quantized`.

    `prepared` is the FP32 graph that the error is measured against; `weights_of` is the same one or one with
    weights moved onto their grid.
    """
    rounded = rounded_layers(onnx.load(quantized))
    shifts = mean_shifts(onnx.load(prepared), rounded, pixels, corrected)
    model = onnx.load(weights_of)
    weights = {each.name: each for each in model.graph.initializer}
    for node in model.graph.node:
        if node.name in shifts:
            _subtract(model, node, weights, shifts[node.name])
    onnx.save(model, corrected)


def rounded_layers(quantized: onnx.ModelProto) -> dict[str, RoundedLayer]:
    """Find the convolutions that the quantizer rounded; name -> what became of it."""
    producers = {output: node for node in quantized.graph.node for output in node.output}
    values = {each.name: each for each in quantized.graph.initializer}

    def constants(tensor: str) -> list[NDArray[Any]] | None:
        node = producers.get(tensor)
        if node is None or node.op_type != "DequantizeLinear":
            return None
        return [numpy_helper.to_array(values[name]) for name in node.input if name in values]

    found = {}
    for node in quantized.graph.node:
        if node.op_type != "Conv":
            continue
        activation, weight = constants(node.input[0]), constants(node.input[1])
        if activation and weight and len(activation) == 2 and len(weight) == 3:
            whole, scale, zero = weight
            shape = (-1, *[1] * (whole.ndim - 1))
            floats = (whole.astype(np.float32) - zero.reshape(shape).astype(np.float32)) * scale.reshape(
                shape
            )
            found[node.name] = RoundedLayer(scale=activation[0], zero_point=activation[1], weight=floats)
    return found


def mean_shifts(
    prepared: onnx.ModelProto,
    rounded: dict[str, RoundedLayer],
    pixels: Pixels,
    scratch: Path,
    *,
    batch: int = 4,
) -> Means:
    """Run the images through FP32 with a rounded copy of every layer beside it; mean(rounded) - mean(FP32)."""
    if not rounded:
        return {}
    model = onnx.ModelProto.FromString(prepared.SerializeToString())
    outputs = _add_rounded_copies(model, rounded)
    onnx.save(model, scratch)
    opened = session.open_session(scratch)
    total: Means = {}
    for start in range(0, len(pixels), batch):
        part = np.ascontiguousarray(pixels[start : start + batch])
        found = opened.run(list(outputs.values()), {IMAGE_INPUT: part})
        for name, value in zip(outputs, found, strict=True):
            total[name] = total.get(name, 0.0) + value.astype(np.float64).sum(axis=(0, 2, 3))
    return {name: value / len(pixels) for name, value in total.items()}


def _add_rounded_copies(model: onnx.ModelProto, rounded: dict[str, RoundedLayer]) -> dict[str, str]:
    graph = model.graph
    outputs = {}
    for node in [each for each in graph.node if each.name in rounded]:
        layer, base = rounded[node.name], f"{node.name}/rounded"
        for name, value in (("scale", layer.scale), ("zero", layer.zero_point), ("weight", layer.weight)):
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), f"{base}/{name}"))
        grid = [f"{base}/scale", f"{base}/zero"]
        graph.node.append(helper.make_node("QuantizeLinear", [node.input[0], *grid], [f"{base}/q"]))
        graph.node.append(helper.make_node("DequantizeLinear", [f"{base}/q", *grid], [f"{base}/x"]))
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        copy.name = base
        copy.input[0], copy.input[1], copy.output[0] = f"{base}/x", f"{base}/weight", f"{base}/y"
        graph.node.append(copy)
        graph.node.append(helper.make_node("Sub", [f"{base}/y", node.output[0]], [f"{base}/difference"]))
        mean = f"{base}/mean"
        graph.node.append(helper.make_node("GlobalAveragePool", [f"{base}/difference"], [mean]))
        graph.output.append(helper.make_tensor_value_info(mean, TensorProto.FLOAT, None))
        outputs[node.name] = mean
    return outputs


def _subtract(
    model: onnx.ModelProto,
    node: onnx.NodeProto,
    weights: dict[str, onnx.TensorProto],
    shift: Sequence[float] | NDArray[np.float64],
) -> None:
    """Give the node a bias of its own that is lower by `shift`, in place."""
    old: Any = numpy_helper.to_array(weights[node.input[2]]) if len(node.input) > 2 else 0.0
    name = f"{node.name}/bias"
    model.graph.initializer.append(
        numpy_helper.from_array(np.asarray(old - np.asarray(shift), np.float32), name)
    )
    del node.input[2:]
    node.input.append(name)
