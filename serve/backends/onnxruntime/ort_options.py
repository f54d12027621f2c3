"""Session options out of the model configuration: what the C++ backend reads, read the same way, and nothing else of it.

Two things differ. Instances are processes here, so threads of a finished run do not spin on. And INT8 gives on every CPU what its
export was checked for: without VNNI, ONNX Runtime multiplies with an instruction that overflows unless it is told otherwise.

Source: onnxruntime_backend/src/onnxruntime.cc, `ModelState::ModelState` and `ModelState::LoadModel`.
"""

from __future__ import annotations

import re
from typing import Any

import onnxruntime as ort
from ort_openvino import NAME as OPENVINO
from ort_openvino import add_openvino

_INTEGER = re.compile(r"\s*[+-]?\d+")
_GRAPH_LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


class ConfigError(Exception):
    """The configuration asks for something that cannot be; the words are those of the C++ backend where it has some."""


def session_options(config: dict[str, Any]) -> ort.SessionOptions:
    """Options for this configuration (Triton's JSON form). Raises ConfigError."""
    parameters = {key: value.get("string_value", "") for key, value in config.get("parameters", {}).items()}
    options = ort.SessionOptions()
    options.graph_optimization_level = _graph_level(config)
    options.execution_mode = _execution_mode(parameters)
    # The C++ backend hands on positive counts only: 0 and less leave the default, which is every core.
    for key, attribute in (
        ("intra_op_thread_count", "intra_op_num_threads"),
        ("inter_op_thread_count", "inter_op_num_threads"),
    ):
        count = _integer(parameters.get(key, "0"))
        if count > 0:
            setattr(options, attribute, count)
    for key, attribute in (
        ("enable_mem_arena", "enable_cpu_mem_arena"),
        ("enable_mem_pattern", "enable_mem_pattern"),
    ):
        if key in parameters:
            setattr(options, attribute, _boolean(parameters[key]))
    # Instances are processes here: threads that went on spinning after a run would take the cores from the other instance.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.x64quantprecision", "1")
    key = "session.use_device_allocator_for_initializers"
    if key in parameters:
        options.add_session_config_entry(key, parameters[key])
    return options


def providers(
    config: dict[str, Any], kind: str, args: dict[str, str], options: ort.SessionOptions
) -> list[Any] | None:
    """Choose execution providers for an instance of this kind; None where they were added to `options` instead.

    Raises ConfigError for what is not there.
    """
    accelerators = config.get("optimization", {}).get("execution_accelerators", {})
    wanted = [each["name"] for each in accelerators.get("cpu_execution_accelerator", [])]
    for name in wanted:
        if name != OPENVINO:
            raise ConfigError(f"unknown Execution Accelerator '{name}' is requested")
    if kind != "GPU" and wanted:
        try:
            add_openvino(options)
        except ImportError as error:
            raise ConfigError(
                f"unknown Execution Accelerator '{OPENVINO}' is requested: pip install onnxruntime-ep-openvino, "
                "or publish the model with --cpu-accelerator none"
            ) from error
        except LookupError as error:
            raise ConfigError(f"Execution Accelerator '{OPENVINO}': {error.args[0]}") from error
        return None
    if kind != "GPU":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise ConfigError(
            f"model '{config['name']}' asks for KIND_GPU, and this onnxruntime has no CUDA; use configs/cpu.pbtxt"
        )
    device = {"device_id": args["model_instance_device_id"]}
    return [("CUDAExecutionProvider", device), "CPUExecutionProvider"]


def _graph_level(config: dict[str, Any]) -> Any:
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    return _GRAPH_LEVELS.get(level, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)


def _execution_mode(parameters: dict[str, str]) -> Any:
    mode = _integer(parameters.get("execution_mode", "0"))
    if mode not in {0, 1}:
        raise ConfigError(
            "Invalid configuration value provided. Expected values for  execution_mode are 0 or 1 "
            f"but got {mode} ."
        )
    return ort.ExecutionMode.ORT_PARALLEL if mode else ort.ExecutionMode.ORT_SEQUENTIAL


def _integer(text: str) -> int:
    """Read a number as C++'s `std::stoi` does: `2x` is 2."""
    found = _INTEGER.match(text)
    if found is None:
        raise ConfigError(f"failed to convert '{text}' to integral number")
    return int(found.group())


def _boolean(text: str) -> bool:
    if text.lower() in {"true", "1"}:
        return True
    if text.lower() in {"false", "0"}:
        return False
    raise ConfigError(f"failed to convert '{text}' to boolean value")
