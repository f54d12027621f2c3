"""What the two clients have in common: how they are made, and what needs no I/O."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moderation_client._errors import ContractError
from moderation_client._policies import PolicySource
from moderation_client._session import Session
from moderation_client._settings import Decode, build_settings
from moderation_client._stats import ClientStats
from moderation_client._telemetry import OtelTelemetry, Telemetry
from moderation_client.contract import ENCODED_MODEL_NAME, MODEL_NAME, ModelSpec
from moderation_client.policy import Decision

if TYPE_CHECKING:
    from moderation_client.images import ImageLimits


class Shared:
    """Construction and what needs no I/O."""

    _connect: Callable[..., Any]

    def __init__(
        self,
        urls: str | Sequence[str] = "localhost:8001",
        *,
        policy: PolicySource | Mapping[str, PolicySource] | None = None,
        spec: ModelSpec | str | os.PathLike[str] | None = None,
        decode: Decode = "client",
        model: str | None = None,
        timeout_s: float = 30.0,
        attempt_timeout_s: float = 10.0,
        limits: ImageLimits | None = None,
        error_decision: Decision = Decision.REVIEW,
        max_in_flight: int = 32,
        max_batch: int | None = None,
        max_message_bytes: int = 32 * 1024 * 1024,
        decode_threads: int | None = None,
        retry_overload: bool = False,
        priority: int = 0,
        headers: Mapping[str, str] | None = None,
        token: str | Callable[[], str] | None = None,
        ca_file: str | None = None,
        cert_file: str | None = None,
        key_file: str | None = None,
        keepalive_s: float = 30.0,
        resolve_names: bool = False,
        telemetry: bool = False,
        metrics: bool = False,
    ) -> None:
        """Nothing is connected until the first call.

        `urls`: one or several of `host:port`, `grpc://`, `grpcs://` (TLS), `http://`, `https://` (extra `http`); requests go
        to the least busy server that answers. `resolve_names` looks every address behind a name up and balances over them.
        `policy`: a Policy, a policy file (read again when it changes), or several by name, of which a call picks one;
        without it the server's recommended policy decides. `decode="server"` sends files as they are to the model
        `moderation_encoded`, which decodes and decides. `spec`: a ModelSpec or its file, instead of the server's.
        `timeout_s`: default deadline of a call. `attempt_timeout_s`: longest wait for one try. `error_decision`: REVIEW or
        BLOCK, for images that could not be judged. `max_in_flight` requests at once. `max_batch`: at most the server's.
        `priority`: Triton's level, 1 is the highest. `token`: bearer token, or a function that returns the current one.
        `telemetry`: OpenTelemetry spans and metrics (extra `otel`). `metrics`: decisions and the distribution of scores in
        the process's own Prometheus registry, for `prometheus_client.start_http_server` to show (extra `prometheus`).
        Raises ValueError for a parameter that makes no sense, PolicyError or ContractError for an unusable file.
        """
        settings = build_settings(
            urls,
            model=model or (ENCODED_MODEL_NAME if decode == "server" else MODEL_NAME),
            decode=decode,
            timeout_s=timeout_s,
            attempt_timeout_s=attempt_timeout_s,
            limits=limits,
            error_decision=error_decision,
            max_in_flight=max_in_flight,
            max_message_bytes=max_message_bytes,
            decode_threads=decode_threads,
            retry_overload=retry_overload,
            priority=priority,
            headers=headers,
            token=token,
            ca_file=ca_file,
            cert_file=cert_file,
            key_file=key_file,
            keepalive_s=keepalive_s,
            resolve_names=resolve_names,
        )
        if policy is not None and decode == "server":
            raise ValueError("with decode='server' the server's policy decides: policy= has no effect there")
        local = _spec_of(spec)
        meters = _meters(telemetry=telemetry, metrics=metrics)
        if local is not None:
            meters.model(local)
        self._session = Session(settings, policy, local, max_batch, type(self)._connect, meters)

    def stats(self) -> ClientStats:
        """Count what the client did, and describe its servers as they are now."""
        return self._session.stats()


def _meters(*, telemetry: bool, metrics: bool) -> Telemetry:
    """Choose what observes. Raises MissingDependencyError."""
    meters = OtelTelemetry() if telemetry else Telemetry()
    if not metrics:
        return meters
    from moderation_client._prometheus import PrometheusTelemetry  # noqa: PLC0415  an extra

    return PrometheusTelemetry(meters)


def _spec_of(spec: ModelSpec | str | os.PathLike[str] | None) -> ModelSpec | None:
    if spec is None or isinstance(spec, ModelSpec):
        return spec
    try:
        return ModelSpec.from_json(Path(spec).read_bytes())
    except OSError as error:
        raise ContractError(f"spec {spec}: {error.strerror or error}") from error
