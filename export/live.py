"""A running server takes the published state, or everything goes back: explicit loads through Triton's repository API."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from export.errors import ProbeError, ServerError
from export.golden import OTHER_HARDWARE_TOLERANCE, check_golden
from export.version import Version

TOKEN_HEADER = "triton-grpc-protocol-moderation-admin"  # noqa: S105 - the header's name, as `python -m serve` sets it up
LOAD_TIMEOUT_S = 600.0
"""A GPU may build its TensorRT engine while it loads."""


@dataclass(frozen=True, kw_only=True)
class LiveServer:
    """The server that is to take what is published."""

    server: str | None = None
    """gRPC address (host:port) of a running server on this repository; without one, files are all that changes."""
    token_file: Path | None = None
    """File with the token of its repository API, as `python -m serve` prints it."""

    def headers(self) -> dict[str, str]:
        """Headers that open the repository API."""
        try:
            return {TOKEN_HEADER: self.token_file.read_text().strip()} if self.token_file else {}
        except OSError as error:
            raise ServerError(f"token file {self.token_file} cannot be read: {error.strerror}") from error


def load(live: LiveServer, names: Sequence[str], version: Version) -> None:
    """Have the server load the models and answer the golden images. Raises ServerError."""
    assert live.server is not None
    client = triton.InferenceServerClient(live.server)
    try:
        for name in names:
            client.load_model(name, headers=live.headers(), client_timeout=LOAD_TIMEOUT_S)
        _wait_ready(client, version)
        check_golden(live.server, version, tolerance=OTHER_HARDWARE_TOLERANCE)
    except (InferenceServerException, ProbeError) as error:
        raise ServerError(f"server {live.server} did not take version {version.number}: {error}") from error
    finally:
        client.close()


def loaded_models(live: LiveServer) -> set[str]:
    """Names of the models that the server has ready. Raises ServerError."""
    assert live.server is not None
    client = triton.InferenceServerClient(live.server)
    try:
        index = client.get_model_repository_index(headers=live.headers(), client_timeout=30.0)
    except InferenceServerException as error:
        raise ServerError(f"server {live.server} does not answer: {error}") from error
    finally:
        client.close()
    return {each.name for each in index.models if each.state == "READY"}


def _wait_ready(client: triton.InferenceServerClient, version: Version) -> None:
    deadline = time.monotonic() + 30.0
    while not client.is_model_ready(version.spec.name, str(version.number)):
        if time.monotonic() > deadline:
            raise ServerError(f"version {version.number} did not become ready")
        time.sleep(0.05)
