"""Rounds weights so that a layer's output changes least, not each weight for itself; the INT8 grid stays ONNX Runtime's.

Nearest rounding ignores that neighbouring inputs move together: an edge filter whose rounded weights no longer sum to zero
lets brightness through. Here each weight's rounding error is made up for by the weights not rounded yet, in the measure of how
their inputs correlate on calibration images. Method: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers" (2023), section 3, after Hassibi & Stork's optimal brain surgeon (1993), per group of convolution.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from threadpoolctl import threadpool_limits

from export import session
from export.source import Pixels
from moderation_client.contract import IMAGE_INPUT

MAX_PATCH = 160
"""Weights of one output channel, at most: first layers and depthwise layers, where it shows. With many weights errors average out."""
POSITIONS_PER_IMAGE = 400
DAMPING = 0.01
LEVELS = 127
"""Largest whole number of the symmetric int8 grid that the quantizer uses."""
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class _Conv:
    """One convolution, with what its weights see."""

    name: str
    source: str
    """Tensor it reads, [1, C, H, W]."""
    weight: str
    group: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]

    def patches(self, values: NDArray[np.float32], rng: np.random.Generator) -> Floats:
        """Sample input patches; float [group, positions, C / group * kernel]."""
        top, left, bottom, right = self.pads
        padded = np.pad(values[0], ((0, 0), (top, bottom), (left, right)))
        every = np.lib.stride_tricks.sliding_window_view(padded, self.kernel, axis=(1, 2))  # type: ignore[call-overload]
        windows = every[:, :: self.strides[0], :: self.strides[1]]
        rows = rng.integers(windows.shape[1], size=POSITIONS_PER_IMAGE)
        columns = rng.integers(windows.shape[2], size=POSITIONS_PER_IMAGE)
        chosen = windows[:, rows, columns]  # [C, positions, kh, kw]
        per_group = chosen.reshape(self.group, -1, *chosen.shape[1:]).transpose(0, 2, 1, 3, 4)
        return np.asarray(per_group.reshape(self.group, POSITIONS_PER_IMAGE, -1), np.float64)


def round_weights(prepared: Path, rounded: Path, layers: set[str], pixels: Pixels) -> None:
    """Write to `rounded` the graph `prepared` with the weights of `layers` moved onto their INT8 grid."""
    model = onnx.load(prepared)
    weights = {each.name: each for each in model.graph.initializer}
    convs = [conv for conv in _convolutions(model, weights) if conv.name in layers]
    for conv, moments in zip(convs, _second_moments(model, convs, pixels, rounded), strict=True):
        tensor = weights[conv.weight]
        values = numpy_helper.to_array(tensor)
        flat = values.reshape(conv.group, values.shape[0] // conv.group, -1).astype(np.float64)
        found = round_rows(flat, moments)
        tensor.CopyFrom(numpy_helper.from_array(found.reshape(values.shape).astype(np.float32), conv.weight))
    onnx.save(model, rounded)


def round_rows(weights: Floats, moments: Floats) -> Floats:
    """Round float [group, rows, n] onto each row's int8 grid, given input moments [group, n, n]; same shape."""
    num = weights.shape[-1]
    scale = np.abs(weights).max(axis=-1, keepdims=True) / LEVELS
    scale[scale == 0] = 1.0
    diagonal = np.einsum("gii->gi", moments).mean(axis=-1)
    damped = moments + np.eye(num) * (DAMPING * diagonal + 1e-9)[:, None, None]
    # else threads wait for each other at every one of a thousand small matrices
    with threadpool_limits(1, user_api="blas"):
        upper = _upper_factor(np.linalg.inv(damped))
    left = weights.copy()
    found = np.empty_like(weights)
    for column in range(num):
        whole = np.clip(np.round(left[..., column : column + 1] / scale), -LEVELS, LEVELS)
        found[..., column] = (whole * scale)[..., 0]
        error = (left[..., column] - found[..., column]) / upper[:, None, column, column]
        left[..., column + 1 :] -= error[..., None] * upper[:, None, column, column + 1 :]
    _keep_largest(found, weights)
    return found


def _upper_factor(matrix: Floats) -> Floats:
    """Give the upper triangular U with matrix = U^T U, for a stack of matrices."""
    return np.asarray(np.linalg.cholesky(matrix).transpose(0, 2, 1))


def _keep_largest(found: Floats, weights: Floats) -> None:
    """Leave each row's largest weight as it was, in place: the quantizer derives the row's grid from it."""
    index = np.abs(weights).argmax(axis=-1)[..., None]
    np.put_along_axis(found, index, np.take_along_axis(weights, index, axis=-1), axis=-1)


def _convolutions(model: onnx.ModelProto, weights: dict[str, onnx.TensorProto]) -> Iterator[_Conv]:
    readers: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    for node in model.graph.node:
        attributes: dict[str, Any] = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        plain = attributes.get("auto_pad", b"NOTSET") == b"NOTSET" and set(
            attributes.get("dilations", [1])
        ) == {1}
        if node.op_type != "Conv" or node.input[1] not in weights or readers[node.input[1]] > 1 or not plain:
            continue
        dims = weights[node.input[1]].dims
        if len(dims) != 4 or int(np.prod(dims[1:])) > MAX_PATCH:
            continue
        yield _Conv(
            name=node.name,
            source=node.input[0],
            weight=node.input[1],
            group=attributes.get("group", 1),
            kernel=(dims[2], dims[3]),
            strides=tuple(attributes.get("strides", [1, 1])),
            pads=tuple(attributes.get("pads", [0, 0, 0, 0])),
        )


def _second_moments(
    model: onnx.ModelProto, convs: list[_Conv], pixels: Pixels, scratch: Path
) -> Iterator[Floats]:
    """Run the images; per convolution the mean outer product of its input patches, [group, n, n]."""
    watched = onnx.ModelProto.FromString(model.SerializeToString())
    sources = sorted({conv.source for conv in convs})
    known = {each.name for each in watched.graph.output}
    for name in sources:
        if name not in known:
            watched.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    onnx.save(watched, scratch)
    opened = session.open_session(scratch)
    rng = np.random.default_rng(0)
    total: dict[str, Floats] = {}
    for index in range(len(pixels)):
        found = dict(zip(sources, opened.run(sources, {IMAGE_INPUT: pixels[index : index + 1]}), strict=True))
        for conv in convs:
            patches = conv.patches(found[conv.source], rng)
            total[conv.name] = total.get(conv.name, 0.0) + patches.transpose(0, 2, 1) @ patches
    for conv in convs:
        yield total[conv.name] / (len(pixels) * POSITIONS_PER_IMAGE)
