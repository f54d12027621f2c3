"""Everything that can keep a server from starting is a typed error that says what and how to go on; all of it happens for real."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from serve import installation, launch
from serve.config import ServerConfig
from serve.errors import (
    EmptyRepositoryError,
    ModelLoadError,
    PortInUseError,
    RepositoryError,
    ServerNotFoundError,
    ServerStartError,
    UnsupportedPlatformError,
)
from serve.server import TritonServer
from tests.conftest import StartServer
from tests.serving import coloured, infer
from tests.small_model import small_config

ROOT = Path(__file__).parent.parent
MakeRepository = Callable[..., Path]


@pytest.mark.parametrize("name", ["http", "grpc", "metrics"])
def test_port_in_use_names_port_holder_and_option(repository: Path, name: str) -> None:
    """A port that somebody listens on is refused before anything is started, with the holder and the option to change."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0, f"{name}_port": port}
        with pytest.raises(
            PortInUseError, match=rf"{name} port {port} .*process {os.getpid()}.*--{name}-port"
        ) as caught:
            TritonServer(ServerConfig(repository=repository, **ports)).start()
    assert (caught.value.port, caught.value.purpose) == (port, name)


def _crash_first(monkeypatch: pytest.MonkeyPatch, num_times: int) -> list[str]:
    """Have so many starts of the server end in an abort; one word is noted for each start."""
    started: list[str] = []
    real = launch.start

    def start(command: Sequence[str], *arguments: Any) -> subprocess.Popen[bytes]:
        started.append("start")
        abort = [sys.executable, "-c", "import os; os.abort()"]
        return real(abort if len(started) <= num_times else command, *arguments)

    monkeypatch.setattr(launch, "start", start)
    return started


def test_server_that_crashes_while_it_starts_is_started_again(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton has faults that come and go; what was left of the attempt is gone."""
    started = _crash_first(monkeypatch, 2)
    config = ServerConfig(repository=repository, http_port=0, grpc_port=0, metrics_port=0)
    with TritonServer(config) as server:
        assert len(started) == 3
        assert infer(server.grpc_url, coloured((255, 0, 0))).shape == (1, 3)


def test_server_that_always_crashes_is_an_error(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After three attempts, with the signal as exit code."""
    started = _crash_first(monkeypatch, 99)
    with pytest.raises(ServerStartError, match="exit code -6"):
        TritonServer(ServerConfig(repository=repository, http_port=0, grpc_port=0, metrics_port=0)).start()
    assert len(started) == 3


def test_health_port_in_use(repository: Path) -> None:
    """The command says so, and ends with status 1, when the port of its health endpoint is taken."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = _command("--repository", str(repository), "--health-port", port)
    assert done.returncode == 1
    assert f"PortInUseError: health port {port}" in done.stderr


@pytest.mark.parametrize(
    "make", [lambda path: None, lambda path: path.mkdir(), lambda path: (path / "a").mkdir(parents=True)]
)
def test_empty_repository_says_how_to_fill_it(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """A repository that is not there, is empty, or holds no model is one error with the command that fills it."""
    make(tmp_path / "repository")
    with pytest.raises(EmptyRepositoryError, match="python -m export"):
        TritonServer(ServerConfig(repository=tmp_path / "repository")).start()


def test_command_reports_errors_without_traceback(tmp_path: Path) -> None:
    """`python -m serve` on an empty repository ends with status 1 and one line."""
    done = _command("--repository", str(tmp_path))
    assert done.returncode == 1
    assert "EmptyRepositoryError" in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_model_lists_the_known(repository: Path) -> None:
    """A wanted model that the repository lacks is named beside those it has."""
    with pytest.raises(
        RepositoryError, match=r"no model nudity in .*there are: moderation, moderation_encoded"
    ):
        TritonServer(ServerConfig(repository=repository, load_models=("nudity",))).start()


def _broken_onnx(repository: Path) -> None:
    model = repository / "moderation" / "1" / "model.onnx"
    model.write_bytes(model.read_bytes()[:100])
    (model.parent / "manifest.json").unlink()


def _no_version(repository: Path) -> None:
    shutil.rmtree(repository / "moderation" / "1")


def _field_of_a_newer_triton(repository: Path) -> None:
    with (repository / "moderation" / "config.pbtxt").open("a") as config:
        config.write("\nmodel_metrics { }\n")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_broken_onnx, "Protobuf parsing failed"),
        (_no_version, "at least one version must be available"),
        (_field_of_a_newer_triton, r'no field named "model_metrics"'),
    ],
)
def test_model_load_error_has_the_servers_reason(
    repository_factory: MakeRepository, start_triton: StartServer, damage: Callable[[Path], None], reason: str
) -> None:
    """A model that is refused is an error with the reason out of the server's log, for the model it is about."""
    repository = repository_factory()
    damage(repository)
    with pytest.raises(ModelLoadError, match=reason) as caught:
        start_triton(repository, load_models=("moderation",))
    assert list(caught.value.reasons) == ["moderation"]
    assert "Traceback" not in str(caught.value)


def test_backend_refuses_what_does_not_fit_the_model(
    repository_factory: MakeRepository, start_triton: StartServer
) -> None:
    """The stand-in backend's own checks reach the user in the C++ backend's words."""
    config = small_config()
    config.output[0].dims[0] = 4
    with pytest.raises(
        ModelLoadError, match=r"tensor 'scores': the model expects 2 dimensions \(shape \[-1,3\]\)"
    ):
        start_triton(repository_factory(config=config), load_models=("moderation",))


def test_missing_wheel_names_the_way_to_get_it(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without tritonserver on PATH and without the wheel the error names both ways out."""
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "site-packages" not in entry])
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ServerNotFoundError, match=r"make install.*pip install nvidia-pytriton==0\.7\.0"):
        installation.find_server("auto")
    with pytest.raises(ServerNotFoundError, match="NVIDIA's container"):
        installation.find_server("path")


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("system", "Darwin", "Darwin x86_64"),
        ("libc_ver", ("glibc", "2.31"), r"glibc 2\.31"),
        ("libc_ver", ("", ""), "no glibc"),
    ],
)
def test_other_platforms_are_told(
    monkeypatch: pytest.MonkeyPatch, name: str, value: object, found: str
) -> None:
    """Where the wheel's server cannot run, the error says what was found, what is needed, and what else can be done."""
    monkeypatch.setattr(platform, name, lambda: value)
    with pytest.raises(UnsupportedPlatformError, match=rf"{found}.*NVIDIA's container"):
        installation.find_server("embedded")


def test_embedded_server_stays_on_loopback(repository: Path) -> None:
    """The wheel's old server is not put on a network."""
    with pytest.raises(UnsupportedPlatformError, match=r"loopback only, not on 0\.0\.0\.0"):
        TritonServer(ServerConfig(repository=repository, host="0.0.0.0", server="embedded")).start()


def test_unreadable_repository(tmp_path: Path) -> None:
    """A repository that is a file says so as an empty one; a folder without permission names the permission."""
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(EmptyRepositoryError):
        TritonServer(ServerConfig(repository=file)).start()
    if os.getuid() == 0:
        pytest.skip("root reads everything")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    with pytest.raises(RepositoryError, match="Permission denied"):
        TritonServer(ServerConfig(repository=closed)).start()


def test_few_descriptors_are_reported(repository: Path) -> None:
    """With too few open files allowed the command says how many are needed."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))

    done = _command("--repository", str(repository), preexec_fn=limit)
    assert done.returncode == 1
    assert "only 100 open files are allowed" in done.stderr


def test_small_shared_memory_is_reported(repository: Path) -> None:
    """With a full /dev/shm the command says so instead of letting model processes crash."""
    if os.getuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare to give a process a /dev/shm of its own")
    mount = "mount -t tmpfs -o size=1m tmpfs /dev/shm && exec"
    serve = f"{sys.executable} -m serve --repository {repository} --health-port 0 --http-port 0 --grpc-port 0 --metrics-port 0"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{mount} {serve}"],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if "mount:" in done.stderr or "unshare:" in done.stderr:
        pytest.skip("mounting is not allowed here")
    assert done.returncode == 1
    assert "ResourceError: /dev/shm has" in done.stderr


@pytest.mark.parametrize(
    ("field", "value"),
    [("http_port", 70000), ("startup_timeout_s", 0), ("exit_timeout_s", -1), ("tls_cert", Path("a"))],
)
def test_config_refuses_bad_values(field: str, value: object) -> None:
    """A value that cannot be is refused when the configuration is made, by name."""
    with pytest.raises(ValueError, match=field):
        ServerConfig(**{field: value})  # type: ignore[arg-type]


def _command(
    *arguments: str, preexec_fn: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "serve", *arguments],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=preexec_fn,
    )
