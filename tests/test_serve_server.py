"""The real server on the small repository: it answers with the model's scores, forms batches, and leaves nothing behind."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient import grpc as triton_grpc

from serve.server import TritonServer
from tests.small_model import SIZE, expected_scores


def infer(server: TritonServer, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Scores of a batch [N, H, W, 3]."""
    with triton_grpc.InferenceServerClient(server.grpc_url) as client:
        tensor = triton_grpc.InferInput("image", list(pixels.shape), "UINT8")
        tensor.set_data_from_numpy(pixels)
        return np.asarray(client.infer("moderation", [tensor], client_timeout=20.0).as_numpy("scores"))


@pytest.mark.parametrize("num_images", [1, 3, 8])
def test_served_scores_are_the_models(triton: TritonServer, num_images: int) -> None:
    """The server's scores are those that the pictures' colours ask for, in every batch size."""
    pixels = np.random.default_rng(num_images).integers(0, 256, (num_images, SIZE, SIZE, 3), dtype=np.uint8)
    assert infer(triton, pixels) == pytest.approx(expected_scores(pixels), abs=1e-5)
