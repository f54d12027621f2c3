"""The small model, but for pictures with a pure white corner: on those ONNX Runtime fails, as a real model does on a bad day."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from moderation_client.contract import IMAGE_INPUT, MODEL_NAME
from tests.small_model import SIZE


def make_failing(repository: Path, version: int) -> None:
    """Change a version of the small model: a Gather that leaves its table when the first byte of a picture is 255."""
    folder = repository / MODEL_NAME / str(version)
    model = onnx.load(folder / "model.onnx")
    (cast,) = [node for node in model.graph.node if node.op_type == "Cast"]
    cast.output[0] = "plain"
    constants: dict[str, NDArray[Any]] = {
        "zero4": np.zeros(4, np.int64),
        "corner": np.array([2**31, 1, 1, 1], np.int64),
        "table": np.zeros(255, np.float32),
    }
    added = [
        helper.make_node("Slice", [IMAGE_INPUT, "zero4", "corner"], ["first"]),
        helper.make_node("Cast", ["first"], ["place"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "place"], ["nothing"]),
        helper.make_node("Add", ["plain", "nothing"], ["float"]),
    ]
    nodes = [cast, *added, *[node for node in model.graph.node if node is not cast]]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")
    files = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps({"files": files}), encoding="utf-8")


def failing_picture() -> NDArray[np.uint8]:
    """A picture that the model fails on, uint8 [1, SIZE, SIZE, 3]."""
    picture = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    picture[0, 0, 0] = 255
    return picture
