"""What a client and a call were asked to be; checked once, at the door."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from moderation_client._policies import PolicyFile
from moderation_client._transports import Connection
from moderation_client._urls import Url, parse_urls
from moderation_client.policy import Decision, Policy

if TYPE_CHECKING:
    from moderation_client.images import ImageLimits

OnError = Literal["raise", "verdict"]
Decode = Literal["client", "server"]

POSITIVE = ("timeout_s", "attempt_timeout_s", "max_message_bytes", "max_in_flight", "decode_threads")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a client was asked to be."""

    urls: tuple[Url, ...]
    model: str
    decode: Decode
    connection: Connection
    limits: ImageLimits | None
    timeout_s: float
    attempt_timeout_s: float
    max_message_bytes: int
    max_in_flight: int
    decode_threads: int
    error_decision: Decision
    retry_overload: bool
    resolve_names: bool
    priority: int

    def __post_init__(self) -> None:
        """Check the values. Raises ValueError that names the parameter."""
        for name in POSITIVE:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}")
        if self.decode not in ("client", "server"):
            raise ValueError(f"decode must be 'client' or 'server', got {self.decode!r}")
        if self.priority < 0:
            raise ValueError(
                f"priority must be 0 (the server's default) or a level from 1, got {self.priority}"
            )
        if self.error_decision is Decision.ALLOW:
            raise ValueError(
                "error_decision must be REVIEW or BLOCK: an image that was not judged is never allowed"
            )


@dataclass(frozen=True, kw_only=True)
class CallOptions:
    """What one call chose."""

    timeout_s: float
    deadline: float | None
    """On the monotonic clock; None when every image has its own."""
    policy: Policy | PolicyFile | None
    version: str
    on_error: OnError
    context: Any = None
    """Trace context that the call belongs to."""

    def deadline_now(self) -> float:
        """Deadline of an image that is taken now."""
        return self.deadline if self.deadline is not None else time.monotonic() + self.timeout_s


def build_settings(
    urls: str | Sequence[str],
    *,
    headers: Mapping[str, str] | None,
    token: str | Callable[[], str] | None,
    ca_file: str | None,
    cert_file: str | None,
    key_file: str | None,
    keepalive_s: float,
    decode_threads: int | None,
    max_in_flight: int,
    **rest: Any,
) -> Settings:
    """Settings from the constructor's parameters. Raises ValueError."""
    connection = Connection(
        headers=headers or {},
        token=token,
        ca_file=ca_file,
        cert_file=cert_file,
        key_file=key_file,
        keepalive_s=keepalive_s,
        max_in_flight=max_in_flight,
    )
    return Settings(
        urls=parse_urls(urls),
        connection=connection,
        decode_threads=min(8, os.cpu_count() or 1) if decode_threads is None else decode_threads,
        max_in_flight=max_in_flight,
        **rest,
    )
