"""Lint rules about what travels with the model: specs and policies against tensors, labels and the versions on the disk."""

from __future__ import annotations

from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from export.findings import Findings
from export.lint_config import model_folder
from moderation_client import ContractError, ModelSpec, Policy, PolicyError
from moderation_client.contract import (
    IMAGE_INPUT,
    MODEL_NAME,
    SCORES_OUTPUT,
    policy_parameter,
    spec_parameter,
)


def check_specs(config: pb.ModelConfig, path: Path, findings: Findings) -> None:
    """Check every `spec.<version>` and `policy.<version>`; a model without any is somebody else's and passes."""
    specs = _specs(config, path, findings)
    wanted = list(config.version_policy.specific.versions)
    if config.name == MODEL_NAME and wanted and not set(wanted) & set(specs):
        findings.error(
            path,
            f"parameters.{spec_parameter(wanted[0])}",
            "the version that is served has no spec, so no client knows its labels",
            "publish it by `python -m export`",
        )
    for version, spec in specs.items():
        if not (model_folder(path) / str(version)).is_dir():
            findings.warning(
                path,
                f"parameters.{spec_parameter(version)}",
                "its version is not there",
                "publish or prune again",
            )
        elif version in wanted:
            _check_tensors(config, path, spec, findings)
        _check_policy(config, path, version, spec, findings)


def _specs(config: pb.ModelConfig, path: Path, findings: Findings) -> dict[int, ModelSpec]:
    found = {}
    for key, value in config.parameters.items():
        number = key.removeprefix(spec_parameter(""))
        if number == key or not number.isdecimal():
            continue
        try:
            spec = ModelSpec.from_json(value.string_value)
        except ContractError as error:
            findings.error(
                path, f"parameters.{key}", f"no client can read it: {error}", "publish the version again"
            )
            continue
        if spec.version != int(number):
            findings.error(
                path,
                f"parameters.{key}",
                f"it says it is of version {spec.version}",
                "publish the version again",
            )
        found[int(number)] = spec
    return found


def _check_tensors(config: pb.ModelConfig, path: Path, spec: ModelSpec, findings: Findings) -> None:
    field = f"parameters.{spec_parameter(spec.version or 0)}"
    size = [spec.image.height, spec.image.width, 3]
    for tensor in config.input:
        if tensor.name == IMAGE_INPUT and list(tensor.dims) != size:
            findings.error(path, field, f"image {size}, but input dims {list(tensor.dims)}", "publish again")
    for tensor in config.output:
        if tensor.name == SCORES_OUTPUT and list(tensor.dims) != [len(spec.labels)]:
            findings.error(
                path,
                field,
                f"{len(spec.labels)} labels, but output dims {list(tensor.dims)}",
                "publish again",
            )


def _check_policy(
    config: pb.ModelConfig, path: Path, version: int, spec: ModelSpec, findings: Findings
) -> None:
    key = policy_parameter(version)
    if key not in config.parameters:
        return
    try:
        Policy.from_json(config.parameters[key].string_value).check_labels(spec.labels)
    except PolicyError as error:
        findings.error(path, f"parameters.{key}", str(error), "publish the version again")
        return
    if path.name != "config.pbtxt":
        return  # the same parameter stands there too
    findings.note(
        path,
        f"parameters.{key}",
        "thresholds are readable by everybody who may ask the server for its configuration",
        "publish with --no-carry-policy where they must not be",
    )
