"""A JPEG round trip as ONNX operators, for networks that were fitted to pictures with its traces and score others differently.

Baseline JPEG with 4:2:0 chroma as libjpeg writes it (ITU-T T.81, tables of annex K; JFIF colour conversion; triangle upsampling):
colour conversion, 8x8 cosine transform, quantization, and all of it backwards. Whole numbers where libjpeg has whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from export.int8 import FLOAT_PREFIX

LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
CHROMINANCE = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99,
    *(99,) * 32,
)  # fmt: skip
TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


@dataclass
class _Builder:
    """Collects nodes and constants under one prefix."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; the name of its output."""
        name = f"{FLOAT_PREFIX}jpeg/{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, value: Any) -> str:
        """Add a float constant; its name."""
        name = f"{FLOAT_PREFIX}jpeg/constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    def whole(self, tensor: str) -> str:
        """Round to whole numbers 0..255."""
        clipped = self.node("Clip", tensor, self.constant(0.0), self.constant(255.0))
        return self.node("Round", clipped)

    def recode(self, planes: str, num: int, table: NDArray[np.float32]) -> str:
        """Transform, quantize and restore each of `num` planes 0..255, in whole numbers again."""
        basis = np.tile(cosine_basis()[:, None], (num, 1, 1, 1))
        steps = self.constant(np.tile(table, num).reshape(1, -1, 1, 1))
        weight = self.constant(basis)
        middle = self.constant(128.0)
        centred = self.node("Sub", planes, middle)
        found = self.node("Conv", centred, weight, strides=[8, 8], group=num)
        levels = self.node("Round", self.node("Div", found, steps))
        restored = self.node(
            "ConvTranspose", self.node("Mul", levels, steps), weight, strides=[8, 8], group=num
        )
        return self.whole(self.node("Add", restored, middle))


def jpeg_nodes(pixels: str, quality: int) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto], str]:
    """Build the round trip of `pixels`, float [N, H, W, 3] RGB 0..255 with sides divisible by 16.

    Returns nodes, constants and the name of the result, of the same shape.
    """
    build = _Builder()
    rgb = build.node("Transpose", pixels, perm=[0, 3, 1, 2])
    offset = build.constant([0.0, 128.0, 128.0])
    ycc = build.whole(build.node("Conv", rgb, build.constant(np.reshape(TO_YCC, (3, 3, 1, 1))), offset))
    luma = build.node("Conv", ycc, build.constant(np.reshape([1.0, 0.0, 0.0], (1, 3, 1, 1))))
    select = build.constant(np.reshape([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], (2, 3, 1, 1)))
    chroma = build.node("AveragePool", build.node("Conv", ycc, select), kernel_shape=[2, 2], strides=[2, 2])
    luma = build.recode(luma, 1, quantization(LUMINANCE, quality))
    chroma = build.recode(build.whole(chroma), 2, quantization(CHROMINANCE, quality))
    scales = build.constant([1.0, 1.0, 2.0, 2.0])
    chroma = build.whole(build.node("Resize", chroma, "", scales, mode="linear"))
    ycc = build.node("Concat", luma, chroma, axis=1)
    back = np.array(TO_RGB)
    shift = build.constant(-128.0 * back[:, 1:].sum(axis=1))
    rgb = build.whole(build.node("Conv", ycc, build.constant(back.reshape(3, 3, 1, 1)), shift))
    result = build.node("Transpose", rgb, perm=[0, 2, 3, 1])
    return build.nodes, build.constants, result


def quantization(table: tuple[int, ...], quality: int) -> NDArray[np.float32]:
    """Scale a table of annex K as libjpeg does for qualities 1..100; float32 [64]."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip((np.array(table) * scale + 50) // 100, 1, 255).astype(np.float32)


def cosine_basis() -> NDArray[np.float64]:
    """Give the 64 orthonormal patterns of the 8x8 cosine transform, [64, 8, 8], in row order of the tables."""
    position = np.arange(8)
    rows = np.cos((2 * position[None] + 1) * position[:, None] * np.pi / 16) / 2
    rows[0] /= np.sqrt(2)
    return np.asarray(np.einsum("ux,vy->uvxy", rows, rows).reshape(64, 8, 8))
