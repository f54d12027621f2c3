"""Start the server on a variant of a repository: other instances, threads, batch, delay or ONNX file, the original untouched.

A variant is a copy whose config.pbtxt is changed through Triton's protobuf message; the version folders are hard links where the
file system allows, so that a variant of a 100-MB model costs nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from benchmarks.target import Address
from moderation_client.contract import MODEL_NAME
from serve.config import ServerConfig
from serve.errors import ServeError
from serve.server import TritonServer

INTRA_OP = "intra_op_thread_count"
EXIT_TIMEOUT_S = 5.0


class VariantError(Exception):
    """The repository cannot be served in the way that was asked for."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What may differ from the repository's own configuration; None leaves it."""

    num_instances: int | None = None
    """Copies of the model that work at the same time."""
    num_threads: int | None = None
    """Compute threads of each."""
    max_batch_size: int | None = None
    max_queue_delay_us: int | None = None
    """How long the batcher waits for company."""
    dynamic_batching: bool = True
    """False: one request, one execution."""
    queue_limits: bool = True
    """False: no limits and no priorities, without which a single instance does not stall (`export.serving.MIN_INSTANCES`)."""
    max_queue_size: int | None = None
    """Requests that may wait; more are refused."""
    queue_timeout_us: int | None = None
    """A request that waited longer is refused."""
    file: str | None = None
    """ONNX file to serve: `model.onnx` or `model_int8.onnx`."""

    def __str__(self) -> str:
        """`2 x 1 threads, batch 8, delay 500 us`."""
        words = []
        if self.num_instances is not None and self.num_threads is not None:
            words.append(f"{self.num_instances} x {self.num_threads} threads")
        if not self.dynamic_batching:
            words.append("no dynamic batching")
        elif self.max_batch_size is not None:
            words.append(f"batch {self.max_batch_size}, delay {self.max_queue_delay_us or 0} us")
        return ", ".join(words) or "the repository's own"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What `tune.py` searches: how the cores are shared out, and which batches form."""

    num_instances: int = 2
    num_threads: int = 1
    """Compute threads of each instance."""
    max_batch_size: int = 4
    """Largest batch: a large one on one instance leaves its callers waiting while others are served."""
    max_queue_delay_us: int = 0

    def settings(self, file: str | None = None) -> Settings:
        """Give these, and everything else as the repository has it."""
        return Settings(
            num_instances=self.num_instances,
            num_threads=self.num_threads,
            max_batch_size=self.max_batch_size,
            max_queue_delay_us=self.max_queue_delay_us,
            file=file,
        )


def config_path(model: Path) -> Path:
    """Choose the configuration that the embedded server reads: `configs/cpu.pbtxt`, else `config.pbtxt`."""
    chosen = model / "configs" / "cpu.pbtxt"
    return chosen if chosen.is_file() else model / "config.pbtxt"


def read_config(repository: Path) -> Any:
    """Parse the moderation model's configuration. Raises VariantError."""
    path = config_path(repository / MODEL_NAME)
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except OSError as error:
        raise VariantError(
            f"{repository} holds no model {MODEL_NAME!r} ({error.strerror}); publish one: python -m export runs/demo"
        ) from error
    except text_format.ParseError as error:
        raise VariantError(f"{path}: {error}") from error


def apply(config: Any, settings: Settings) -> Any:
    """Change a `ModelConfig` message in place, warm-up batches included."""
    if settings.num_instances is not None:
        for group in config.instance_group:
            group.count = settings.num_instances
    if settings.num_threads is not None:
        config.parameters[INTRA_OP].string_value = str(settings.num_threads)
    if settings.file is not None:
        config.default_model_filename = settings.file
    if settings.max_batch_size is not None:
        if settings.max_batch_size < 1:
            raise VariantError(f"max_batch_size must be at least 1, got {settings.max_batch_size}")
        config.max_batch_size = settings.max_batch_size
        for sample in config.model_warmup:
            sample.batch_size = min(sample.batch_size, settings.max_batch_size)
        del config.dynamic_batching.preferred_batch_size[:]
    _apply_batching(config, settings)
    return config


def _apply_batching(config: Any, settings: Settings) -> None:
    if not settings.dynamic_batching:
        config.ClearField("dynamic_batching")
        return
    if settings.max_queue_delay_us is not None:
        config.dynamic_batching.max_queue_delay_microseconds = settings.max_queue_delay_us
    if not settings.queue_limits:
        for field in (
            "default_queue_policy",
            "priority_queue_policy",
            "priority_levels",
            "default_priority_level",
        ):
            config.dynamic_batching.ClearField(field)
    policies = [config.dynamic_batching.default_queue_policy]
    policies += config.dynamic_batching.priority_queue_policy.values()
    for policy in policies:
        if settings.max_queue_size is not None:
            policy.max_queue_size = settings.max_queue_size
        if settings.queue_timeout_us is not None:
            policy.default_timeout_microseconds = settings.queue_timeout_us


def copy_variant(repository: Path, destination: Path, settings: Settings) -> Path:
    """Write `repository` with `settings` for its moderation model to `destination`; its path. Raises VariantError."""
    config = apply(read_config(repository), settings)
    shutil.copytree(repository, destination, copy_function=_link_or_copy)
    path = config_path(destination / MODEL_NAME)
    path.unlink()  # a hard link: writing into it would change the original
    path.write_text(text_format.MessageToString(config), encoding="utf-8")
    return destination


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def model_file(repository: Path, file: str | None = None) -> Path:
    """ONNX file that the newest version serves. Raises VariantError when it is not there."""
    model = repository / MODEL_NAME
    versions = sorted(
        (path for path in model.glob("[1-9]*") if path.name.isdigit()), key=lambda path: int(path.name)
    )
    name = file or read_config(repository).default_model_filename or "model.onnx"
    if not versions or not (versions[-1] / name).is_file():
        raise VariantError(
            f"{model} has no version with {name}; it has versions {[path.name for path in versions]}"
        )
    return versions[-1] / name


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that was started here."""

    address: Address
    http_url: str
    pids: tuple[int, ...]


@contextlib.contextmanager
def serving(
    repository: Path, settings: Settings | None = None, *, models: tuple[str, ...] = (MODEL_NAME,)
) -> Iterator[Running]:
    """Run the real server on a variant of `repository`, on free ports. Raises VariantError with the server's reason."""
    with tempfile.TemporaryDirectory(prefix="moderation-variant-") as folder:
        where = repository
        if settings is not None:
            where = copy_variant(repository, Path(folder) / "repository", settings)
        server = _started(where, models, settings)
        try:
            yield Running(
                address=Address(url=server.grpc_url, headers=server.admin_headers),
                http_url=server.http_url,
                pids=tuple(server.pids()),
            )
        finally:
            server.stop()


def _started(repository: Path, models: tuple[str, ...], settings: Settings | None) -> TritonServer:
    config = ServerConfig(
        repository=repository.resolve(),
        load_models=models,
        http_port=0,
        grpc_port=0,
        metrics_port=0,
        exit_timeout_s=EXIT_TIMEOUT_S,
    )
    try:
        server = TritonServer(config)
        server.start()
    except ServeError as error:
        raise VariantError(
            f"the server did not start with {settings or 'its own settings'}: {error}"
        ) from error
    return server
