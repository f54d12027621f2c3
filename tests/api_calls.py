"""Every call that a Triton server offers, over HTTP and gRPC, and what became of it: answered, refused, or not there.

gRPC's methods come from the service's own description, so that none is forgotten; HTTP's paths are those of Triton's extensions.
"answered" means that somebody listened, even if only to say that the arguments make no sense.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import httpx
from tritonclient.grpc import service_pb2

ANSWERED, REFUSED, ABSENT = "answered", "refused", "not there"
SERVICE = "inference.GRPCInferenceService"
MODEL = "/v2/models/moderation"
HTTP_CALLS = (
    ("GET", "/v2/health/live"),
    ("GET", "/v2/health/ready"),
    ("GET", "/v2"),
    ("GET", MODEL),
    ("GET", f"{MODEL}/ready"),
    ("GET", f"{MODEL}/versions/1"),
    ("GET", f"{MODEL}/versions/1/ready"),
    ("GET", f"{MODEL}/config"),
    ("GET", f"{MODEL}/versions/1/config"),
    ("POST", f"{MODEL}/infer"),
    ("POST", f"{MODEL}/versions/1/infer"),
    ("POST", f"{MODEL}/generate"),
    ("POST", f"{MODEL}/generate_stream"),
    ("POST", f"{MODEL}/versions/1/generate"),
    ("POST", f"{MODEL}/versions/1/generate_stream"),
    ("GET", f"{MODEL}/stats"),
    ("GET", f"{MODEL}/versions/1/stats"),
    ("GET", "/v2/models/stats"),
    ("POST", "/v2/repository/index"),
    ("POST", "/v2/repository/models/nothing/load"),
    ("POST", "/v2/repository/models/nothing/unload"),
    ("GET", "/v2/trace/setting"),
    ("POST", "/v2/trace/setting"),
    ("GET", f"{MODEL}/trace/setting"),
    ("POST", f"{MODEL}/trace/setting"),
    ("GET", "/v2/logging"),
    ("POST", "/v2/logging"),
    ("GET", "/v2/systemsharedmemory/status"),
    ("GET", "/v2/systemsharedmemory/region/x/status"),
    ("POST", "/v2/systemsharedmemory/region/x/register"),
    ("POST", "/v2/systemsharedmemory/region/x/unregister"),
    ("POST", "/v2/systemsharedmemory/unregister"),
    ("GET", "/v2/cudasharedmemory/status"),
    ("GET", "/v2/cudasharedmemory/region/x/status"),
    ("POST", "/v2/cudasharedmemory/region/x/register"),
    ("POST", "/v2/cudasharedmemory/region/x/unregister"),
    ("POST", "/v2/cudasharedmemory/unregister"),
    ("GET", "/metrics"),
)
NOT_SERVED = ("", '{"error":"Not Found"}')
RESTRICTED = "is restricted, expecting header"


def grpc_calls() -> tuple[str, ...]:
    """Names of all methods, the standard health check last."""
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    return (*(f"{SERVICE}/{method.name}" for method in service.methods), "grpc.health.v1.Health/Check")


def call_http(http: httpx.Client, method: str, path: str, headers: Mapping[str, str]) -> str:
    """Outcome of one call."""
    content = b"{}" if method == "POST" else None
    with http.stream(method, path, headers=dict(headers), content=content) as answer:
        text = answer.read().decode("utf-8", "replace")
    if answer.status_code == httpx.codes.FORBIDDEN:
        return REFUSED
    # Triton says what is wrong with a call's arguments; for an address that it does not serve it has one word or none
    missing = answer.status_code in (400, 404) and text.strip() in NOT_SERVED
    return ABSENT if missing else ANSWERED


def call_grpc(channel: grpc.Channel, name: str, headers: Mapping[str, str]) -> str:
    """Outcome of one call; streams are sent one message."""
    message, stream = _message(name)
    metadata = [(key.lower(), value) for key, value in headers.items()]
    try:
        if stream:
            invoke = channel.stream_stream(f"/{name}", None, None)
            next(iter(invoke(iter([message]), timeout=10.0, metadata=metadata)), None)
        else:
            channel.unary_unary(f"/{name}", None, None)(message, timeout=10.0, metadata=metadata)
    except grpc.RpcError as error:
        return _outcome(error)
    return ANSWERED


def _outcome(error: Any) -> str:
    code, details = error.code(), str(error.details())
    if RESTRICTED in details or code is grpc.StatusCode.PERMISSION_DENIED:
        return REFUSED
    unknown = code is grpc.StatusCode.UNIMPLEMENTED and not details.strip()
    lost = code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    return ABSENT if unknown else f"{code.name}: {details}" if lost else ANSWERED


def _message(name: str) -> tuple[bytes, bool]:
    """Smallest message of a method, about our model where there is nothing to break, and whether it is a stream."""
    method = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name.get(
        name.rpartition("/")[2]
    )
    if method is None:
        return b"", False
    request = getattr(service_pb2, method.input_type.name)()
    if method.name in ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"):
        request.name = "moderation"
    elif method.name in ("RepositoryModelLoad", "RepositoryModelUnload"):
        request.model_name = "nothing"
    elif "Infer" in method.name:
        request.model_name = "moderation"
    return request.SerializeToString(), method.name == "ModelStreamInfer"


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Markdown."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def printed(document: Path, name: str) -> str:
    """What stands between the marks of `name` in a document."""
    text = document.read_text(encoding="utf-8")
    begin, end = _marks(name)
    return text[text.index(begin) + len(begin) : text.index(end)].strip()


def write(document: Path, name: str, content: str) -> None:
    """Put `content` between the marks of `name`."""
    text = document.read_text(encoding="utf-8")
    begin, end = _marks(name)
    head, tail = text[: text.index(begin) + len(begin)], text[text.index(end) :]
    document.write_text(f"{head}\n{content}\n{tail}", encoding="utf-8")


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
