"""How export runs an ONNX file in process: on the CPU, few threads, batches of a stated size."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from export.errors import GraphError
from export.openvino import add_openvino
from export.source import Pixels, Scores
from moderation_client.contract import IMAGE_INPUT, SCORES_OUTPUT

if TYPE_CHECKING:
    import onnxruntime

EXACT_INT8 = "session.x64quantprecision"
"""Session entry: CPUs without VNNI multiply INT8 with an instruction that overflows (scores of the demo were off by up to 0.85); "1" makes them take another.
Nothing changes on other CPUs."""
CpuAccelerator = Literal["none", "openvino"]
"""What runs a model on the CPU: ONNX Runtime's own code, or Intel's OpenVINO behind it."""


def cpu_quota() -> int:
    """Whole CPUs that this process may use: affinity and cgroup quota (v2 or v1), at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, int(_cgroup_quota() or allowed)))


def _cgroup_quota() -> float | None:
    v2, v1 = Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu")
    try:
        if v2.exists():
            quota, period = v2.read_text().split()
        else:
            quota, period = ((v1 / f"cpu.cfs_{each}_us").read_text().strip() for each in ("quota", "period"))
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError):
        return None  # no cgroup, or one of a form we do not know: affinity alone counts


def open_session(
    path: Path, *, threads: int = 0, accelerator: CpuAccelerator = "none"
) -> onnxruntime.InferenceSession:
    """Load an ONNX file on the CPU. Raises GraphError with ONNX Runtime's words, or for an accelerator that is not installed."""
    import onnxruntime  # noqa: PLC0415 - pull and configure run in an image that has no Python onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or cpu_quota()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry(EXACT_INT8, "1")
    providers = ["CPUExecutionProvider"]
    if accelerator == "openvino":
        add_openvino(options)
        providers = []  # those of the options
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        raise GraphError(
            f"{path.name} does not load in ONNX Runtime {onnxruntime.__version__}: {error}"
        ) from error


def run(session: onnxruntime.InferenceSession, pixels: Pixels, *, batch: int) -> Scores:
    """Score uint8 [N, H, W, 3] in batches of `batch` (the last may be smaller); float32 [N, num_labels]."""
    parts = [
        session.run([SCORES_OUTPUT], {IMAGE_INPUT: np.ascontiguousarray(pixels[start : start + batch])})[0]
        for start in range(0, len(pixels), batch)
    ]
    return np.concatenate(parts)


def time_batch_ms(session: onnxruntime.InferenceSession, pixels: Pixels, *, repeats: int = 7) -> float:
    """Median time of one run over `pixels`, milliseconds, after one run to warm up."""
    run(session, pixels, batch=len(pixels))
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run(session, pixels, batch=len(pixels))
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)
