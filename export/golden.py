"""Asks a Triton server to score golden images, and compares its answers and its view of the configuration with what was published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from google.protobuf import json_format
from tritonclient.utils import InferenceServerException

from export.config_pbtxt import read_config
from export.errors import ProbeError
from export.source import Scores
from export.version import Version
from moderation_client.contract import IMAGE_INPUT, SCORES_OUTPUT

TOLERANCE = 1e-4
"""Largest difference of a golden score between the server and the file run here; same file, same arithmetic."""
OTHER_HARDWARE_TOLERANCE = 0.05
"""The same where the server runs on another machine: other instructions round INT8 differently."""


def check_golden(
    url: str, version: Version, *, tolerance: float = TOLERANCE, timeout_s: float = 30.0
) -> float:
    """Send two of the golden images alone and all of them in the largest batches, and compare. Returns the largest difference.

    What is expected are the scores of the file that the server says it runs: on a GPU that is another one than on a CPU.
    Raises ProbeError when the server refuses, another version answers, or a score is off by more than `tolerance`.
    """
    client = triton.InferenceServerClient(url)
    try:
        largest = _largest_difference(client, version, timeout_s)
    except InferenceServerException as error:
        raise ProbeError(f"the server did not answer the golden images: {error}") from error
    finally:
        client.close()
    if not largest <= tolerance:
        raise ProbeError(
            f"the server's golden scores differ by {largest:.3g} from version {version.number} as it was measured, "
            f"more than {tolerance:g}"
        )
    return largest


def _largest_difference(client: triton.InferenceServerClient, version: Version, timeout_s: float) -> float:
    golden = version.golden()
    config = client.get_model_config(version.spec.name).config
    expected = _expected(version, config.default_model_filename)
    batch, largest = max(1, config.max_batch_size), 0.0
    whole = [(start, min(start + batch, len(golden))) for start in range(0, len(golden), batch)]
    for start, stop in [(0, 1), (1, 2), *whole]:
        part = triton.InferInput(IMAGE_INPUT, golden[start:stop].shape, "UINT8")
        part.set_data_from_numpy(golden[start:stop])
        answer = client.infer(version.spec.name, [part], client_timeout=timeout_s)
        _check_version(answer.get_response().model_version, version)
        difference = np.abs(answer.as_numpy(SCORES_OUTPUT) - expected[start:stop])
        largest = max(largest, float(np.nan_to_num(difference, nan=np.inf).max(initial=0.0)))
    return largest


def _expected(version: Version, file_name: str) -> Scores:
    """Golden scores of the file that answers, float32 [N, num_labels]."""
    found = version.golden_scores.get(file_name or version.cpu_file)
    if found is None:
        raise ProbeError(
            f"the server runs {file_name!r}, which version {version.number} has no golden scores for; "
            f"it has {', '.join(sorted(version.golden_scores))}"
        )
    return found


def _check_version(answered: str, version: Version) -> None:
    if answered != str(version.number):
        raise ProbeError(f"version {answered} answered where version {version.number} was expected")


def check_config(url: str, name: str, path: Path) -> None:
    """Compare the server's own view of the configuration with the file. Raises ProbeError that names the fields."""
    client = triton.InferenceServerClient(url)
    try:
        seen = client.get_model_config(name).config
    except InferenceServerException as error:
        raise ProbeError(f"the server does not tell its configuration of {name!r}: {error}") from error
    finally:
        client.close()
    ours, theirs = _plain(read_config(path)), _plain(seen)
    differing = sorted(key for key in ours | theirs if ours.get(key) != theirs.get(key))
    if differing:
        raise ProbeError(
            f"the server's configuration of {name!r} differs from {path} in: {', '.join(differing)}"
        )


def _plain(config: Any) -> dict[str, Any]:
    """Flatten to comparable values; what Triton fills in for every model (names of instance groups) is left out."""
    found: dict[str, Any] = json.loads(json_format.MessageToJson(config, preserving_proto_field_name=True))
    found.pop("platform", None)
    found.pop("runtime", None)  # which library or program stands behind `backend` is the server's own affair
    for group in found.get("instance_group", []):
        group.pop("name", None)
    optimization = found.pop("optimization", {})  # Triton adds its defaults for pinned memory to it
    found |= {
        f"optimization.{key}": optimization[key]
        for key in ("execution_accelerators", "graph", "cuda")
        if optimization.get(key)
    }
    return found
