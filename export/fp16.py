"""FP16 for GPUs by ONNX Runtime's own converter, with islands of FP32 where the range needs it.

Float32 stay: the arithmetic on 0..255 pixels before the first layer, the head and the calibration behind it, and every
layer where an activation came near the largest FP16 number on calibration images.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod
from onnxruntime.quantization.calibrate import create_calibrator
from onnxruntime.transformers.float16 import convert_float_to_float16

from export.errors import GraphError
from export.int8 import ImageReader, always_float, prepare, quiet
from export.source import Pixels

SAFE_MAXIMUM = 65504 / 4
"""Activations beyond this on calibration images leave too little room below FP16's largest number."""


@dataclass(frozen=True, kw_only=True)
class Fp16Notes:
    """How an FP16 graph was made."""

    float_nodes: tuple[str, ...]
    """Nodes left in FP32."""
    wide_tensors: dict[str, float]
    """Tensors whose range made an island -> largest absolute value seen."""

    def to_dict(self) -> dict[str, Any]:
        """For the report."""
        return {"float_nodes": list(self.float_nodes), "wide_tensors": self.wide_tensors}


def write_fp16(fp32: Path, path: Path, calibration: Pixels) -> Fp16Notes:
    """Convert `fp32` into `path`; input and output keep their types."""
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        prepared = prepare(fp32, Path(temporary) / "prepared.onnx")
        largest = largest_values(prepared, calibration, Path(temporary))
        model = onnx.load(prepared)
    wide = {name: value for name, value in largest.items() if value > SAFE_MAXIMUM}
    kept = set(always_float(model))
    kept |= {node.name for node in model.graph.node if set(wide) & {*node.output, *node.input}}
    with quiet():
        converted = convert_float_to_float16(
            model, keep_io_types=True, node_block_list=sorted(kept), op_block_list=[]
        )
    rejoin_islands(converted, {each.name: each for each in model.graph.initializer})
    onnx.save(converted, path)
    return Fp16Notes(float_nodes=tuple(sorted(kept)), wide_tensors=wide)


def rejoin_islands(model: onnx.ModelProto, weights: dict[str, onnx.TensorProto]) -> None:
    """Undo what the converter does inside an island, in place: rounding every value between two FP32 nodes to FP16.

    A weight that is only read through a cast to FP32 gets its FP32 value from `weights` back.
    """
    graph = model.graph
    producers = {output: node for node in graph.node for output in node.output}
    halves = {each.name for each in graph.initializer if each.data_type == onnx.TensorProto.FLOAT16}
    floats = {each.name for each in graph.initializer} - halves
    renamed: dict[str, str] = {}
    for node in graph.node:
        if not _is_cast(node, onnx.TensorProto.FLOAT):
            continue
        before = producers.get(node.input[0])
        if before is not None and _is_cast(before, onnx.TensorProto.FLOAT16):
            renamed[node.output[0]] = before.input[0]
        elif node.input[0] in floats:
            renamed[node.output[0]] = node.input[0]
        elif node.input[0] in halves:
            graph.initializer.add().CopyFrom(weights[node.input[0]])
            graph.initializer[-1].name = renamed[node.output[0]] = f"{node.input[0]}_fp32"
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = _resolve(renamed, name)
    _remove_unread(model)
    sort_nodes(model)
    del graph.value_info[:]  # some name the types from before


def _is_cast(node: onnx.NodeProto, to: int) -> bool:
    return bool(node.op_type == "Cast" and node.attribute[0].i == to)


def _resolve(renamed: dict[str, str], name: str) -> str:
    while name in renamed:
        name = renamed[name]
    return name


def sort_nodes(model: onnx.ModelProto) -> None:
    """Put every node behind those it reads from, in place; the converter appends its casts at the end."""
    graph = model.graph
    known = {each.name for each in (*graph.input, *graph.initializer)} | {""}
    waiting, ordered = list(graph.node), []
    while waiting:
        ready = [node for node in waiting if known.issuperset(node.input)]
        if not ready:
            raise GraphError(f"node {waiting[0].name!r} reads something that nothing in the graph gives")
        known.update(name for node in ready for name in node.output)
        ordered += ready
        waiting = [node for node in waiting if not known.issuperset(node.output)]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(copies)


def _remove_unread(model: onnx.ModelProto) -> None:
    """Drop casts and weights that nothing reads any more, in place."""
    graph = model.graph
    while True:
        read = {name for node in graph.node for name in node.input} | {each.name for each in graph.output}
        unread = [node for node in graph.node if node.op_type == "Cast" and node.output[0] not in read]
        for node in unread:
            graph.node.remove(node)
        if not unread:
            break
    for tensor in [each for each in graph.initializer if each.name not in read]:
        graph.initializer.remove(tensor)


def largest_values(model: Path, calibration: Pixels, folder: Path) -> dict[str, float]:
    """Run calibration images through the FP32 graph; tensor name -> largest absolute value seen."""
    with quiet():
        calibrator = create_calibrator(
            model,
            None,
            augmented_model_path=str(folder / "ranges.onnx"),
            calibrate_method=CalibrationMethod.MinMax,
        )
        calibrator.collect_data(ImageReader(calibration))
        ranges = calibrator.compute_data()
    return {name: float(np.abs(data.range_value).max()) for name, data in ranges.items()}
