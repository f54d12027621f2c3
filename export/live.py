"""A running server takes the published state, or everything goes back: explicit loads through Triton's repository API."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from export.errors import ProbeError, ServerError
from export.golden import OTHER_HARDWARE_TOLERANCE, check_golden
from export.swap import Swap
from export.version import Version
from moderation_client.contract import ENCODED_MODEL_NAME

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


@dataclass(kw_only=True)
class Follower:
    """Has one server follow one change of its repository, and back again."""

    live: LiveServer
    there: set[str] = field(default_factory=set)
    """Models that it had ready before the change."""
    told: list[str] = field(default_factory=list)
    """Models that it was told to load or to unload, in this order."""

    def look(self) -> None:
        """See what the server serves; afterwards it does not list a model whose folder is gone. Raises ServerError."""
        if self.live.server is not None:
            self.there = loaded_models(self.live)

    def take(self, version: Version, swap: Swap) -> None:
        """Have the server load what it serves of the new state and answer the golden images. Raises ServerError."""
        if self.live.server is None:
            return
        there = self.there & {ENCODED_MODEL_NAME}
        with self._client() as client:
            try:
                for name in (version.spec.name, *sorted(there - swap.removed())):
                    self._load(client, name)
                _wait_ready(client, version)
                check_golden(str(self.live.server), version, tolerance=OTHER_HARDWARE_TOLERANCE)
                for name in sorted(there & swap.removed()):
                    self._unload(client, name)
            except (InferenceServerException, ProbeError) as error:
                raise ServerError(
                    f"server {self.live.server} did not take version {version.number}: {error}"
                ) from error

    def go_back(self, swap: Swap) -> None:
        """After the swap was taken back: load the old files again, and unload what was not there before. Raises ServerError."""
        if not self.told:
            return
        with self._client() as client:
            try:
                for name in tuple(self.told):
                    (self._unload if name in swap.added() else self._load)(client, name)
            except InferenceServerException as error:
                raise ServerError(
                    f"server {self.live.server} takes neither the new version nor the old one: {error}"
                ) from error

    def _load(self, client: triton.InferenceServerClient, name: str) -> None:
        self.told.append(name)
        client.load_model(name, headers=self.live.headers(), client_timeout=LOAD_TIMEOUT_S)

    def _unload(self, client: triton.InferenceServerClient, name: str) -> None:
        self.told.append(name)
        client.unload_model(name, headers=self.live.headers(), client_timeout=LOAD_TIMEOUT_S)

    @contextlib.contextmanager
    def _client(self) -> Iterator[triton.InferenceServerClient]:
        with contextlib.closing(triton.InferenceServerClient(str(self.live.server))) as client:
            yield client


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
