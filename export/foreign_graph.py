"""Wraps a foreign ONNX graph into the contract: pixels in, scores out, everything between as its description says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export import graph
from export.errors import ForeignSpecError, GraphError
from export.foreign_spec import ForeignSpec
from export.jpeg_graph import jpeg_nodes
from moderation_client.contract import IMAGE_INPUT, SCORES_OUTPUT

OPSET = 17
"""Older graphs are converted up to it: the quantizer needs 13, and every Triton release since 23.03 reads 17."""
PREFIX = "foreign/"


def load_foreign(path: Path) -> onnx.ModelProto:
    """Read a foreign file at a usable opset, with an open batch dimension. Raises GraphError."""
    try:
        model = onnx.load(path)
        opset = graph.default_opset(model)
        if opset < OPSET:
            model = onnx.version_converter.convert_version(model, OPSET)
    except (OSError, DecodeError) as error:
        raise GraphError(f"{path} is not a readable ONNX file: {error}") from error
    except (RuntimeError, ValueError) as error:
        raise GraphError(
            f"{path} has opset {opset}, and ONNX cannot convert it to {OPSET}: {error}"
        ) from error
    for value in (*graph.real_inputs(model), *model.graph.output):
        if len(value.type.tensor_type.shape.dim):
            value.type.tensor_type.shape.dim[0].Clear()
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]  # shapes inside may have the old batch size
    return model


def pick(values: list[onnx.ValueInfoProto], name: str | None, kind: str) -> onnx.ValueInfoProto:
    """Choose the tensor that the description means. Raises ForeignSpecError that lists what there is."""
    names = [value.name for value in values]
    if name is None and len(values) == 1:
        return values[0]
    if name not in names:
        raise ForeignSpecError(
            f"{kind}.name is {name!r}, the graph has the {kind}s {', '.join(names)}: name one"
        )
    return values[names.index(name)]


def wrap(foreign: onnx.ModelProto, description: ForeignSpec) -> onnx.ModelProto:
    """Put the description's arithmetic around the graph. Raises ForeignSpecError where the two do not fit."""
    source = pick(graph.real_inputs(foreign), description.input.name, "input")
    target = pick(list(foreign.graph.output), description.output.name, "output")
    if source.type.tensor_type.elem_type != TensorProto.FLOAT:
        raise ForeignSpecError(f"input {source.name!r} of the graph must be float32")
    _check_size(source, description)
    inner = onnx.compose.add_prefix(foreign, PREFIX)
    before, constants = _before(description, PREFIX + source.name)
    after, more = _after(description, PREFIX + target.name)
    weights = {each.name for each in inner.graph.initializer}
    spec = description.spec
    shape: list[str | int | None] = ["batch", spec.image.height, spec.image.width, 3]
    outer = helper.make_graph(
        [*before, *inner.graph.node, *after],
        "moderation",
        [helper.make_tensor_value_info(IMAGE_INPUT, TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info(SCORES_OUTPUT, TensorProto.FLOAT, ["batch", len(spec.labels)])],
        [*inner.graph.initializer, *constants, *more],
    )
    assert weights.isdisjoint(each.name for each in (*constants, *more))
    return helper.make_model(
        outer,
        opset_imports=list(inner.opset_import),
        functions=list(inner.functions),
        ir_version=inner.ir_version,
    )


def _check_size(source: onnx.ValueInfoProto, description: ForeignSpec) -> None:
    """Compare the graph's own fixed size with what will reach it."""
    image = description.spec.image
    rows, columns = description.input.crop or (image.height, image.width)
    if rows > image.height or columns > image.width:
        raise ForeignSpecError(
            f"input.crop {rows}x{columns} is larger than the image {image.height}x{image.width}"
        )
    if description.input.jpeg_quality is not None and (rows % 16 or columns % 16):
        raise ForeignSpecError(f"input.jpeg_quality needs sides divisible by 16, got {rows}x{columns}")
    wanted = [-1, rows, columns, 3] if description.input.layout == "NHWC" else [-1, 3, rows, columns]
    found = graph.dims_of(source)
    fits = len(found) == 4 and all(has in (-1, gets) for has, gets in zip(found[1:], wanted[1:], strict=True))
    if not fits:
        raise ForeignSpecError(
            f"the graph's input {source.name!r} is {found}, the description gives it {wanted} "
            "(input.layout, input.crop, image.height, image.width)"
        )


def _constants(description: ForeignSpec) -> dict[str, NDArray[Any]]:
    given, image = description.input, description.spec.image
    rows, columns = given.crop or (image.height, image.width)
    top, left = (image.height - rows) // 2, (image.width - columns) // 2
    order = [0, 1, 2] if given.channels == "RGB" else [2, 1, 0]
    return {
        "starts": np.array([top, left], np.int64),
        "ends": np.array([top + rows, left + columns], np.int64),
        "axes": np.array([1, 2], np.int64),
        "order": np.array(order, np.int64),
        "scale": np.array(given.scale, np.float32),
        "mean": np.array(given.mean, np.float32),
        "std": np.array(given.std, np.float32),
    }


def _before(description: ForeignSpec, name: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    given = description.input
    permutation = [0, 1, 2, 3] if given.layout == "NHWC" else [0, 3, 1, 2]
    tensors = [numpy_helper.from_array(value, key) for key, value in _constants(description).items()]
    nodes = [
        helper.make_node("Slice", [IMAGE_INPUT, "starts", "ends", "axes"], ["cropped"]),
        helper.make_node("Cast", ["cropped"], ["float"], to=TensorProto.FLOAT),
    ]
    pixels = "float"
    if given.jpeg_quality is not None:
        more, others, pixels = jpeg_nodes("float", given.jpeg_quality)
        nodes, tensors = [*nodes, *more], [*tensors, *others]
    nodes += [
        helper.make_node("Gather", [pixels, "order"], ["ordered"], axis=3),
        helper.make_node("Mul", ["ordered", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["normal"]),
        helper.make_node("Transpose", ["normal"], [name], perm=permutation),
    ]
    return nodes, tensors


def _after(description: ForeignSpec, name: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Activation, choice of columns, and a clip against the last bit of rounding above 1."""
    operators = {"probabilities": "Identity", "logits": "Sigmoid", "softmax": "Softmax"}
    operator = operators[description.output.meaning]
    attributes: dict[str, Any] = {"axis": -1} if operator == "Softmax" else {}
    nodes = [
        helper.make_node(operator, [name], ["probabilities"], **attributes),
        helper.make_node("Gather", ["probabilities", "columns"], ["chosen"], axis=1),
        helper.make_node("Clip", ["chosen", "zero", "one"], [SCORES_OUTPUT]),
    ]
    constants: dict[str, NDArray[Any]] = {
        "columns": np.array(description.output.columns, np.int64),
        "zero": np.array(0.0, np.float32),
        "one": np.array(1.0, np.float32),
    }
    return nodes, [numpy_helper.from_array(value, key) for key, value in constants.items()]
