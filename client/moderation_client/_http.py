"""HTTP over httpx (extra `http`) with Triton's binary tensor format; blocking and asyncio.

The blocking side runs each request in a thread of its own pool, so that a flow can watch it and give it up: httpx has timeouts
for single reads and writes, not for a whole request.
"""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, Any

from moderation_client._errors import ContractError, MissingDependencyError
from moderation_client._faults import Fault, status_of_http
from moderation_client._protocol import (
    ConfigRequest,
    HealthRequest,
    InferRequest,
    Request,
    decode_http,
    encode_http,
)

if TYPE_CHECKING:
    import httpx

    from moderation_client._transports import Connection
    from moderation_client._urls import Url


def _httpx() -> Any:
    """Import httpx. Raises MissingDependencyError with the pip line."""
    try:
        import httpx  # noqa: PLC0415  an extra
    except ImportError as error:
        raise MissingDependencyError(
            'http:// and https:// need httpx: pip install "moderation-client[http]"'
        ) from error
    return httpx


def _options(url: Url, connection: Connection) -> dict[str, Any]:
    """Arguments of httpx's clients: no redirects, no proxies from the environment, room for every request in flight."""
    httpx = _httpx()
    context = connection.tls() if url.secure else None
    size = connection.max_in_flight + 2
    return {
        "base_url": f"{str(url).rstrip('/')}/",
        "verify": True if context is None else context,
        "trust_env": False,
        "limits": httpx.Limits(
            max_connections=size,
            max_keepalive_connections=size,
            keepalive_expiry=connection.keepalive_s,
        ),
    }


def _arguments(url: Url, connection: Connection, request: Request, timeout_s: float) -> dict[str, Any]:
    """Method, path, body and headers of a request; a name that was looked up stays the server's name."""
    headers = connection.request_headers(request)
    arguments: dict[str, Any] = {"method": "GET", "timeout": timeout_s, "headers": headers}
    if url.name:
        headers.setdefault("host", url.host_header)
        arguments["extensions"] = {"sni_hostname": url.name}
    if isinstance(request, InferRequest):
        body, own = encode_http(request)
        version = f"/versions/{request.version}" if request.version else ""
        path = f"v2/models/{request.model}{version}/infer"
        return arguments | {"method": "POST", "url": path, "content": body, "headers": headers | own}
    if isinstance(request, ConfigRequest):
        return arguments | {"url": f"v2/models/{request.model}/config"}
    return arguments | {"url": f"v2/models/{request.model}/ready" if request.model else "v2/health/live"}


def _read(request: Request, response: httpx.Response) -> Any:
    """Answer to a request. Raises Fault or ContractError."""
    if response.status_code != 200:
        if isinstance(request, HealthRequest) and response.status_code == 400:
            return False  # what Triton answers when it is not ready
        raise Fault(status_of_http(response.status_code), _message(response))
    if isinstance(request, InferRequest):
        return decode_http(response.content, response.headers.get("inference-header-content-length"))
    if isinstance(request, ConfigRequest):
        try:
            config = json.loads(response.content)
        except ValueError as error:
            raise ContractError(f"the model configuration is not JSON: {error}") from error
        if not isinstance(config, dict):
            raise ContractError(f"the model configuration is a JSON {type(config).__name__}, not an object")
        return config
    return True


def _message(response: httpx.Response) -> str:
    """Triton's own words, else the status line."""
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code} {response.reason_phrase}"


def _fault_of(error: Any) -> Fault:
    """What httpx says, in gRPC's words."""
    httpx = _httpx()
    if isinstance(error, httpx.ConnectTimeout):
        return Fault("UNAVAILABLE", "no connection in time")
    if isinstance(error, httpx.TimeoutException):
        return Fault("DEADLINE_EXCEEDED", f"{type(error).__name__} {error}".strip())
    return Fault("UNAVAILABLE", f"{type(error).__name__} {error}".strip())


class HttpHandle:
    """A blocking request on its way."""

    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def wait(self, timeout_s: float) -> Any:
        """Answer, or None when it is not there in time. Raises Fault or ContractError."""
        try:
            return self._future.result(timeout=timeout_s)
        except FutureTimeoutError:
            return None
        except CancelledError as error:  # the pool of threads was closed before it began
            raise Fault("CANCELLED", "the request was cancelled") from error

    def cancel(self) -> None:
        """Forget it; the thread ends with the request's own timeout."""
        self._future.cancel()


class HttpTransport:
    """A pool of connections for threads."""

    def __init__(self, url: Url, connection: Connection) -> None:
        """Make the pool; it connects with the first request. Raises MissingDependencyError."""
        self._url, self._connection = url, connection
        self._client = _httpx().Client(**_options(url, connection))
        self._threads = ThreadPoolExecutor(2 * connection.max_in_flight, thread_name_prefix="moderation-http")

    def start(self, request: Request, timeout_s: float) -> HttpHandle:
        """Send it."""
        try:
            return HttpHandle(self._threads.submit(self._run, request, timeout_s))
        except RuntimeError as error:  # the pool of threads was closed
            raise Fault("CANCELLED", str(error)) from error

    def _run(self, request: Request, timeout_s: float) -> Any:
        try:
            response = self._client.request(**_arguments(self._url, self._connection, request, timeout_s))
        except (
            _httpx().HTTPError,
            OSError,
        ) as error:  # a certificate refused late comes as a bare ssl.SSLError
            raise _fault_of(error) from error
        except RuntimeError as error:  # httpx: the client was closed under the request
            raise Fault("CANCELLED", str(error)) from error
        return _read(request, response)

    def close(self) -> None:
        """Close every connection; running requests end as cancelled."""
        self._client.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


class AsyncHttpTransport:
    """A pool of connections for an event loop."""

    def __init__(self, url: Url, connection: Connection) -> None:
        """Make the pool; it connects with the first request. Raises MissingDependencyError."""
        self._url, self._connection = url, connection
        self._client = _httpx().AsyncClient(**_options(url, connection))

    async def call(self, request: Request, timeout_s: float) -> Any:
        """Send it and await the answer. Raises Fault or ContractError."""
        arguments = _arguments(self._url, self._connection, request, timeout_s)
        try:
            response = await asyncio.wait_for(self._client.request(**arguments), timeout_s)
        except asyncio.TimeoutError as error:
            raise Fault("DEADLINE_EXCEEDED", f"no answer within {timeout_s:.3g} s") from error
        except (
            _httpx().HTTPError,
            OSError,
        ) as error:  # a certificate refused late comes as a bare ssl.SSLError
            raise _fault_of(error) from error
        except RuntimeError as error:  # httpx: the client was closed under the request
            raise Fault("CANCELLED", str(error)) from error
        return _read(request, response)

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()
