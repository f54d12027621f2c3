"""HTTP to the server on this machine."""

from __future__ import annotations

from collections.abc import Mapping

import httpx

_NO_IDLE = httpx.Limits(max_keepalive_connections=0)
"""An idle connection would hold up the server's exit."""


def local_client(
    http_url: str, *, timeout_s: float, path: str = "", headers: Mapping[str, str] | None = None
) -> httpx.Client:
    """Open a client for addresses below `path` of a server, `http_url` being "HOST:PORT"; the environment's proxies are not for it."""
    return httpx.Client(
        base_url=f"http://{http_url}{path}",
        headers=headers,
        timeout=timeout_s,
        trust_env=False,
        verify=False,  # noqa: S501  # plain HTTP on this machine: loading certificates would only cost time
        limits=_NO_IDLE,
    )


def answers(client: httpx.Client, path: str) -> bool:
    """Whether the server says 200."""
    try:
        return client.get(path).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False
