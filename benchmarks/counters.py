"""Triton's counters of a model: what they are, and the two ways to read them.

The statistics call may be protected by a token; the Prometheus page has the same numbers, in microseconds.
"""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

TIMEOUT_S = 5.0
NAMES = {
    "nv_inference_request_success": "num_requests",
    "nv_inference_request_failure": "num_failed",
    "nv_inference_count": "num_images",
    "nv_inference_exec_count": "num_executions",
    "nv_inference_queue_duration_us": "queue_ns",
    "nv_inference_compute_input_duration_us": "compute_input_ns",
    "nv_inference_compute_infer_duration_us": "compute_infer_ns",
    "nv_inference_compute_output_duration_us": "compute_output_ns",
}
LINE = re.compile(r"^(\w+)\{([^}]*)\}\s+(\S+)$", re.MULTILINE)


class TargetError(Exception):
    """The server cannot be measured; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Counters of one model since it was loaded; nanoseconds are summed over requests."""

    num_requests: int = 0
    num_failed: int = 0
    num_images: int = 0
    num_executions: int = 0
    queue_ns: int = 0
    compute_input_ns: int = 0
    compute_infer_ns: int = 0
    compute_output_ns: int = 0

    def __sub__(self, before: Statistics) -> Statistics:
        """Give what happened since `before`."""
        return Statistics(
            **{name: getattr(self, name) - getattr(before, name) for name in self.__dataclass_fields__}
        )

    @property
    def mean_batch(self) -> float | None:
        """Images per execution: what dynamic batching really formed."""
        return self.num_images / self.num_executions if self.num_executions else None

    def mean_ms(self, part: str) -> float | None:
        """Mean time a request spent in `queue`, `compute_input`, `compute_infer` or `compute_output`."""
        total: int = getattr(self, f"{part}_ns")
        return total / self.num_requests / 1e6 if self.num_requests else None


def summed(models: Any) -> Statistics:
    """Sum the answer of Triton's statistics call (`model_stats`) over the versions that are loaded."""
    total: dict[str, int] = dict.fromkeys(Statistics.__dataclass_fields__, 0)
    for each in models:
        stats = each.inference_stats
        total["num_requests"] += stats.success.count
        total["num_failed"] += stats.fail.count
        total["num_images"] += each.inference_count
        total["num_executions"] += each.execution_count
        for part in ("queue", "compute_input", "compute_infer", "compute_output"):
            total[f"{part}_ns"] += getattr(stats, part).ns
    return Statistics(**total)


def parse_metrics(text: str, model: str) -> Statistics:
    """Counters of `model`, summed over versions and reasons of failure; microseconds become nanoseconds."""
    totals: dict[str, int] = {}
    for name, labels, value in LINE.findall(text):
        field = NAMES.get(name)
        if field is not None and f'model="{model}"' in labels:
            scale = 1000 if field.endswith("_ns") else 1
            totals[field] = totals.get(field, 0) + int(float(value) * scale)
    return Statistics(**totals)


def read_metrics(url: str, model: str) -> Statistics:
    """Fetch and parse the page at `host:port`. Raises TargetError."""
    try:
        with urllib.request.urlopen(f"http://{url}/metrics", timeout=TIMEOUT_S) as answer:
            text = answer.read().decode()
    except (OSError, urllib.error.URLError, ValueError) as error:
        raise TargetError(f"no metrics at {url!r}: {error}") from error
    return parse_metrics(text, model)
