"""What an ONNX graph must look like to be published: the contract's names and types, no batch size baked in, not too new."""

from __future__ import annotations

from pathlib import Path

import onnx

from export.errors import GraphError, TargetError
from export.releases import Release, first_release_reading
from moderation_client import ModelSpec
from moderation_client.contract import IMAGE_INPUT, SCORES_OUTPUT

_FLOAT8_AND_NEWER = {17: 9, 18: 9, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}
"""ONNX element type -> IR version that brought it (float8: 9, int4: 10, float4: 11)."""


def default_opset(model: onnx.ModelProto) -> int:
    """Opset of the default domain. Raises GraphError where there is none."""
    versions = [each.version for each in model.opset_import if each.domain in ("", "ai.onnx")]
    if not versions:
        raise GraphError("the graph imports no opset of the default ONNX domain")
    return int(max(versions))


def real_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Graph inputs without the initializers that old files list among them."""
    weights = {each.name for each in model.graph.initializer}
    return [each for each in model.graph.input if each.name not in weights]


def dims_of(value: onnx.ValueInfoProto) -> list[int]:
    """Dimensions, -1 where symbolic or unknown."""
    shape = value.type.tensor_type.shape
    return [dim.dim_value if dim.HasField("dim_value") else -1 for dim in shape.dim]


def check_contract(model: onnx.ModelProto, spec: ModelSpec) -> None:
    """Refuse a graph that is not `image` UINT8 [N, H, W, 3] -> `scores` FLOAT [N, num_labels]. Raises GraphError."""
    wanted_in = [-1, spec.image.height, spec.image.width, 3]
    _check_value(real_inputs(model), IMAGE_INPUT, onnx.TensorProto.UINT8, wanted_in, "input")
    wanted_out = [-1, len(spec.labels)]
    _check_value(list(model.graph.output), SCORES_OUTPUT, onnx.TensorProto.FLOAT, wanted_out, "output")


def _check_value(
    values: list[onnx.ValueInfoProto], name: str, element: int, dims: list[int], kind: str
) -> None:
    names = [value.name for value in values]
    if names != [name]:
        raise GraphError(f"the graph must have one {kind} named {name!r}, it has {names}")
    found = values[0].type.tensor_type.elem_type
    if found != element:
        wanted, got = (onnx.TensorProto.DataType.Name(each) for each in (element, found))
        raise GraphError(f"{kind} {name!r} must be {wanted}, it is {got}")
    if dims_of(values[0]) != dims:
        raise GraphError(
            f"{kind} {name!r} must have the dimensions {dims} (-1: any batch), it has {dims_of(values[0])}"
        )


def fit_to_release(model: onnx.ModelProto, release: Release) -> onnx.ModelProto:
    """Lower opset and IR version to what the release reads, where ONNX can. Raises TargetError that names both.

    Node metadata goes too: exporters write stack traces of the machine they ran on into it.
    """
    model = lower_opset(model, release)
    strip_metadata(model)
    drop_unused_domains(model)
    needed = max(
        [3, *(_FLOAT8_AND_NEWER.get(each.data_type, 3) for each in model.graph.initializer)],
    )
    if needed > release.max_ir:
        raise TargetError(
            f"a weight needs ONNX IR {needed}, Triton {release.name} (ONNX Runtime {release.onnxruntime}) reads up to "
            f"IR {release.max_ir}; first release that reads it: "
            f"{first_release_reading(ir=needed, opset=1) or 'none known'}"
        )
    model.ir_version = min(model.ir_version, release.max_ir)
    return model


def lower_opset(model: onnx.ModelProto, release: Release) -> onnx.ModelProto:
    """Convert a too new opset down by ONNX's own converter. Raises TargetError where it cannot."""
    opset = default_opset(model)
    if opset <= release.max_opset:
        return model
    try:
        return onnx.version_converter.convert_version(model, release.max_opset)
    except (RuntimeError, ValueError) as error:
        raise TargetError(
            f"the graph uses opset {opset}, Triton {release.name} (ONNX Runtime {release.onnxruntime}) reads up to "
            f"{release.max_opset} and ONNX cannot convert it down ({str(error).strip().splitlines()[0]}); "
            f"first release that reads it: {first_release_reading(ir=3, opset=opset) or 'none known'}"
        ) from error


def drop_unused_domains(model: onnx.ModelProto) -> None:
    """Remove opset imports that no node uses (optimizers add many), in place."""
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    used = {node.domain for node in nodes} | {""}
    kept = [each for each in model.opset_import if each.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def strip_metadata(model: onnx.ModelProto) -> None:
    """Drop doc strings and metadata of nodes and values, in place."""
    graph = model.graph
    for item in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]
    for function in model.functions:
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]


def save(model: onnx.ModelProto, path: Path, spec: ModelSpec, release: Release) -> None:
    """Fit to the release, check against ONNX and the contract, write. Raises GraphError or TargetError."""
    model = fit_to_release(model, release)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GraphError(f"ONNX's checker refuses the graph: {error}") from error
    check_contract(model, spec)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
