"""Lint rules about one configuration by itself: batching, queues, instances, threads, parameters, accelerators, warm-up."""

from __future__ import annotations

from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from export.findings import Findings
from export.openvino import NAME as OPENVINO
from export.serving import MIN_INSTANCES

ORT_PARAMETERS = {
    "intra_op_thread_count",
    "inter_op_thread_count",
    "execution_mode",
    "enable_mem_arena",
    "enable_mem_pattern",
    "memory.enable_memory_arena_shrinkage",
    "session.use_device_allocator_for_initializers",
    "cudnn_conv_algo_search",
    "gpu_mem_limit",
    "arena_extend_strategy",
    "do_copy_in_default_stream",
}
"""Everything that the ONNX Runtime backend reads from `parameters` (onnxruntime.cc); it ignores other keys silently."""
OUR_PARAMETERS = ("spec.", "policy.")
OVERWRITTEN_CUDA_OPTIONS = {
    "cudnn_conv_algo_search",
    "gpu_mem_limit",
    "arena_extend_strategy",
    "do_copy_in_default_stream",
}
TENSORRT_PARAMETERS = {
    "precision_mode",
    "max_workspace_size_bytes",
    "int8_calibration_table_name",
    "int8_use_native_calibration_table",
    *(
        f"trt_{name}"
        for name in (
            "max_partition_iterations min_subgraph_size dla_enable dla_core engine_cache_enable engine_cache_path "
            "engine_cache_prefix dump_subgraphs force_sequential_engine_build context_memory_sharing_enable "
            "layer_norm_fp32_fallback timing_cache_enable timing_cache_path force_timing_cache detailed_build_log "
            "build_heuristics_enable sparsity_enable builder_optimization_level auxiliary_streams tactic_sources "
            "extra_plugin_lib_paths profile_min_shapes profile_max_shapes profile_opt_shapes cuda_graph_enable "
            "dump_ep_context_model ep_context_file_path ep_context_embed_mode"
        ).split()
    ),
}
"""Keys of the TensorRT accelerator block; there an unknown one is a load error (onnxruntime.cc)."""
CPU_KINDS = {pb.ModelInstanceGroup.KIND_CPU, pb.ModelInstanceGroup.KIND_AUTO}


def check_config(config: pb.ModelConfig, path: Path, cpus: int, findings: Findings) -> None:
    """Apply every rule of this file."""
    _check_name(config, path, findings)
    _check_batching(config, path, findings)
    _check_instances(config, path, findings)
    if is_onnx(config):
        _check_threads(config, path, cpus, findings)
        _check_parameters(config, path, findings)
        _check_accelerators(config, path, findings)
    _check_warmup(config, path, findings)
    if config.response_cache.enable:
        findings.warning(
            path,
            "response_cache",
            "the cache compares 64-bit hashes only: a collision returns another image's answer",
            "cache outside, by SHA-256 of the bytes with model and policy version",
        )


def is_onnx(config: pb.ModelConfig) -> bool:
    """Whether the ONNX Runtime backend runs it."""
    return "onnxruntime" in {config.backend, config.platform.removesuffix("_onnx")}


def model_folder(path: Path) -> Path:
    """Folder of the model that a configuration file belongs to."""
    return path.parent.parent if path.parent.name == "configs" else path.parent


def threads_of(config: pb.ModelConfig) -> int:
    """Count the inference threads of all CPU instances; 0 where the backend is not ONNX Runtime."""
    if not is_onnx(config):
        return 0
    each = _integer(_parameter(config, "intra_op_thread_count"))
    return max(each, 1) * sum(group.count or 2 for group in config.instance_group if group.kind in CPU_KINDS)


def _parameter(config: pb.ModelConfig, key: str) -> str:
    """Value of a parameter, or nothing; looking one up in a protobuf map that lacks it would put it there."""
    return str(config.parameters[key].string_value) if key in config.parameters else ""


def _integer(text: str) -> int:
    return int(text) if text.lstrip("-").isdecimal() else 0


def _check_name(config: pb.ModelConfig, path: Path, findings: Findings) -> None:
    folder = model_folder(path).name
    if config.name and config.name != folder:
        findings.error(
            path,
            "name",
            f"{config.name!r} is not the folder's name {folder!r}: Triton does not load it",
            "rename one",
        )
    if not config.backend and not config.platform:
        findings.error(
            path, "backend", "neither backend nor platform is given", 'write backend: "onnxruntime"'
        )
    missing = [name for name, values in (("input", config.input), ("output", config.output)) if not values]
    if missing and config.platform != "ensemble":
        findings.warning(
            path,
            " and ".join(missing),
            "not given, so auto-complete fills in this and more: max_batch_size 0 becomes 4 and batching is switched on",
            "list all inputs and outputs",
        )


def _check_batching(config: pb.ModelConfig, path: Path, findings: Findings) -> None:
    if not config.HasField("dynamic_batching"):
        return
    batching = config.dynamic_batching
    if config.max_batch_size == 0:
        findings.error(
            path, "dynamic_batching", "max_batch_size is 0, so nothing can be batched", "set max_batch_size"
        )
    too_large = [size for size in batching.preferred_batch_size if size > config.max_batch_size]
    if too_large and config.max_batch_size:
        findings.error(
            path,
            "dynamic_batching.preferred_batch_size",
            f"{too_large[0]} is above max_batch_size {config.max_batch_size}: Triton refuses the file",
            "lower it",
        )
    _check_queues(config, path, findings)


def _check_queues(config: pb.ModelConfig, path: Path, findings: Findings) -> None:
    batching = config.dynamic_batching
    policies = {"default_queue_policy": batching.default_queue_policy}
    policies |= {
        f"priority_queue_policy[{key}]": each for key, each in batching.priority_queue_policy.items()
    }
    for name, policy in policies.items():
        if not policy.max_queue_size:
            findings.warning(
                path,
                f"dynamic_batching.{name}.max_queue_size",
                "unlimited: under overload the queue and every caller's wait grow without bound",
                "set it to what can be answered within the callers' deadline",
            )
        if not policy.default_timeout_microseconds:
            findings.warning(
                path,
                f"dynamic_batching.{name}.default_timeout_microseconds",
                "none: requests whose callers have given up are still worked on",
                "set it to the longest wait a caller accepts",
            )


def _check_instances(config: pb.ModelConfig, path: Path, findings: Findings) -> None:
    if config.instance_group and all(group.passive for group in config.instance_group):
        findings.error(
            path,
            "instance_group.passive",
            "every instance is passive: a request crashes the server",
            "drop passive",
        )
    if not config.instance_group and config.platform != "ensemble":
        findings.warning(
            path,
            "instance_group",
            "not given: Triton runs 2 instances of an ONNX model on a CPU and 1 on each GPU",
            "write kind and count",
        )
    for group in config.instance_group:
        if is_onnx(config) and group.kind in CPU_KINDS and group.count < 1:
            findings.warning(
                path, "instance_group.count", "not given: Triton runs 2 instances on a CPU", "write the count"
            )
    num_instances = sum(_count(config, group) for group in config.instance_group)
    if num_instances == 1 and _has_limits(config.dynamic_batching):
        findings.warning(
            path,
            "instance_group.count",
            "a single instance whose queue has limits or priorities lets requests wait half a second (seen on Triton 24.10)",
            f"write {MIN_INSTANCES}, or drop limits and priorities",
        )


def _count(config: pb.ModelConfig, group: pb.ModelInstanceGroup) -> int:
    """Instances of a group; without a count, what Triton runs then."""
    usual = 2 if is_onnx(config) and group.kind in CPU_KINDS else 1
    return (group.count or usual) * max(1, len(group.gpus))


def _has_limits(batching: pb.ModelDynamicBatching) -> bool:
    policies = [batching.default_queue_policy, *batching.priority_queue_policy.values()]
    return batching.priority_levels > 0 or any(each.ListFields() for each in policies)


def _check_threads(config: pb.ModelConfig, path: Path, cpus: int, findings: Findings) -> None:
    groups = [group for group in config.instance_group if group.kind in CPU_KINDS]
    instances = sum(group.count or 2 for group in groups)
    if not instances:
        return
    text = _parameter(config, "intra_op_thread_count")
    if _integer(text) <= 0:
        findings.warning(
            path,
            "parameters.intra_op_thread_count",
            f"not given: each of {instances} instances starts a thread for every core of the machine, whatever the container may use",
            f"set it so that instances x threads is at most {cpus}, or each of two instances has {cpus}",
        )
    elif instances * _integer(text) > cpus and (instances > MIN_INSTANCES or _integer(text) > cpus):
        findings.warning(
            path,
            "parameters.intra_op_thread_count",
            f"{instances} instances x {text} threads are more than {cpus} CPUs: they take turns and all get slower",
            "lower one of the two",
        )


def _check_parameters(config: pb.ModelConfig, path: Path, findings: Findings) -> None:
    for key, value in config.parameters.items():
        known = key in ORT_PARAMETERS or key.startswith(OUR_PARAMETERS)
        if not known:
            findings.warning(
                path,
                f"parameters.{key}",
                "the ONNX Runtime backend does not read it and does not say so",
                f"drop it; it reads {', '.join(sorted(ORT_PARAMETERS)[:3])}, ...",
            )
        counted = key in {"intra_op_thread_count", "inter_op_thread_count", "execution_mode"}
        if counted and not value.string_value.lstrip("+- ")[:1].isdecimal():
            findings.error(
                path, f"parameters.{key}", f"{value.string_value!r} is not a number", "write a whole number"
            )


def _check_accelerators(config: pb.ModelConfig, path: Path, findings: Findings) -> None:
    for each in config.optimization.execution_accelerators.cpu_execution_accelerator:
        if each.name != OPENVINO:
            field = f"optimization.execution_accelerators.{each.name}"
            findings.error(path, field, "the ONNX Runtime backend has no such accelerator", "use openvino")
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    for each in accelerators:
        field = f"optimization.execution_accelerators.{each.name}"
        if each.name not in {"tensorrt", "cuda"}:
            findings.error(
                path, field, "the ONNX Runtime backend has no such accelerator", "use tensorrt or cuda"
            )
        for key in sorted(set(each.parameters) - TENSORRT_PARAMETERS) if each.name == "tensorrt" else []:
            findings.error(
                path, f"{field}.{key}", "unknown: the backend refuses to load the model", "drop it"
            )
        overwritten = sorted(set(each.parameters) & OVERWRITTEN_CUDA_OPTIONS) if each.name == "cuda" else []
        if overwritten and config.parameters:
            findings.warning(
                path,
                f"{field}.{overwritten[0]}",
                "the backend overwrites it with its default as soon as the model has any `parameters`",
                f"write {overwritten[0]} into `parameters` instead",
            )
        cached = each.parameters.get("trt_engine_cache_enable", "0").lower() in {"1", "true"}
        if each.name == "tensorrt" and not cached:
            findings.warning(
                path,
                field,
                "without an engine cache every start builds engines for minutes",
                "enable the cache",
            )


def _check_warmup(config: pb.ModelConfig, path: Path, findings: Findings) -> None:
    if config.platform == "ensemble" and config.model_warmup:
        findings.error(path, "model_warmup", "an ensemble cannot have one", "move it to the models inside")
    if is_onnx(config) and not config.model_warmup:
        findings.warning(
            path, "model_warmup", "none: the first callers pay for what is set up lazily", "add samples"
        )
    for sample in config.model_warmup:
        if sample.batch_size > max(config.max_batch_size, 1):
            findings.error(
                path,
                f"model_warmup[{sample.name}].batch_size",
                f"{sample.batch_size} is above max_batch_size: the load fails",
                "lower it",
            )
        for each in sample.inputs.values():
            file = model_folder(path) / "warmup" / each.input_data_file
            if each.input_data_file and not file.is_file():
                findings.error(
                    path, f"model_warmup[{sample.name}]", f"{file.name} is not in warmup/", "add the file"
                )
