"""The KServe v2 protocol as Triton speaks it, without any I/O: requests to bytes, answers to arrays.

Pixels are copied once, from the decoded images into the message: the protobuf head is serialised without them and the
raw tensor is appended as the field it is (concatenating serialised fields is how protobuf defines merging).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from moderation_client._errors import ContractError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One input: the batch in pieces that lie one behind the other."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    chunks: tuple[bytes | memoryview, ...]

    @property
    def num_bytes(self) -> int:
        """Size of the raw tensor."""
        return sum(len(chunk) if isinstance(chunk, bytes) else chunk.nbytes for chunk in self.chunks)


@dataclass(frozen=True, kw_only=True)
class InferRequest:
    """Scores for one batch."""

    model: str
    version: str
    tensor: Tensor
    outputs: tuple[str, ...]
    parameters: Mapping[str, int] = field(default_factory=dict)
    """Triton's request parameters: `timeout` (µs in the queue), `priority`."""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ConfigRequest:
    """The model's configuration, which carries spec and recommended policy."""

    model: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class HealthRequest:
    """Whether a model is ready, or (no model) whether the server answers at all."""

    model: str = ""
    version: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


Request = InferRequest | ConfigRequest | HealthRequest


@dataclass(frozen=True, kw_only=True)
class Output:
    """One output tensor as it came."""

    datatype: str
    shape: tuple[int, ...]
    data: bytes | memoryview


@dataclass(frozen=True, kw_only=True)
class InferReply:
    """The answer to an InferRequest."""

    model_name: str
    model_version: str
    outputs: Mapping[str, Output]


def varint(value: int) -> bytes:
    """Protobuf's variable-length integer."""
    pieces = bytearray()
    while value > 0x7F:
        pieces.append(value & 0x7F | 0x80)
        value >>= 7
    pieces.append(value)
    return bytes(pieces)


def encode_grpc(request: InferRequest) -> bytes:
    """Serialise a ModelInferRequest; the tensor's pieces are copied once."""
    from tritonclient.grpc import service_pb2  # noqa: PLC0415  heavy: only when the first request is sent

    message = service_pb2.ModelInferRequest(model_name=request.model, model_version=request.version)
    for name, value in request.parameters.items():
        message.parameters[name].int64_param = value
    tensor = request.tensor
    message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    for name in request.outputs:
        message.outputs.add(name=name)
    raw_field = service_pb2.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | 2
    return b"".join(
        (message.SerializeToString(), varint(raw_field), varint(tensor.num_bytes), *tensor.chunks)
    )


def decode_grpc(message: Any) -> InferReply:
    """Read a ModelInferResponse. Raises ContractError when tensors and their bytes do not pair up."""
    if len(message.raw_output_contents) != len(message.outputs):
        raise ContractError(
            f"answer of {message.model_name!r} has {len(message.outputs)} outputs "
            f"but {len(message.raw_output_contents)} raw tensors"
        )
    outputs = {
        tensor.name: Output(datatype=tensor.datatype, shape=tuple(tensor.shape), data=data)
        for tensor, data in zip(message.outputs, message.raw_output_contents, strict=True)
    }
    return InferReply(model_name=message.model_name, model_version=message.model_version, outputs=outputs)


def config_from_grpc(message: Any) -> dict[str, Any]:
    """Bring a ModelConfig message into the shape of Triton's JSON."""
    from tritonclient.grpc import model_config_pb2  # noqa: PLC0415  heavy: only with gRPC

    def tensors(items: Any) -> list[dict[str, Any]]:
        name_of = model_config_pb2.DataType.Name
        return [
            {"name": each.name, "data_type": name_of(each.data_type), "dims": list(each.dims)}
            for each in items
        ]

    return {
        "name": message.name,
        "max_batch_size": message.max_batch_size,
        "input": tensors(message.input),
        "output": tensors(message.output),
        "parameters": {
            key: {"string_value": value.string_value} for key, value in message.parameters.items()
        },
    }


def encode_http(request: InferRequest) -> tuple[bytes, dict[str, str]]:
    """Body and headers of Triton's binary tensor format: JSON first, then the raw tensor."""
    tensor = request.tensor
    head: dict[str, Any] = {
        "inputs": [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
                "parameters": {"binary_data_size": tensor.num_bytes},
            }
        ],
        "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in request.outputs],
    }
    if request.parameters:
        head["parameters"] = dict(request.parameters)
    text = json.dumps(head).encode()
    headers = {
        "Inference-Header-Content-Length": str(len(text)),
        "Content-Type": "application/octet-stream",
    }
    return b"".join((text, *tensor.chunks)), headers


def decode_http(body: bytes, head_length: str | None) -> InferReply:
    """Read the binary answer. Raises ContractError for anything that is not one."""
    try:
        length = int(head_length) if head_length is not None else len(body)
        head = json.loads(body[:length])
        outputs, offset = {}, length
        for tensor in head["outputs"]:
            size = int(tensor["parameters"]["binary_data_size"])
            data = memoryview(body)[offset : offset + size]
            outputs[tensor["name"]] = Output(
                datatype=tensor["datatype"], shape=tuple(int(dim) for dim in tensor["shape"]), data=data
            )
            offset += size
        return InferReply(
            model_name=head["model_name"], model_version=str(head["model_version"]), outputs=outputs
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ContractError(f"HTTP answer is not Triton's binary tensor format: {error!r}") from error


def scores_of(reply: InferReply, output: str, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Scores, float32 `shape` = [batch, num_labels], each a number in 0..1. Raises ContractError otherwise."""
    import numpy as np  # noqa: PLC0415  keeps `import moderation_client` quick

    tensor = reply.outputs.get(output)
    where = f"{reply.model_name!r} version {reply.model_version}"
    if tensor is None:
        raise ContractError(f"{where} answered without {output!r}; it has {sorted(reply.outputs)}")
    if tensor.datatype != "FP32" or tensor.shape != shape or len(tensor.data) != shape[0] * shape[1] * 4:
        raise ContractError(
            f"{where} answered {output!r} as {tensor.datatype} {list(tensor.shape)} in {len(tensor.data)} bytes, "
            f"expected FP32 {list(shape)}"
        )
    scores: NDArray[np.float32] = np.frombuffer(tensor.data, dtype="<f4").reshape(shape)
    if not bool(((scores >= 0.0) & (scores <= 1.0)).all()):  # NaN compares false: it is refused too
        raise ContractError(f"{where} answered {output!r} with values that are not 0..1")
    return scores


def pack_bytes(items: list[bytes]) -> tuple[bytes, ...]:
    """Triton's BYTES tensor: each element behind its length, four bytes little endian."""
    pieces: list[bytes] = []
    for item in items:
        pieces += (len(item).to_bytes(4, "little"), item)
    return tuple(pieces)


def unpack_bytes(reply: InferReply, output: str, num_items: int) -> list[bytes]:
    """Elements of a BYTES output. Raises ContractError unless there are `num_items` of them."""
    tensor = reply.outputs.get(output)
    if tensor is None or tensor.datatype != "BYTES":
        raise ContractError(f"{reply.model_name!r} answered without a BYTES output {output!r}")
    data, offset, items = bytes(tensor.data), 0, []
    while offset + 4 <= len(data):
        size = int.from_bytes(data[offset : offset + 4], "little")
        items.append(data[offset + 4 : offset + 4 + size])
        offset += 4 + size
    if offset != len(data) or len(items) != num_items:
        raise ContractError(
            f"{reply.model_name!r} answered {len(items)} items in {output!r}, not {num_items}"
        )
    return items
