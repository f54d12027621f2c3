"""Whether a model's inputs and outputs are those of its configuration, checked as the C++ backend does, in its words.

Source: onnxruntime_backend/src/onnxruntime.cc `ValidateInputs`, `ValidateOutputs` and onnxruntime_utils.cc
`CompareDimsSupported`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnxruntime as ort
from ort_options import ConfigError

_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
}


def check_signature(session: ort.InferenceSession, config: dict[str, Any]) -> None:
    """Compare a session with a configuration. Raises ConfigError."""
    name = config["name"]
    if config.get("sequence_batching"):
        raise ConfigError(
            f"model '{name}': sequence_batching is not served by this stand-in for the C++ backend"
        )
    inputs, outputs = session.get_inputs(), session.get_outputs()
    required = [each for each in config["input"] if not each.get("optional")]
    if len(required) != len(config["input"]) or any(
        each.get("allow_ragged_batch") for each in config["input"]
    ):
        raise ConfigError(f"model '{name}': optional and ragged inputs are not served by this stand-in")
    if len(inputs) != len(required):
        raise ConfigError(
            f"unable to load model '{name}', configuration expects {len(required)} inputs, "
            f"model provides {len(inputs)}"
        )
    for what, configured, found in (
        ("input", config["input"], inputs),
        ("output", config["output"], outputs),
    ):
        for tensor in configured:
            _check_tensor(config, what, tensor, found)


def _check_tensor(config: dict[str, Any], what: str, tensor: dict[str, Any], found: Sequence[Any]) -> None:
    """One configured tensor against the model's."""
    model, name, wanted = config["name"], tensor["name"], tensor["data_type"]
    by_name = {each.name: each for each in found}
    if name not in by_name:
        allowed = ", ".join(sorted(by_name))
        raise ConfigError(f"unexpected inference {what} '{name}', allowed {what}s are: {allowed}")
    if wanted not in _TYPES.values():
        raise ConfigError(f"unsupported datatype {wanted} for {what} '{name}' for model '{model}'")
    provided = _TYPES.get(by_name[name].type, by_name[name].type)
    if provided != wanted:
        raise ConfigError(
            f"unable to load model '{model}', configuration expects datatype {wanted} for {what} '{name}', "
            f"model provides {provided}"
        )
    if tensor.get("reshape"):
        raise ConfigError(f"model '{model}', {what} '{name}': reshape is not served by this stand-in")
    shape = [dim if isinstance(dim, int) else -1 for dim in by_name[name].shape]
    _check_dims(config, name, shape, [int(dim) for dim in tensor["dims"]], exact=what == "output")


def _check_dims(config: dict[str, Any], name: str, shape: list[int], dims: list[int], *, exact: bool) -> None:
    """Dimensions: the model's fixed ones must be the configured ones, and for outputs the free ones too."""
    where = f"model '{config['name']}', tensor '{name}': "
    batched = int(config.get("max_batch_size", 0)) > 0
    if batched and (not shape or shape[0] != -1):
        raise ConfigError(
            f"{where}for the model to support batching the shape should have at least 1 dimension and the first "
            f"dimension must be -1; but shape expected by the model is {_text(shape)}"
        )
    full = [-1, *dims] if batched else dims
    pairs = zip(shape, full, strict=False)
    if len(shape) == len(full) and all(a == b or (a == -1 and not exact) for a, b in pairs):
        return
    specified = f"{where}the model expects {len(shape)} dimensions (shape {_text(shape)}) but the model configuration specifies "
    if batched:
        raise ConfigError(
            f"{specified}{len(full)} dimensions (an initial batch dimension because max_batch_size > 0 followed by the "
            f"explicit tensor shape, making complete shape {_text(full)})"
        )
    raise ConfigError(f"{specified}{len(full)} dimensions (shape {_text(full)})")


def _text(shape: list[int]) -> str:
    return f"[{','.join(map(str, shape))}]"
