"""INT8 gives the same on every CPU: those without VNNI have an instruction that overflows, which export and server must not use.

With VNNI the products cannot show it, so the session's entry is looked at as well.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.session import EXACT_INT8, open_session

BACKEND = Path(__file__).parent.parent / "serve" / "backends" / "onnxruntime"
NUM_CHANNELS = 32
EXPECTED = 0.5
"""Mean of ones under weights that are 1 for half of the channels and 0 for the others."""


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """One convolution as the quantizer writes it, whose products are as large as INT8 has: 255 x 127, two of them added up in 16 bits."""
    weight = np.zeros((8, NUM_CHANNELS, 1, 1), dtype=np.int8)
    weight[:, : NUM_CHANNELS // 2] = 127
    constants: dict[str, NDArray[Any]] = {
        "weight": weight,
        "weight_scale": np.full(8, 2.0 / 127 / NUM_CHANNELS * EXPECTED, dtype=np.float32),
        "weight_zero": np.zeros(8, dtype=np.int8),
        "scale": np.array(1 / 255, dtype=np.float32),
        "zero": np.array(0, dtype=np.uint8),
    }
    grid = ["scale", "zero"]
    nodes = [
        helper.make_node("QuantizeLinear", ["image", *grid], ["q"]),
        helper.make_node("DequantizeLinear", ["q", *grid], ["x"]),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["w"], axis=0),
        helper.make_node("Conv", ["x", "w"], ["y"]),
        helper.make_node("QuantizeLinear", ["y", *grid], ["z"]),
        helper.make_node("DequantizeLinear", ["z", *grid], ["scores"]),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "overflow",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, NUM_CHANNELS, 8, 8])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 8, 8, 8])],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.checker.check_model(model)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return path


def _largest_shift(session: ort.InferenceSession) -> float:
    (scores,) = session.run(["scores"], {"image": np.ones((1, NUM_CHANNELS, 8, 8), dtype=np.float32)})
    return float(np.abs(scores - EXPECTED).max())


def test_gates_see_no_overflow(graph: Path) -> None:
    """What export measures is what a CPU with VNNI gives."""
    session = open_session(graph)
    assert session.get_session_options().get_session_config_entry(EXACT_INT8) == "1"
    assert _largest_shift(session) < 0.01


def test_server_has_no_overflow(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor has the embedded server's backend."""
    monkeypatch.syspath_prepend(BACKEND)
    options = importlib.import_module("ort_options").session_options({"name": "moderation"})
    assert options.get_session_config_entry(EXACT_INT8) == "1"
    session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    assert _largest_shift(session) < 0.01
