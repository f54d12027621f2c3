"""The server under test: whether it is there, what it serves, and what its own statistics say of a window of time.

Every failure to reach it is a `TargetError` that names the address or the model and the way out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import grpc
from google.protobuf import json_format
from tritonclient.grpc import service_pb2, service_pb2_grpc

from benchmarks.counters import Statistics, TargetError, read_metrics, summed
from moderation_client import ContractError, ModelSpec
from moderation_client.contract import (
    ENCODED_INPUT,
    ENCODED_MODEL_NAME,
    IMAGE_INPUT,
    MODEL_NAME,
    SCORES_OUTPUT,
    spec_parameter,
)

TIMEOUT_S = 10.0
UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where the server is and which model to measure; small enough to be sent to another process."""

    url: str
    """host:port of the gRPC endpoint."""
    model: str = MODEL_NAME
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent with administrative calls: statistics may be protected."""
    metrics_url: str | None = None
    """host:port of the metrics, read instead when the statistics call is refused."""

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """Headers as gRPC wants them."""
        return [(key.lower(), value) for key, value in self.headers.items()]


class Target:
    """A live server with the model loaded."""

    def __init__(self, address: Address) -> None:
        """Connect and read the model's configuration. Raises TargetError."""
        self.address = address
        self._channel = grpc.insecure_channel(address.url, options=UNLIMITED)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        try:
            self.server = self._server()
            self.config = self._config()
        except BaseException:
            self._channel.close()
            raise

    def _call(self, name: str, request: Any) -> Any:
        return getattr(self._stub, name)(request, timeout=TIMEOUT_S, metadata=self.address.metadata)

    def _server(self) -> dict[str, str]:
        try:
            found = self._call("ServerMetadata", service_pb2.ServerMetadataRequest())
        except (grpc.RpcError, ValueError) as error:
            raise TargetError(
                f"no Triton server answers gRPC at {self.address.url!r} ({_reason(error)}); start one with "
                "`python -m serve`, give its gRPC address (port 8001 by default) with --url, or let --serve start one"
            ) from error
        return {"name": found.name, "version": found.version}

    def _config(self) -> Any:
        name = self.address.model
        try:
            return self._call("ModelConfig", service_pb2.ModelConfigRequest(name=name)).config
        except grpc.RpcError as error:
            raise TargetError(
                f"the server at {self.address.url!r} does not serve model {name!r} ({_reason(error)}); it serves: "
                f"{', '.join(self._models()) or 'nothing'}"
            ) from error

    def _models(self) -> list[str]:
        try:
            index = self._call("RepositoryIndex", service_pb2.RepositoryIndexRequest(ready=True))
        except grpc.RpcError as error:
            return [f"unknown ({_reason(error)})"]
        return sorted({each.name for each in index.models})

    @property
    def version(self) -> str:
        """Version that answers when none is asked for: the newest that is ready."""
        request = service_pb2.ModelMetadataRequest(name=self.address.model)
        versions = self._call("ModelMetadata", request).versions
        return str(max(versions, key=int)) if versions else ""

    @property
    def spec(self) -> ModelSpec:
        """Spec that travels with the version that answers. Raises TargetError."""
        key = spec_parameter(self.version)
        if key not in self.config.parameters:
            raise TargetError(
                f"model {self.address.model!r} carries no {key!r}: it was not exported by this project, so its image "
                "size is unknown; measure a repository written by `python -m export`"
            )
        try:
            return ModelSpec.from_json(self.config.parameters[key].string_value)
        except ContractError as error:
            raise TargetError(f"model {self.address.model!r}: {error}") from error

    @property
    def model(self) -> dict[str, str]:
        """What a result file must say of the model: name, version, file and hashes of weights and configuration."""
        file = self.config.default_model_filename or "model.onnx"
        text = json_format.MessageToJson(self.config, sort_keys=True)
        found = {
            "name": self.address.model,
            "version": self.version,
            "file": file,
            "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "instances": " + ".join(str(group.count) for group in self.config.instance_group),
            "max_batch_size": str(self.config.max_batch_size),
        }
        threads = self.config.parameters.get("intra_op_thread_count")
        if threads is not None:
            found["intra_op_threads"] = threads.string_value
        digest = self.spec.files.get(file) if self.address.model == MODEL_NAME else None
        return {**found, "model_sha256": digest} if digest else found

    def statistics(self) -> Statistics:
        """Counters now. Raises TargetError when the server does not give them."""
        request = service_pb2.ModelStatisticsRequest(name=self.address.model)
        try:
            models = self._call("ModelStatistics", request).model_stats
        except grpc.RpcError as error:
            if self.address.metrics_url is not None:
                return read_metrics(self.address.metrics_url, self.address.model)
            raise TargetError(f"the server does not give its statistics ({_reason(error)})") from error
        return summed(models)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Target:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self.close()


def _reason(error: Exception) -> str:
    if isinstance(error, grpc.RpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error)


def pixel_message(pixels: Any, model: str = MODEL_NAME) -> bytes:
    """Serialise a request for uint8 pixels [num_images, height, width, 3]."""
    return _message(model, IMAGE_INPUT, "UINT8", list(pixels.shape), pixels.tobytes())


def encoded_message(files: list[bytes], model: str = ENCODED_MODEL_NAME) -> bytes:
    """Serialise a request for encoded files."""
    content = b"".join(len(file).to_bytes(4, "little") + file for file in files)
    return _message(model, ENCODED_INPUT, "BYTES", [len(files), 1], content)


def _message(model: str, name: str, datatype: str, shape: list[int], content: bytes) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[content])
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    request.outputs.add(name=SCORES_OUTPUT)
    return bytes(request.SerializeToString())
