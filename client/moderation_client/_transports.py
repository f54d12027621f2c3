"""gRPC, blocking and asyncio: one channel a replica, gRPC's own retries off, its errors turned into faults.

A transport starts a request and hands out a handle (`wait`, `cancel`), or awaits it (`call`). Everything heavy is imported when
the first client connects.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moderation_client._errors import AuthenticationError
from moderation_client._faults import Fault
from moderation_client._protocol import (
    ConfigRequest,
    HealthRequest,
    InferRequest,
    Request,
    config_from_grpc,
    decode_grpc,
    encode_grpc,
)

if TYPE_CHECKING:
    import ssl

    from moderation_client._urls import Url

SERVICE = "/inference.GRPCInferenceService/"


@dataclass(frozen=True, kw_only=True)
class Connection:
    """How to reach a server: headers, certificates, keepalive."""

    headers: Mapping[str, str] = field(default_factory=dict)
    token: str | Callable[[], str] | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    keepalive_s: float = 30.0
    max_in_flight: int = 32

    def request_headers(self, request: Request) -> dict[str, str]:
        """Headers of one request: the client's, the token, the request's own; names in lower case as gRPC wants."""
        headers = {name.lower(): value for name, value in self.headers.items()}
        if self.token is not None:
            headers["authorization"] = f"Bearer {self.current_token()}"
        return headers | dict(request.headers)

    def current_token(self) -> str:
        """The token, or what the caller's function says it is now. Raises AuthenticationError when that raises."""
        if self.token is None or isinstance(self.token, str):
            return self.token or ""
        try:
            return self.token()
        except Exception as error:
            raise AuthenticationError(f"token() raised {type(error).__name__}: {error}") from error

    def read(self, path: str | None) -> bytes | None:
        """Content of a certificate or key file. Raises AuthenticationError that names it."""
        try:
            return None if path is None else Path(path).read_bytes()
        except OSError as error:
            raise AuthenticationError(f"certificate file {path}: {error.strerror or error}") from error

    def tls(self) -> ssl.SSLContext | None:
        """TLS settings from the files, None without files. Raises AuthenticationError that names the unusable one."""
        if not (self.ca_file or self.cert_file):
            return None
        import ssl  # noqa: PLC0415  only for TLS

        for path in (self.ca_file, self.cert_file, self.key_file):
            self.read(path)
        wrong = self.ca_file
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            wrong = f"{self.cert_file} with key {self.key_file or self.cert_file}"
            if self.cert_file:  # a key with a password must not ask for it on the terminal
                context.load_cert_chain(self.cert_file, self.key_file, password="")
        except (OSError, ValueError) as error:
            raise AuthenticationError(f"certificate file {wrong}: {error}") from error
        return context


def channel_options(url: Url, connection: Connection) -> list[tuple[str, Any]]:
    """Channel arguments, each for a reason."""
    options: list[tuple[str, Any]] = [
        ("grpc.enable_retries", 0),  # ours know a full queue from a dead server
        ("grpc.use_local_subchannel_pool", 1),  # two clients in one process do not share a broken connection
        ("grpc.max_send_message_length", -1),  # requests are split before they get here
        ("grpc.max_receive_message_length", 64 * 1024 * 1024),
        ("grpc.initial_reconnect_backoff_ms", 100),  # a restarted server is seen at once, not after seconds
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.keepalive_time_ms", int(connection.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", 5000),
        ("grpc.keepalive_permit_without_calls", 0),  # idle pings draw `too_many_pings`
    ]
    if url.name:
        options += [("grpc.ssl_target_name_override", url.name), ("grpc.default_authority", url.name)]
    return options


def credentials(connection: Connection) -> Any:
    """TLS credentials, with a client certificate when one is given. Raises AuthenticationError that names a bad file."""
    import grpc  # noqa: PLC0415  heavy: only when a client connects

    connection.tls()  # gRPC itself would only fail to connect, without a reason
    return grpc.ssl_channel_credentials(
        root_certificates=connection.read(connection.ca_file),
        private_key=connection.read(connection.key_file),
        certificate_chain=connection.read(connection.cert_file),
    )


class GrpcMethods:
    """Requests of ours as remote procedures; shared by both transports. Messages go out as bytes."""

    def __init__(self, channel: Any) -> None:
        """Make the callables once: each is reused by every request."""
        from tritonclient.grpc import service_pb2 as pb  # noqa: PLC0415  heavy: only when a client connects

        self._pb = pb
        self._calls = {
            name: channel.unary_unary(
                SERVICE + name, request_serializer=None, response_deserializer=response.FromString
            )
            for name, response in {
                "ModelInfer": pb.ModelInferResponse,
                "ModelConfig": pb.ModelConfigResponse,
                "ModelReady": pb.ModelReadyResponse,
                "ServerLive": pb.ServerLiveResponse,
            }.items()
        }

    def prepare(self, request: Request) -> tuple[Any, bytes, Callable[[Any], Any]]:
        """Callable, serialised message, and reader of the answer."""
        pb = self._pb
        if isinstance(request, InferRequest):
            return self._calls["ModelInfer"], encode_grpc(request), decode_grpc
        if isinstance(request, ConfigRequest):
            message = pb.ModelConfigRequest(name=request.model).SerializeToString()
            return self._calls["ModelConfig"], message, lambda answer: config_from_grpc(answer.config)
        assert isinstance(request, HealthRequest)
        if request.model:
            message = pb.ModelReadyRequest(name=request.model, version=request.version).SerializeToString()
            return self._calls["ModelReady"], message, lambda answer: bool(answer.ready)
        return (
            self._calls["ServerLive"],
            pb.ServerLiveRequest().SerializeToString(),
            lambda answer: bool(answer.live),
        )


def fault_of(error: Any) -> Fault:
    """Status and message of a gRPC error."""
    code = error.code()
    return Fault(code.name if code is not None else "UNKNOWN", str(error.details() or ""))


class GrpcHandle:
    """A blocking request on its way."""

    def __init__(self, future: Any, read: Callable[[Any], Any]) -> None:
        self._future = future
        self._read = read

    def wait(self, timeout_s: float) -> Any:
        """Answer, or None when it is not there in time. Raises Fault."""
        import grpc  # noqa: PLC0415  already loaded; the name is needed here

        try:
            return self._read(self._future.result(timeout=timeout_s))
        except grpc.FutureTimeoutError:
            return None
        except grpc.FutureCancelledError as error:
            raise Fault("CANCELLED", "the request was cancelled") from error
        except grpc.RpcError as error:
            raise fault_of(error) from error

    def cancel(self) -> None:
        """Tell the server that nobody waits any more."""
        self._future.cancel()


class GrpcTransport:
    """One channel for threads."""

    def __init__(self, url: Url, connection: Connection) -> None:
        """Make the channel; it connects with the first request."""
        import grpc  # noqa: PLC0415  heavy: only when a client connects

        options = channel_options(url, connection)
        self._connection = connection
        self._channel = (
            grpc.secure_channel(url.address, credentials(connection), options)
            if url.secure
            else grpc.insecure_channel(url.address, options)
        )
        self._methods = GrpcMethods(self._channel)

    def start(self, request: Request, timeout_s: float) -> GrpcHandle:
        """Send it."""
        import grpc  # noqa: PLC0415  already loaded; the name is needed here

        method, message, read = self._methods.prepare(request)
        metadata = tuple(self._connection.request_headers(request).items())
        try:
            return GrpcHandle(method.future(message, timeout=timeout_s, metadata=metadata), read)
        except grpc.RpcError as error:
            raise fault_of(error) from error
        except ValueError as error:  # grpc: the channel was closed under the request
            raise Fault("CANCELLED", str(error)) from error

    def close(self) -> None:
        """Close the channel; running requests end as cancelled."""
        self._channel.close()


class AsyncGrpcTransport:
    """One channel for an event loop."""

    def __init__(self, url: Url, connection: Connection) -> None:
        """Make the channel in the running loop; it connects with the first request."""
        from grpc import aio  # noqa: PLC0415  heavy: only when a client connects

        options = channel_options(url, connection)
        self._connection = connection
        self._closed = False
        self._channel = (
            aio.secure_channel(url.address, credentials(connection), options)
            if url.secure
            else aio.insecure_channel(url.address, options)
        )
        self._methods = GrpcMethods(self._channel)

    async def call(self, request: Request, timeout_s: float) -> Any:
        """Send it and await the answer. Raises Fault."""
        import asyncio  # noqa: PLC0415  already loaded; threads do not load it

        import grpc  # noqa: PLC0415  likewise

        method, message, read = self._methods.prepare(request)
        metadata = tuple(self._connection.request_headers(request).items())
        try:
            return read(await method(message, timeout=timeout_s, metadata=metadata))
        except grpc.RpcError as error:
            raise fault_of(error) from error
        except (Exception, asyncio.CancelledError) as error:
            if not self._closed:
                raise
            raise Fault("CANCELLED", "the channel was closed under the request") from error

    async def close(self) -> None:
        """Close the channel; running requests end as cancelled."""
        self._closed = True
        with contextlib.suppress(
            Exception
        ):  # a loop that is shutting down may refuse, and then it is closed anyway
            await self._channel.close()
