"""The ways a load generator can ask: a prepared gRPC message, the product's own client, or a plain HTTP POST.

A sender is made inside the generator's process and answers None for a good reply, else the kind of error, so that errors are
counted and never hide among latencies.
"""

from __future__ import annotations

import http.client
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import grpc

from benchmarks.target import UNLIMITED
from moderation_client import ModerationClient, ModerationError

METHOD = "/inference.GRPCInferenceService/ModelInfer"
QUEUE_FULL, EXPIRED = "queue_full", "queue_expired"
Send = Callable[[Any], str | None]
Via = Literal["wire", "client", "http"]


@dataclass(frozen=True, kw_only=True)
class Route:
    """How and where to send."""

    via: Via
    """`wire`: prepared gRPC messages, the server's own speed. `client`: `moderate()`, what a caller sees. `http`: POST of a file."""
    url: str
    """host:port."""
    path: str = "/"
    """Of the HTTP endpoint."""
    timeout_s: float = 60.0
    """An answer that takes longer is an error."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of `ModerationClient`."""


class Connection:
    """What the callers of one generator share."""

    def __init__(self, route: Route) -> None:
        """Open it; HTTP connections are opened by each caller."""
        self._route = route
        self._channel = grpc.insecure_channel(route.url, options=UNLIMITED) if route.via == "wire" else None
        self._client = ModerationClient(route.url, **route.options) if route.via == "client" else None

    def sender(self) -> Send:
        """Make the function that one caller sends with."""
        if self._channel is not None:
            return _wire(self._channel, self._route.timeout_s)
        if self._client is not None:
            return _client(self._client, self._route.timeout_s)
        return _http(self._route)

    def close(self) -> None:
        """Close what is shared."""
        for each in (self._channel, self._client):
            if each is not None:
                each.close()


def unary(channel: grpc.Channel) -> Any:
    """Callable of the inference method on serialised messages, both ways: no protobuf work in the generator."""
    return channel.unary_unary(METHOD, request_serializer=None, response_deserializer=None)


def error_kind(error: grpc.RpcError) -> str:
    """Word to count a failed call under; a full queue, an expired request and a dead server share one status."""
    details = str(error.details()).lower()
    if "maximum queue size" in details:
        return QUEUE_FULL
    if "timeout expired" in details:
        return EXPIRED
    return str(error.code().name).lower()


def _wire(channel: grpc.Channel, timeout_s: float) -> Send:
    call = unary(channel)

    def send(message: bytes) -> str | None:
        try:
            call(message, timeout=timeout_s)
        except grpc.RpcError as error:
            return error_kind(error)
        return None

    return send


def _client(client: ModerationClient, timeout_s: float) -> Send:
    def send(images: Sequence[Any]) -> str | None:
        try:
            verdicts = client.moderate(images, timeout_s=timeout_s)
        except ModerationError as error:
            return getattr(error, "code", type(error).__name__)
        return next((verdict.error.code for verdict in verdicts if verdict.error is not None), None)

    return send


def _http(route: Route) -> Send:
    host, _, port = route.url.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=route.timeout_s)

    def send(body: bytes) -> str | None:
        try:
            connection.request(
                "POST", route.path, body=body, headers={"Content-Type": "application/octet-stream"}
            )
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return type(error).__name__
        return None if answer.status == 200 else f"http_{answer.status}"

    return send
