"""Intel's OpenVINO inside ONNX Runtime: what `--cpu-accelerator openvino` measures a version with.

It rounds INT8 otherwise than ONNX Runtime's own CPU code, so a version is measured, and its golden scores are taken, with the one
that will serve it. `serve/backends/onnxruntime/ort_openvino.py` asks for the same in the server.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from export.errors import GraphError

if TYPE_CHECKING:
    import onnxruntime

NAME = "openvino"


def devices() -> list[onnxruntime.OrtEpDevice]:
    """OpenVINO's device for this CPU; none where the processor is not Intel's. Raises GraphError without the plugin."""
    import onnxruntime as ort  # noqa: PLC0415 - as in `export.session`

    try:
        import onnxruntime_ep_openvino as plugin  # noqa: PLC0415 - 165 MB that only this accelerator needs
    except ImportError as error:
        raise GraphError(
            "the CPU accelerator openvino needs the package onnxruntime-ep-openvino (Linux x86-64): pip install it, "
            "or publish with --cpu-accelerator none"
        ) from error
    if plugin.get_ep_name() not in {each.ep_name for each in ort.get_ep_devices()}:
        ort.register_execution_provider_library(NAME, plugin.get_library_path())
    return [
        each
        for each in ort.get_ep_devices()
        if each.ep_name == plugin.get_ep_name() and each.device.type == ort.OrtHardwareDeviceType.CPU
    ]


def add_openvino(options: onnxruntime.SessionOptions) -> None:
    """Have a session run on OpenVINO's CPU device with as many threads as `options` say. Raises GraphError where there is none."""
    found = devices()
    if not found:
        raise GraphError(
            "OpenVINO's plugin finds no CPU here that it supports (Intel's): publish with --cpu-accelerator none"
        )
    settings = {
        "INFERENCE_NUM_THREADS": options.intra_op_num_threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    options.add_provider_for_devices(found, {"load_config": json.dumps({"CPU": settings})})
