"""The command line of tritonserver: what is exposed, what is behind the token, and how models are controlled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serve.config import ServerConfig
from serve.installation import Installation

TOKEN_HEADER = "moderation-admin"  # noqa: S105  # the header's name
RESTRICTED = ("model-repository", "statistics", "trace", "logging", "shared-memory")
"""Calls that need the token. Inference, health, metadata and the read-only model configuration do not."""

_NO_GPU = ("--pinned-memory-pool-byte-size=0", "--allow-gpu-metrics=false")
"""The wheel's server has no GPU backends; without these it complains of missing drivers."""


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Where the server listens."""

    http: int
    grpc: int
    metrics: int


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Everything of a start that is not in the configuration."""

    installation: Installation
    backends: Path
    shm_prefix: str
    token: str
    ports: Ports
    models: Sequence[str]
    model_config_name: str


def server_command(config: ServerConfig, launch: Launch) -> list[str]:
    """Arguments of tritonserver, the program first."""
    restricted = f"{','.join(RESTRICTED)}:{TOKEN_HEADER}={launch.token}"
    return [
        str(launch.installation.binary),
        f"--model-repository={config.repository.resolve()}",
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in launch.models),
        f"--model-config-name={launch.model_config_name}",
        "--disable-auto-complete-config",
        "--strict-readiness=true",
        "--exit-on-error=true",
        f"--exit-timeout-secs={max(1, round(config.exit_timeout_s))}",
        f"--backend-directory={launch.backends}",
        f"--backend-config=python,shm-region-prefix-name={launch.shm_prefix}",
        f"--cache-directory={launch.installation.caches}",
        f"--http-address={config.host}",
        f"--http-port={launch.ports.http}",
        f"--http-restricted-api={restricted}",
        f"--grpc-address={config.host}",
        f"--grpc-port={launch.ports.grpc}",
        f"--grpc-restricted-protocol={restricted}",
        *_tls_arguments(config),
        f"--metrics-address={config.metrics_host}",
        f"--metrics-port={launch.ports.metrics}",
        f"--log-verbose={config.log_verbose}",
        "--log-format=ISO8601",
        *(_NO_GPU if launch.installation.embedded else ()),
        *config.extra_args,
    ]


def _tls_arguments(config: ServerConfig) -> list[str]:
    """Let gRPC speak TLS, and with the callers' certificates checked when an authority is given."""
    if config.tls_cert is None or config.tls_key is None:
        return []
    arguments = [f"--grpc-server-cert={config.tls_cert}", f"--grpc-server-key={config.tls_key}"]
    if config.tls_client_ca is None:
        return ["--grpc-use-ssl=true", *arguments]
    return ["--grpc-use-ssl-mutual=true", *arguments, f"--grpc-root-cert={config.tls_client_ca}"]
