"""Fixtures that tests share: a small real model repository, and a real Triton server on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from serve.config import ServerConfig
from serve.server import TritonServer
from tests.client_fixtures import client_kind, connected_client, fake_server  # noqa: F401  fixtures: pytest finds them here
from tests.small_model import build_repository

StartServer = Callable[..., TritonServer]
TOGETHER = (
    "test_architecture",
    "test_benchmarks_capacity",
    "test_benchmarks_figures",
    "test_benchmarks_rates",
    "test_benchmarks_re",
    "test_benchmarks_serving",
    "test_benchmarks_stats",
    "test_bulk_local",
    "test_bulk_progress",
    "test_bulk_shadow",
    "test_client_checks",
    "test_client_cli",
    "test_client_close",
    "test_client_contract",
    "test_client_encoded",
    "test_client_fault_table",
    "test_client_fresh",
    "test_client_images",
    "test_client_pace",
    "test_client_package",
    "test_client_policy",
    "test_client_prometheus",
    "test_client_security",
    "test_client_sources",
    "test_client_telemetry",
    "test_client_versions",
    "test_deploy_autoscaling",
    "test_deploy_container",
    "test_deploy_docs",
    "test_deploy_kubernetes",
    "test_deploy_served",
    "test_export_beside",
    "test_export_encoded",
    "test_export_foreign",
    "test_export_int8",
    "test_export_kill",
    "test_export_lint",
    "test_export_openvino",
    "test_export_parity",
    "test_export_publish",
    "test_export_releases",
    "test_export_run",
    "test_export_transfer",
    "test_export_versions",
    "test_faults_figures",
    "test_readme",
    "test_serve_command",
    "test_serve_encoded",
    "test_serve_errors",
    "test_serve_exposure",
    "test_serve_onnxruntime",
    "test_serve_repository",
    "test_serve_security",
    "test_train",
)
"""Beginnings of the files whose tests may run beside others: none of them looks at a clock or at what a server does under load."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that needs the machine for itself, so that `make test` can run the others two at a time."""
    for item in items:
        if not item.path.name.startswith(TOGETHER):
            item.add_marker(pytest.mark.alone)


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a model repository with the small model; shared, so never write to it."""
    return build_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture
def repository_factory(tmp_path: Path) -> Callable[..., Path]:
    """Make a private repository: `repository_factory(name="a", config=small_config(...))`."""

    def make(name: str = "repository", **options: Any) -> Path:
        return build_repository(tmp_path / name, **options)

    return make


@pytest.fixture(scope="session")
def triton(repository: Path) -> Iterator[TritonServer]:
    """Run a server on the small repository; shared, so never stop or change it."""
    server = TritonServer(ServerConfig(repository=repository, http_port=0, grpc_port=0, metrics_port=0))
    try:
        server.start()
        yield server
    finally:
        server.stop(timeout_s=0)  # a clean exit has tests of its own


@pytest.fixture
def start_triton() -> Iterator[StartServer]:
    """Start private servers: `start_triton(repository, **ServerConfig fields)`; they are stopped after the test."""
    with ExitStack() as running:

        def start(repository: Path, **options: Any) -> TritonServer:
            free = {"http_port": 0, "grpc_port": 0, "metrics_port": 0, "exit_timeout_s": 5.0}
            server = TritonServer(ServerConfig(repository=repository, **{**free, **options}))
            running.callback(server.stop, timeout_s=0)  # what a test wants of a clean exit it asks for itself
            server.start()
            return server

        yield start
