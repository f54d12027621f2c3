"""Which server a program measures, as its options say: one that runs (`--url`), or one started for the occasion (`--serve`)."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.counters import TargetError
from benchmarks.environment import sha256_of
from benchmarks.machine import local_pids
from benchmarks.serving import Settings, VariantError, model_file, serving
from benchmarks.target import Address, Target
from moderation_client.contract import ENCODED_MODEL_NAME, MODEL_NAME, ModelSpec
from serve.command import TOKEN_HEADER

TOKEN_HEADERS = (f"triton-grpc-protocol-{TOKEN_HEADER}", TOKEN_HEADER)


@dataclass(frozen=True, kw_only=True)
class SubjectConfig:
    """Options that say which server is measured."""

    url: str | None = None
    """host:port of a running server's gRPC endpoint; by default localhost:8001, unless --serve."""
    serve: bool = False
    """Start the real server on --repository for this run, and stop it afterwards."""
    repository: Path = Path("model_repository")
    """Model repository for --serve, and where the ONNX file for in-process references is."""
    token_file: Path | None = None
    """File with the running server's admin token (`python -m serve --token-file`): opens its statistics."""
    metrics_url: str | None = None
    """host:port of the running server's metrics, read when its statistics are protected."""

    def __post_init__(self) -> None:
        """Check the combination. Raises ValueError."""
        if self.url is not None and self.serve:
            raise ValueError("--url measures a running server and --serve starts one: give one of the two")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A server that is there and can be measured."""

    address: Address
    statistics: Address | None
    """Where its counters are read; None when it keeps them to itself."""
    pids: tuple[int, ...]
    spec: ModelSpec
    server: dict[str, str]
    model: dict[str, str]

    def with_model(self, name: str) -> Subject:
        """Give the same server with another of its models; its statistics are then that model's."""
        statistics = dataclasses.replace(self.statistics, model=name) if self.statistics else None
        return dataclasses.replace(
            self, address=dataclasses.replace(self.address, model=name), statistics=statistics
        )


@contextlib.contextmanager
def open_subject(
    config: SubjectConfig, *, encoded: bool = False, settings: Settings | None = None
) -> Iterator[Subject]:
    """Find or start the server (with `settings`, when it is started). Raises TargetError or VariantError with the way out."""
    if config.serve:
        models = (MODEL_NAME, ENCODED_MODEL_NAME) if encoded else (MODEL_NAME,)
        with serving(config.repository, settings, models=models) as running:
            yield inspect(running.address, running.pids, "started here")
        return
    url = config.url or "localhost:8001"
    address = Address(url=url, headers=_token(config.token_file), metrics_url=config.metrics_url)
    pids = local_pids(url)
    yield inspect(address, pids, "same machine" if pids else "another machine or user")


def _token(file: Path | None) -> dict[str, str]:
    if file is None:
        return {}
    try:
        token = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise TargetError(f"--token-file {file}: {error.strerror or error}") from error
    return dict.fromkeys(TOKEN_HEADERS, token)


def inspect(address: Address, pids: tuple[int, ...], where: str) -> Subject:
    """Ask the server what it is. Raises TargetError."""
    with Target(address) as target:
        statistics: Address | None = address
        try:
            target.statistics()
        except TargetError as error:
            warn(f"{error}: no server-side split (give --token-file or --metrics-url)")
            statistics = None
        return Subject(
            address=address,
            statistics=statistics,
            pids=pids,
            spec=target.spec,
            server={**target.server, "where": where},
            model=target.model,
        )


def same_file(subject: Subject, repository: Path) -> Path:
    """ONNX file that the server runs, for an in-process reference. Raises VariantError when it is another one."""
    path = model_file(repository, subject.model["file"])
    served = subject.model.get("model_sha256")
    if served is not None and sha256_of(path) != served:
        raise VariantError(
            f"{path.relative_to(repository)} is not the file that the server runs ({served[:12]}...): a ratio of "
            "different models means nothing; give the --repository that is served"
        )
    return path


def warn(message: str) -> None:
    """Say something that is not a result."""
    print(f"note: {message}", file=sys.stderr)


def fail(error: Any) -> NoReturn:
    """End with a clear message and exit code 2, which is not that of a missed bar."""
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2)


def end_cleanly_on_sigterm() -> None:
    """Treat SIGTERM like Ctrl-C: servers that were started are stopped, and what was measured is written."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def print_bars(bars: Sequence[object]) -> None:
    """Print each bar on its line, between empty ones."""
    if bars:
        print("\n" + "\n".join(str(bar) for bar in bars))
