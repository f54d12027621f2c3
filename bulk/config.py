"""What can be chosen about a backfill. Values are checked when the object is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

Kind = Literal["auto", "images", "parquet", "tar"]
LOW_PRIORITY = 2
"""The level that `python -m export` gives to backfills; interactive traffic has 1."""


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """The moderation service, and how to ask it."""

    url: tuple[str, ...] = ("localhost:8001",)
    """Addresses of the service's replicas: host:port, grpcs://, http://, https://."""
    priority: int = LOW_PRIORITY
    """Level of the requests: 2 lets interactive traffic pass first; 0 is the server's default."""
    max_batch: int | None = None
    """Most views in one request: what an interactive request may have to wait for. By default the server's largest batch."""
    max_in_flight: int = 2
    """Requests sent and not yet answered, in each worker: enough to keep a near server busy, and few enough to leave its queue short."""
    decode_threads: int | None = None
    """Threads that decode, in each worker; by default one for each CPU, at most 8."""
    timeout_s: float = 120.0
    """Longest an image may take, waiting in the low-priority queue included."""
    patience_s: float = 600.0
    """How long a service or store that does not answer is waited for before the run stops; it can be resumed."""
    policy: Path | None = None
    """Policy file that decides; by default the server's recommended one. On a cluster every node must have it."""
    token_file: Path | None = None
    """File with the bearer token."""
    ca_file: Path | None = None
    """PEM certificate authority of the service."""
    cert_file: Path | None = None
    """PEM certificate of this client, for mutual TLS."""
    key_file: Path | None = None
    """PEM private key that belongs to `cert_file`."""

    def __post_init__(self) -> None:
        """Check the values. Raises ValueError that names the option."""
        if not self.url:
            raise ValueError("--url needs at least one address")
        for name in ("timeout_s", "patience_s", "max_in_flight"):
            if getattr(self, name) <= 0:
                raise ValueError(f"--{name.replace('_', '-')} must be above 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """What the source is made of."""

    kind: Kind = "auto"
    """`images` (every file of a folder), `parquet` or `tar` (WebDataset); by default from the names of the files."""
    pattern: str = "*"
    """Of a folder's files only those whose name matches; hidden files are never inputs."""
    column: str | None = None
    """Parquet column with bytes or paths; by default the first of image, bytes, content, path, file, url that is there."""
    id_column: str | None = None
    """Parquet column with the ids; by default `id`, else file name and row number."""
    shard_size: int = 1000
    """Images in one shard, the unit of work that is committed or done again. A tar, and a Parquet row group of bytes, is never split."""

    def __post_init__(self) -> None:
        """Check the values. Raises ValueError that names the option."""
        if self.shard_size < 1:
            raise ValueError(f"--shard-size must be 1 or more, got {self.shard_size}")


@dataclass(frozen=True, kw_only=True)
class BulkConfig:
    """Judge every image of SOURCE once; the verdicts are Parquet files in --out. Run it again to go on after any stop."""

    source: tyro.conf.Positional[str]
    """Folder, Parquet file or folder, tar or folder of tars; a path or any fsspec URL."""
    out: str
    """Folder or fsspec URL of the result. On a cluster every node must be able to write there."""
    service: Annotated[ServiceConfig, tyro.conf.arg(name="")] = field(default_factory=ServiceConfig)
    reading: Annotated[SourceConfig, tyro.conf.arg(name="")] = field(default_factory=SourceConfig)
    model_version: str | None = None
    """Version that judges the whole backfill; by default the one that answers when the plan is made."""
    ray: str | None = None
    """Address of a Ray cluster (`auto`, host:port, ray://...); by default everything runs in this process."""
    workers: int = 2
    """Shards worked on at once: threads here, actors on a cluster."""
    worker_cpus: float = 1.0
    """CPUs that Ray sets aside for each actor."""
    nice: int = 10
    """How far workers step back from other processes of their machine, 0 to 19."""
    cost_per_hour: float | None = None
    """Price of everything that runs for this, an hour: progress and summary then say what it costs."""

    def __post_init__(self) -> None:
        """Check the values. Raises ValueError that names the option."""
        if self.workers < 1:
            raise ValueError(f"--workers must be 1 or more, got {self.workers}")
        if not 0 <= self.nice <= 19:
            raise ValueError(f"--nice must be 0..19, got {self.nice}")
        if self.worker_cpus <= 0:
            raise ValueError(f"--worker-cpus must be above 0, got {self.worker_cpus}")
