"""LitServe with ONNX Runtime as a peer: batches of 8 after 5 ms at most, decoding shared by two threads, all cores in one session."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import litserve
import numpy as np
import tyro
from fastapi import Depends, Request
from numpy.typing import NDArray

from benchmarks.environment import num_cores
from benchmarks.in_process import open_session
from benchmarks.peers import to_answer, to_pixels
from moderation_client.contract import IMAGE_INPUT, SCORES_OUTPUT

BATCH_SIZE = 8
BATCH_TIMEOUT_S = 0.005


async def raw_body(request: Request) -> bytes:
    """Body as it is: LitServe itself takes JSON or forms only."""
    return await request.body()


class Api(litserve.LitAPI):  # type: ignore[misc]
    """Raw bodies in, JSON out."""

    def __init__(self, model: str) -> None:
        """Remember which ONNX file to load in the worker process."""
        super().__init__(max_batch_size=BATCH_SIZE, batch_timeout=BATCH_TIMEOUT_S)
        self.model = model

    def setup(self, device: str) -> None:  # noqa: ARG002  LitServe's signature
        """Load the model in the worker process."""
        self.session = open_session(Path(self.model), num_cores())
        self.pool = ThreadPoolExecutor(num_cores())

    def decode_request(self, request: Annotated[bytes, Depends(raw_body)]) -> bytes:
        """Leave decoding to the batch, where two threads share it."""
        return request

    def batch(self, inputs: list[bytes]) -> NDArray[np.uint8]:
        """Decode in parallel."""
        return np.concatenate(list(self.pool.map(to_pixels, inputs)))

    def predict(self, x: Any) -> Any:
        """Run the model."""
        return self.session.run([SCORES_OUTPUT], {IMAGE_INPUT: x})[0]

    def unbatch(self, output: Any) -> Any:
        """Give one row an image."""
        return list(output)

    def encode_response(self, output: Any) -> dict[str, Any]:
        """Make the answer."""
        return to_answer(output)


# LitServe compares the annotation itself, which `from __future__ import annotations` made a string
Api.decode_request.__annotations__["request"] = Annotated[bytes, Depends(raw_body)]


def main(model: Path, port: int) -> None:
    """Serve until killed.

    Args:
        model: ONNX file.
        port: Port on 127.0.0.1.
    """
    server = litserve.LitServer(Api(str(model.resolve())), accelerator="cpu", workers_per_device=1)
    server.run(port=port, host="127.0.0.1", generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    tyro.cli(main)
