"""Writes config.pbtxt as Triton's own protobuf message, with every field that the server would otherwise guess.

`cpu` is also the plain config.pbtxt, because it loads everywhere; `gpu` runs the graph through TensorRT in FP16 with the CUDA
provider behind it. The CUDA options stand in `parameters` and not in an accelerator block: the backend overwrites the block's
values with its defaults as soon as a model has any `parameters`, and ours always has (the spec).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from export.errors import RepositoryError, TargetError
from export.releases import fields_unknown_to
from export.serving import Serving
from export.session import CpuAccelerator
from moderation_client import ModelSpec, Policy
from moderation_client.contract import (
    ENCODED_INPUT,
    ENCODED_MODEL_NAME,
    IMAGE_INPUT,
    SCORES_OUTPUT,
    VERDICT_OUTPUT,
    policy_parameter,
    spec_parameter,
)

Accelerator = Literal["cpu", "gpu"]
HEADER = "# Written by `python -m export`. Change settings with `python -m export configure`, not here.\n"
INTERACTIVE, BACKFILL = 1, 2
"""Priority levels of a request; without one it is interactive."""
MAX_ENCODED_BATCH = 8
"""An instance decodes a batch one file after the other: a larger one only makes the first wait for the last."""
CPU_WARMUP_BATCH = 8
"""Images of the larger warm-up on a CPU. Nothing is compiled for a size there, and a replica that starts takes this time from its neighbours."""
HISTOGRAM = "nv_inference_first_response_histogram_ms"


def model_config(
    *,
    spec: ModelSpec,
    file_name: str,
    accelerator: Accelerator,
    serving: Serving,
    parameters: Mapping[str, str],
    warmup_file: str,
    target: str,
    cpu_accelerator: CpuAccelerator = "none",
) -> pb.ModelConfig:
    """Build the configuration of the model that takes pixels, for the version in `spec`. `serving` must be resolved."""
    size = [spec.image.height, spec.image.width, 3]
    config = pb.ModelConfig(name=spec.name, backend="onnxruntime", max_batch_size=serving.max_batch_size)
    config.default_model_filename = file_name
    config.input.add(name=IMAGE_INPUT, data_type=pb.TYPE_UINT8, dims=size, format=pb.ModelInput.FORMAT_NONE)
    config.output.add(name=SCORES_OUTPUT, data_type=pb.TYPE_FP32, dims=[len(spec.labels)])
    config.version_policy.specific.versions.append(_version_of(spec))
    _batching(config, serving)
    runtime = {"inter_op_thread_count": "1", "execution_mode": "0", "intra_op_thread_count": "1"}
    if accelerator == "cpu":
        config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=serving.instances)
        runtime["intra_op_thread_count"] = str(serving.threads)
        if cpu_accelerator != "none":
            config.optimization.execution_accelerators.cpu_execution_accelerator.add(name=cpu_accelerator)
    else:
        runtime |= _gpu(config, spec, serving, file_name)
    set_parameters(config, {**runtime, **parameters})
    largest = serving.max_batch_size
    _warmup(config, warmup_file, size, min(largest, CPU_WARMUP_BATCH) if accelerator == "cpu" else largest)
    _histogram(config, serving, target)
    return config


def _warmup(config: pb.ModelConfig, file_name: str, size: list[int], many: int) -> None:
    """One golden image alone and `many` times."""
    for name, batch_size in (("one", 1), ("many", many)):
        sample = config.model_warmup.add(name=name, batch_size=batch_size, count=1)
        sample.inputs[IMAGE_INPUT].data_type = pb.TYPE_UINT8
        sample.inputs[IMAGE_INPUT].dims.extend(size)
        sample.inputs[IMAGE_INPUT].input_data_file = file_name


def encoded_config(*, spec: ModelSpec, serving: Serving) -> pb.ModelConfig:
    """Build the configuration of the model that takes encoded files: own instances and own queue.

    The number of scores is left open, because it is that of whichever version of the other model answers.
    """
    config = pb.ModelConfig(
        name=ENCODED_MODEL_NAME,
        backend=ENCODED_MODEL_NAME,
        max_batch_size=min(MAX_ENCODED_BATCH, serving.max_batch_size),
    )
    config.input.add(name=ENCODED_INPUT, data_type=pb.TYPE_STRING, dims=[1])
    config.output.add(name=SCORES_OUTPUT, data_type=pb.TYPE_FP32, dims=[-1])
    config.output.add(name=VERDICT_OUTPUT, data_type=pb.TYPE_STRING, dims=[1])
    config.version_policy.specific.versions.append(1)
    _batching(config, serving)
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=serving.encoded_instances)
    set_parameters(config, {"model": spec.name})
    return config


def wire_parameters(specs: Mapping[int, ModelSpec], policies: Mapping[int, Policy]) -> dict[str, str]:
    """Specs and recommended policies of every version, as they travel in `parameters`."""
    return {
        **{spec_parameter(version): spec.to_json() for version, spec in specs.items()},
        **{policy_parameter(version): policy.to_json() for version, policy in policies.items()},
    }


def set_parameters(config: pb.ModelConfig, parameters: Mapping[str, str]) -> None:
    """Add string parameters to the message."""
    for key, value in parameters.items():
        config.parameters[key].string_value = value


def to_text(config: pb.ModelConfig) -> str:
    """Print as Triton reads it."""
    text: str = text_format.MessageToString(config, as_utf8=True)
    return HEADER + text


def read_config(path: Path) -> pb.ModelConfig:
    """Parse a config.pbtxt. Raises RepositoryError with the parser's words."""
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), pb.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise RepositoryError(f"{path} cannot be read: {error}") from error


def present_fields(message: Any, prefix: str = "") -> set[str]:
    """Paths of the fields that are set, `dynamic_batching.max_queue_delay_microseconds` for example."""
    found = set()
    for field, value in message.ListFields():
        path = f"{prefix}{field.name}"
        found.add(path)
        entry = field.message_type is not None and not field.message_type.GetOptions().map_entry
        if entry:
            for each in value if not hasattr(value, "ListFields") else (value,):
                found |= present_fields(each, f"{path}.")
    return found


def check_target(config: pb.ModelConfig, target: str) -> None:
    """Refuse fields that the target release cannot parse. Raises TargetError that names them."""
    unknown = fields_unknown_to(target)
    too_new = sorted(present_fields(config) & set(unknown))
    if too_new:
        since = ", ".join(f"{field} (since {unknown[field]})" for field in too_new)
        raise TargetError(f"the configuration has fields that Triton {target} does not know: {since}")


def _version_of(spec: ModelSpec) -> int:
    if spec.version is None:
        raise RepositoryError("a spec without a version cannot be served")
    return spec.version


def _batching(config: pb.ModelConfig, serving: Serving) -> None:
    """Two priorities, interactive before backfill, each with a bounded queue and a bounded wait."""
    batching = config.dynamic_batching
    batching.preferred_batch_size.append(config.max_batch_size)  # what the server fills in otherwise
    batching.max_queue_delay_microseconds = serving.max_queue_delay_us
    batching.priority_levels = BACKFILL
    batching.default_priority_level = INTERACTIVE
    interactive = {"size": serving.max_queue_size, "timeout_ms": serving.queue_timeout_ms}
    backfill = {"size": serving.backfill_queue_size, "timeout_ms": serving.backfill_timeout_ms}
    for policy, limits in (
        (batching.default_queue_policy, interactive),
        (batching.priority_queue_policy[INTERACTIVE], interactive),
        (batching.priority_queue_policy[BACKFILL], backfill),
    ):
        policy.timeout_action = pb.ModelQueuePolicy.REJECT
        policy.max_queue_size = limits["size"]
        policy.default_timeout_microseconds = limits["timeout_ms"] * 1000
        policy.allow_timeout_override = True


def _gpu(config: pb.ModelConfig, spec: ModelSpec, serving: Serving, file_name: str) -> dict[str, str]:
    """Instances and accelerator of a GPU; the CUDA provider's options, which stand in `parameters`."""
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_GPU, count=serving.gpu_instances)
    _tensorrt(config, spec, serving, file_name)
    return {"cudnn_conv_algo_search": "1", "arena_extend_strategy": "1"}


def _tensorrt(config: pb.ModelConfig, spec: ModelSpec, serving: Serving, file_name: str) -> None:
    """TensorRT in FP16; profiles cover every batch the server may form, caches survive a restart."""
    shapes = {
        batch: f"{IMAGE_INPUT}:{batch}x{spec.image.height}x{spec.image.width}x3"
        for batch in (1, max(1, serving.max_batch_size // 2), serving.max_batch_size)
    }
    smallest, usual, largest = (
        shapes[batch] for batch in (1, max(1, serving.max_batch_size // 2), max(shapes))
    )
    accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="tensorrt")
    options = {
        "precision_mode": "FP16",
        "max_workspace_size_bytes": str(1 << 30),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": serving.trt_cache,
        "trt_engine_cache_prefix": f"{spec.name}_{spec.files[file_name][:16]}",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": serving.trt_cache,
        "trt_profile_min_shapes": smallest,
        "trt_profile_opt_shapes": usual,
        "trt_profile_max_shapes": largest,
    }
    for key, value in options.items():
        accelerator.parameters[key] = value


def _histogram(config: pb.ModelConfig, serving: Serving, target: str) -> None:
    """Latency buckets that suit a classifier; left out where the target does not know the field."""
    if "model_metrics" in fields_unknown_to(target):
        return
    metric = config.model_metrics.metric_control.add()
    metric.metric_identifier.family = HISTOGRAM
    metric.histogram_options.buckets.extend(serving.latency_buckets_ms)
