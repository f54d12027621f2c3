"""Lint rules about a configuration and the ONNX files it names: dtypes, dimensions, batch dimension, opset and IR."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from tritonclient.grpc import model_config_pb2 as pb

from export.errors import GraphError
from export.findings import Findings
from export.graph import default_opset, dims_of, real_inputs
from export.lint_config import is_onnx, model_folder
from export.lint_files import VERSION
from export.releases import first_release_reading, release_of

TRITON_TYPES: dict[int, int] = {
    onnx.TensorProto.FLOAT: pb.TYPE_FP32,
    onnx.TensorProto.FLOAT16: pb.TYPE_FP16,
    onnx.TensorProto.DOUBLE: pb.TYPE_FP64,
    onnx.TensorProto.UINT8: pb.TYPE_UINT8,
    onnx.TensorProto.UINT16: pb.TYPE_UINT16,
    onnx.TensorProto.UINT32: pb.TYPE_UINT32,
    onnx.TensorProto.UINT64: pb.TYPE_UINT64,
    onnx.TensorProto.INT8: pb.TYPE_INT8,
    onnx.TensorProto.INT16: pb.TYPE_INT16,
    onnx.TensorProto.INT32: pb.TYPE_INT32,
    onnx.TensorProto.INT64: pb.TYPE_INT64,
    onnx.TensorProto.BOOL: pb.TYPE_BOOL,
    onnx.TensorProto.STRING: pb.TYPE_STRING,
}


def check_graph(config: pb.ModelConfig, path: Path, target: str, findings: Findings) -> None:
    """Compare the configuration with the ONNX file of every version that it serves."""
    if not is_onnx(config):
        return
    name = config.default_model_filename or "model.onnx"
    for version in served_versions(config, path, findings):
        file = version / name
        if file.is_dir():
            file /= "model.onnx"
        if not file.is_file():
            findings.error(
                path, "default_model_filename", f"{name} is not in version {version.name}", "add the file"
            )
            continue
        model = _load(file, findings)
        if model is not None:
            _check_release(model, file, target, findings)
            _check_tensors(config, path, model, findings)


def served_versions(config: pb.ModelConfig, path: Path, findings: Findings) -> Iterator[Path]:
    """Give the version folders that the version policy picks; one that is named and not there is a finding."""
    there = {int(each.name): each for each in model_folder(path).iterdir() if VERSION.fullmatch(each.name)}
    policy = config.version_policy
    if policy.WhichOneof("policy_choice") == "specific":
        for number in policy.specific.versions:
            if number in there:
                yield there[number]
            else:
                findings.error(
                    path,
                    "version_policy.specific",
                    f"version {number} is not there",
                    "publish it, or name another",
                )
    elif policy.WhichOneof("policy_choice") == "all":
        yield from there.values()
    else:
        num = policy.latest.num_versions or 1
        yield from (there[number] for number in sorted(there)[-num:])


def _load(file: Path, findings: Findings) -> onnx.ModelProto | None:
    try:
        model = onnx.load(file, load_external_data=False)
        default_opset(model)
    except (DecodeError, OSError, GraphError) as error:
        findings.error(file, "", f"is not a readable ONNX file (half-copied?): {error}", "copy it again")
        return None
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location" and not (file.parent / entry.value).is_file():
                findings.error(
                    file, tensor.name, f"its weights are in {entry.value}, which is not there", "copy it too"
                )
                return None
    return model


def _check_release(model: onnx.ModelProto, file: Path, target: str, findings: Findings) -> None:
    release, opset = release_of(target), default_opset(model)
    if model.ir_version > release.max_ir or opset > release.max_opset:
        first = first_release_reading(ir=model.ir_version, opset=opset) or "none known"
        findings.error(
            file,
            "ir_version" if model.ir_version > release.max_ir else "opset_import",
            f"IR {model.ir_version}, opset {opset}; Triton {target} (ONNX Runtime {release.onnxruntime}) reads IR "
            f"{release.max_ir}, opset {release.max_opset}",
            f"export for the target, or serve with {first} or newer",
        )


def _check_tensors(config: pb.ModelConfig, path: Path, model: onnx.ModelProto, findings: Findings) -> None:
    for kind, ours, theirs in (
        ("input", list(config.input), real_inputs(model)),
        ("output", list(config.output), list(model.graph.output)),
    ):
        graph = {each.name: each for each in theirs}
        for tensor in ours:
            if tensor.name not in graph:
                known = ", ".join(graph)
                findings.error(
                    path, f"{kind}.{tensor.name}", f"the graph has no such {kind}", f"it has {known}"
                )
            else:
                _check_tensor(config, path, f"{kind}.{tensor.name}", tensor, graph[tensor.name], findings)
        if kind == "input" and ours:
            for name in sorted(set(graph) - {each.name for each in ours}):
                findings.error(path, "input", f"the graph needs {name!r}, which is not listed", "list it")


def _check_tensor(
    config: pb.ModelConfig,
    path: Path,
    field: str,
    tensor: Any,
    value: onnx.ValueInfoProto,
    findings: Findings,
) -> None:
    wanted = TRITON_TYPES.get(value.type.tensor_type.elem_type)
    if wanted is not None and tensor.data_type != wanted:
        ours, theirs = pb.DataType.Name(tensor.data_type), pb.DataType.Name(wanted)
        findings.error(path, f"{field}.data_type", f"{ours}, the graph has {theirs}", f"write {theirs}")
    dims, given = dims_of(value), list(tensor.dims)
    if tensor.HasField("reshape"):
        given = list(tensor.reshape.shape)
    if config.max_batch_size > 0:
        if not dims or dims[0] != -1:
            fixed = dims[0] if dims else "none"
            findings.error(
                path,
                "max_batch_size",
                f"is {config.max_batch_size}, but the first dimension of {value.name!r} in the graph is {fixed}",
                "export with a dynamic batch dimension, or set max_batch_size: 0",
            )
            return
        dims = dims[1:]
    if not _fits(given, dims, exactly=field.startswith("output")):
        findings.error(
            path, f"{field}.dims", f"{given}, the graph has {dims}", "write the graph's dimensions"
        )


def _fits(given: list[int], graph: list[int], *, exactly: bool) -> bool:
    """Triton: a fixed dimension must be repeated; where the graph is free an input may say anything, an output may not."""
    if len(given) != len(graph):
        return False
    return all(
        ours == theirs or (theirs == -1 and not exactly) for ours, theirs in zip(given, graph, strict=True)
    )
