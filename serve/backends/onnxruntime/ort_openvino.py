"""Intel's OpenVINO inside ONNX Runtime, for `cpu_execution_accelerator { name: "openvino" }`: the plugin of `onnxruntime-ep-openvino`.

`export/openvino.py` asks for the same when it measures a version; what it published is what this must run.
"""

from __future__ import annotations

import json

import onnxruntime as ort

NAME = "openvino"


def add_openvino(options: ort.SessionOptions) -> None:
    """Have a session run on OpenVINO's CPU device with as many threads as `options` say.

    Raises ImportError without the plugin, LookupError where it finds no CPU that it supports.
    """
    import onnxruntime_ep_openvino as plugin  # noqa: PLC0415 - 165 MB that only this accelerator needs

    if plugin.get_ep_name() not in {each.ep_name for each in ort.get_ep_devices()}:
        ort.register_execution_provider_library(NAME, plugin.get_library_path())
    devices = [
        each
        for each in ort.get_ep_devices()
        if each.ep_name == plugin.get_ep_name() and each.device.type == ort.OrtHardwareDeviceType.CPU
    ]
    if not devices:
        raise LookupError("OpenVINO's plugin finds no CPU here that it supports (Intel's)")
    settings = {
        "INFERENCE_NUM_THREADS": options.intra_op_num_threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # instances are processes that know nothing of each other: pinned, they share a core
        "INFERENCE_PRECISION_HINT": "f32",  # whatever the processor could do: what was measured is what must run
    }
    options.add_provider_for_devices(devices, {"load_config": json.dumps({"CPU": settings})})
