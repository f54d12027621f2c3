"""What can be chosen about a server: addresses, models, limits, TLS, logs, and how it is watched. Values are checked when the object is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

ServerChoice = Literal["auto", "embedded", "path"]
LogFormat = Literal["plain", "json"]


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """One Triton server on one model repository."""

    repository: Path = Path("model_repository")
    """Model repository, as `python -m export` writes it."""
    load_models: tuple[str, ...] = ()
    """Models to load; empty loads every model of the repository."""
    model_config_name: str | None = None
    """Which `<model>/configs/<name>.pbtxt` to use where there is one; by default `gpu` for a server found on PATH on a machine with an NVIDIA driver, else `cpu`."""
    server: ServerChoice = "auto"
    """`path`: the tritonserver on PATH; `embedded`: the one of the nvidia-pytriton wheel (CPU, loopback only); `auto`: the first that is there."""
    host: str = "127.0.0.1"
    """Address to listen on for HTTP and gRPC."""
    http_port: int = 8000
    """0 picks a free one."""
    grpc_port: int = 8001
    """0 picks a free one."""
    metrics_port: int = 8002
    """0 picks a free one."""
    metrics_host: str = "127.0.0.1"
    """Address to listen on for metrics: apart from the callers', because metrics tell names and load."""
    token_file: Path | None = None
    """File with the token that repository control, statistics, trace, log and shared-memory calls need; by default a new one is made, readable by its owner only."""
    tls_cert: Path | None = None
    """PEM certificate of the server: gRPC speaks TLS. (Triton has no TLS for HTTP: put a proxy before it.)"""
    tls_key: Path | None = None
    """PEM private key that belongs to `tls_cert`."""
    tls_client_ca: Path | None = None
    """PEM certificate authority of the callers: only callers with a certificate of it are let in (mutual TLS)."""
    log_file: Path | None = None
    """File that the server's log is appended to; by default the log goes with the server."""
    log_verbose: int = 0
    """Triton's `--log-verbose`."""
    startup_timeout_s: float = 120.0
    """How long models may take to load."""
    exit_timeout_s: float = 30.0
    """How long requests that are running may take to finish when the server is stopped."""
    cpu_cores: tuple[int, ...] = ()
    """Processor cores that the server may use; empty is all that we may use."""
    gpu: int | None = None
    """The one GPU that the server may use; None is all."""
    extra_args: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A further argument for tritonserver, as it is; may be repeated: `--extra-args=--log-verbose=1`."""

    def __post_init__(self) -> None:
        """Check the values. Raises ValueError that names the field."""
        for name in ("http_port", "grpc_port", "metrics_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise ValueError(f"{name} must be 0..65535, got {getattr(self, name)}")
        for name in ("startup_timeout_s", "exit_timeout_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together: give both or neither")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca (mutual TLS) needs tls_cert and tls_key")


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """How closely a server is watched."""

    interval_s: float = 0.25
    """Time between two looks at the server's processes."""
    probe_interval_s: float = 2.0
    """Time between two golden questions to every model; one follows every repair at once, a bad answer within half a second."""
    probe_timeout_s: float = 2.0
    """Time a golden question may take."""
    max_backoff_s: float = 30.0
    """Longest pause before a server that keeps ending is started again: at once the first time, then after half a second, then twice as long."""

    def __post_init__(self) -> None:
        """Check the values. Raises ValueError that names the field."""
        for name in ("interval_s", "probe_interval_s", "probe_timeout_s", "max_backoff_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
