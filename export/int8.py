"""Static INT8 by ONNX Runtime's own quantizer: QDQ, uint8 activations, per-channel int8 weights, settings chosen by measurement.

What stays in float whatever is measured: the arithmetic before the first layer (normalisation) and from the head on (logits,
calibration, activation), which costs nothing and decides everything. Which calibration method is used, and which of the
sensitive layers stay in float as well, is decided by how well decisions agree on held-out selection images.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from export.bias_correction import correct_biases
from export.source import Pixels
from export.weight_rounding import round_weights
from moderation_client.contract import IMAGE_INPUT

Method = Literal["minmax", "percentile", "entropy"]
NUM_CORRECTION_IMAGES = 32
FLOAT_PREFIX = "float/"
"""Nodes whose names begin with this prepare pixels and stay in float, whatever they are."""
LAYERS = ("Conv", "Gemm", "MatMul")
"""Operators with weights: what INT8 is for."""
QUANTIZED_OPS = (*LAYERS, "Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool", "MaxPool", "Relu")
"""Those, and what stands between them, so that tensors stay INT8 from layer to layer."""
MAX_HISTOGRAM_BYTES = 1 << 30
"""Histogram methods hold every activation of every image at once: they get as many images as fit here."""


@dataclass(frozen=True, kw_only=True)
class Int8Settings:
    """How one INT8 graph is made."""

    method: Method = "minmax"
    """How a tensor's range follows from the calibration images."""
    float_nodes: tuple[str, ...] = ()
    """Names of nodes that stay in float, besides normalisation and head: whole segments, layer and what follows it."""
    corrected: bool = True
    """Whether weights are rounded for the layer's output, and its mean output moved back to FP32's."""


class ImageReader(CalibrationDataReader):  # type: ignore[misc]
    """Feeds images one at a time."""

    def __init__(self, pixels: Pixels) -> None:
        self._batches = iter([pixels[index : index + 1] for index in range(len(pixels))])

    def get_next(self) -> dict[str, Pixels] | None:
        """Give the next image as the graph's input, None after the last one."""
        batch = next(self._batches, None)
        return None if batch is None else {IMAGE_INPUT: np.ascontiguousarray(batch)}


class Quantizer:
    """Makes INT8 graphs of one FP32 graph; ranges are computed once per method and kept in `folder`."""

    def __init__(self, fp32: Path, calibration: Pixels, folder: Path) -> None:
        """Prepare the graph: ONNX Runtime's shape inference and constant folding, a name for every node."""
        self._folder = folder
        self._calibration = calibration
        self.prepared = prepare(fp32, folder / "prepared.onnx")
        model = onnx.load(self.prepared)
        self._rounded: Path | None = None
        self.layers = tuple(node.name for node in model.graph.node if node.op_type in LAYERS)
        self.always_float = always_float(model)
        self.segments = segments(model, self.always_float)

    def write(self, path: Path, settings: Int8Settings) -> None:
        """Quantize into `path`."""
        if not settings.corrected:
            self._quantize(self.prepared, path, settings)
            return
        images = self._calibration[:NUM_CORRECTION_IMAGES]
        if self._rounded is None:
            self._rounded = self._folder / "rounded.onnx"
            round_weights(self.prepared, self._rounded, set(self.layers) - set(self.always_float), images)
        base, corrected = self._folder / "base.onnx", self._folder / "corrected.onnx"
        _take_weights(self._rounded, self.prepared, base, set(settings.float_nodes))
        self._quantize(base, path, settings)
        correct_biases(self.prepared, path, corrected, images, weights_of=base)
        self._quantize(corrected, path, settings)

    def _quantize(self, graph: Path, path: Path, settings: Int8Settings) -> None:
        with quiet():
            quantize_static(
                str(graph),
                str(path),
                ImageReader(self._images_for(settings.method)),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTIZED_OPS),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=[*self.always_float, *settings.float_nodes],
                calibrate_method=CalibrationMethod[_METHOD_NAMES[settings.method]],
                extra_options=_EXTRA_OPTIONS,
                calibration_cache_path=self._folder / f"ranges_{settings.method}.json",
            )

    def _images_for(self, method: Method) -> Pixels:
        if method == "minmax":
            return self._calibration
        return self._calibration[: max(8, MAX_HISTOGRAM_BYTES // activation_bytes(self.prepared))]


_METHOD_NAMES = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
_EXTRA_OPTIONS: dict[str, Any] = {
    "ActivationSymmetric": False,
    "WeightSymmetric": True,
    "CalibPercentile": 99.999,
}


def prepare(fp32: Path, path: Path) -> Path:
    """Write the graph as the converters want it: shapes inferred, constants folded, a name for every node."""
    with quiet():
        quant_pre_process(str(fp32), str(path), skip_symbolic_shape=True)
    model = onnx.load(path)
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    onnx.save(model, path)
    return path


def always_float(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the nodes before the first layer, of the last layer (the head), and of what follows it."""
    nodes = list(model.graph.node)
    layers = {node.name for node in nodes if node.op_type in LAYERS and FLOAT_PREFIX not in node.name}
    after_layer: set[str] = set()
    for node in nodes:
        if node.name in layers or after_layer.intersection(node.input):
            after_layer.update(node.output)
    before_layer: set[str] = set()
    for node in reversed(nodes):
        if before_layer.intersection(node.output) or node.name in layers:
            before_layer.update(node.input)
    inner = [node for node in nodes if before_layer.intersection(node.output)]
    kept = {node.name for node in inner if node.name in layers or after_layer.intersection(node.input)}
    return tuple(node.name for node in nodes if node.name not in kept)


def segments(model: onnx.ModelProto, always_float: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Split what may be quantized, in graph order: a layer and the operators between it and the next one.

    A layer stays in float only with them: their outputs would be rounded to eight bits for its neighbours otherwise.
    """
    found: list[list[str]] = []
    for node in model.graph.node:
        if node.name in always_float or node.op_type not in QUANTIZED_OPS:
            continue
        if node.op_type in LAYERS or not found:
            found.append([])
        found[-1].append(node.name)
    return tuple(tuple(names) for names in found)


def _take_weights(graph: Path, of: Path, path: Path, nodes: set[str]) -> None:
    """Write to `path` the graph with the weights of `nodes` as they are in the graph `of`."""
    model = onnx.load(graph)
    original = {each.name: each for each in onnx.load(of).graph.initializer}
    wanted = {name for node in model.graph.node if node.name in nodes for name in node.input}
    for tensor in model.graph.initializer:
        if tensor.name in wanted:
            tensor.CopyFrom(original[tensor.name])
    onnx.save(model, path)


def activation_bytes(path: Path) -> int:
    """Bytes of all float activations for one image, from the shapes in the graph (a symbolic dimension counts as 1)."""
    model = onnx.load(path, load_external_data=False)
    total = 0
    for value in model.graph.value_info:
        dims = [max(1, dim.dim_value) for dim in value.type.tensor_type.shape.dim]
        total += 4 * int(np.prod(dims)) if dims else 0
    return max(total, 1)


def blocks(parts: Sequence[Sequence[str]], num: int) -> list[tuple[str, ...]]:
    """Join segments, in graph order, into at most `num` runs of about equal length; node names."""
    edges = np.linspace(0, len(parts), min(num, len(parts)) + 1).round().astype(int)
    runs = [parts[start:stop] for start, stop in itertools.pairwise(edges)]
    return [tuple(name for part in run for name in part) for run in runs]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the quantizer's advice, which goes to the root logger and to standard output, to itself."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
