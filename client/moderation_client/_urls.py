"""Addresses: `host:port`, `grpc://`, `grpcs://`, `http://`, `https://`, one or several, all of one kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

DEFAULT_PORTS = {"grpc": 8001, "grpcs": 8001, "http": 8000, "https": 443}


@dataclass(frozen=True)
class Url:
    """One server's address."""

    scheme: str
    host: str
    port: int
    path: str = ""
    name: str = ""
    """The host name that was looked up, when `host` is one of its addresses: certificates are for the name."""

    @property
    def secure(self) -> bool:
        """Whether TLS is spoken."""
        return self.scheme in ("grpcs", "https")

    @property
    def address(self) -> str:
        """`host:port`, with brackets around an IPv6 address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def host_header(self) -> str:
        """What HTTP calls the server: the name that was looked up, with a port that is not the scheme's own."""
        own_port = {"http": 80, "https": 443}.get(self.scheme)
        return self.name if self.port == own_port else f"{self.name}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}{self.path}"


def parse_url(text: str) -> Url:
    """Read one address. Raises ValueError that names it and shows the forms."""
    forms = "host:port, grpc://host:port, grpcs://host:port, http://host:port or https://host:port"
    try:
        parts = urlsplit(text if "://" in text else f"grpc://{text}")
        port = parts.port
    except ValueError as error:
        raise ValueError(f"server address {text!r} is not usable ({error}): give {forms}") from error
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname or parts.query or parts.username:
        raise ValueError(f"server address {text!r} is not one of {forms}")
    return Url(parts.scheme, parts.hostname, port or DEFAULT_PORTS[parts.scheme], parts.path.rstrip("/"))


def parse_urls(urls: str | Sequence[str]) -> tuple[Url, ...]:
    """Read one or several addresses. Raises ValueError for none, or for gRPC and HTTP mixed."""
    parsed = tuple(parse_url(each) for each in ([urls] if isinstance(urls, str) else urls))
    if not parsed:
        raise ValueError("give at least one server address")
    if len({url.scheme for url in parsed}) > 1:
        raise ValueError(f"server addresses must be of one kind, got {', '.join(map(str, parsed))}")
    return tuple(dict.fromkeys(parsed))
