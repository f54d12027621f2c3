"""Which transport speaks to an address."""

from __future__ import annotations

from typing import Any

from moderation_client._transports import AsyncGrpcTransport, Connection, GrpcTransport
from moderation_client._urls import Url


def connect_blocking(url: Url, connection: Connection) -> Any:
    """Transport for threads. Raises MissingDependencyError without the extra that HTTP needs."""
    if url.scheme.startswith("http"):
        from moderation_client._http import HttpTransport  # noqa: PLC0415  only when HTTP is asked for

        return HttpTransport(url, connection)
    return GrpcTransport(url, connection)


def connect_async(url: Url, connection: Connection) -> Any:
    """Transport for the running event loop. Raises MissingDependencyError without the extra that HTTP needs."""
    if url.scheme.startswith("http"):
        from moderation_client._http import AsyncHttpTransport  # noqa: PLC0415  only when HTTP is asked for

        return AsyncHttpTransport(url, connection)
    return AsyncGrpcTransport(url, connection)
