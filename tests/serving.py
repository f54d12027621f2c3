"""What tests of the server share: one call for scores, one for verdicts, and pictures of one colour."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tritonclient import grpc as triton_grpc

from tests.small_model import SIZE


def coloured(*colours: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Pictures of one colour each, uint8 [N, SIZE, SIZE, 3]."""
    pixels = np.zeros((len(colours), SIZE, SIZE, 3), dtype=np.uint8)
    for picture, colour in zip(pixels, colours, strict=True):
        picture[:] = colour
    return pixels


def png(colour: tuple[int, ...], *, mode: str = "RGB", size: tuple[int, int] = (40, 40)) -> bytes:
    """A PNG file of one colour."""
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def infer(
    grpc_url: str, pixels: NDArray[np.uint8], *, version: str = "", timeout_s: float = 20.0
) -> NDArray[np.float32]:
    """Scores float32 [N, num_labels] of a batch [N, H, W, 3]."""
    tensor = triton_grpc.InferInput("image", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    with triton_grpc.InferenceServerClient(grpc_url) as client:
        answer = client.infer("moderation", [tensor], model_version=version, client_timeout=timeout_s)
    return np.asarray(answer.as_numpy("scores"))


def judge(
    grpc_url: str, files: list[bytes], *, request_id: str = "", timeout_s: float = 30.0
) -> tuple[NDArray[np.float32], list[dict[str, Any]]]:
    """Scores and verdicts of files, by `moderation_encoded`."""
    tensor = triton_grpc.InferInput("encoded", [len(files), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[each] for each in files], dtype=np.object_))
    with triton_grpc.InferenceServerClient(grpc_url) as client:
        answer = client.infer("moderation_encoded", [tensor], request_id=request_id, client_timeout=timeout_s)
    return np.asarray(answer.as_numpy("scores")), [json.loads(row[0]) for row in answer.as_numpy("verdict")]


def eventually(holds: Callable[[], Any], *, timeout_s: float = 20.0, what: str = "condition") -> Any:
    """Wait until `holds()` is true; a guard against hanging, not a measurement."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = holds()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come about within {timeout_s} s")
