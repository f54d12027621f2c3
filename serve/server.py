"""One Triton server as a context manager: started on a repository, ready when entered, gone without a trace when left."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import httpx
import psutil

from serve import installation, launch, log, ports, repository
from serve.command import TOKEN_HEADER, Launch, Ports, server_command
from serve.config import ServerConfig
from serve.errors import ModelLoadError, RepositoryError, ServerDiedError, ServerStartError
from serve.workspace import Workspace

_NUM_ATTEMPTS = 3
_POLL_S = 0.05
_NUM_TAIL_LINES = 30


class TritonServer:
    """The real tritonserver on a model repository.

    `with TritonServer(ServerConfig(repository=..., http_port=0, grpc_port=0, metrics_port=0)) as server:` is ready
    inside. Attributes: `grpc_url`, `http_url` and `metrics_url` ("127.0.0.1:PORT"), `repository`, `models`, `token`,
    `token_file`, `admin_headers` (for HTTP and, prefixed, for gRPC), `pid`.

    Raises the errors of `serve.errors`: PortInUseError, EmptyRepositoryError, ModelLoadError, ...
    """

    def __init__(self, config: ServerConfig, *, on_log: Callable[[str], None] | None = None) -> None:
        """Remember what to start; `on_log` gets every line of the server's log."""
        self.config = config
        self.repository = config.repository
        self.models: tuple[str, ...] = ()
        self._on_log = on_log
        self._process: subprocess.Popen[bytes] | None = None
        self._workspace: Workspace | None = None
        self._reader: log.LogReader | None = None

    def __enter__(self) -> TritonServer:
        """Start, and wait until every model is ready."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, whatever happened inside."""
        self.stop()

    def start(self) -> None:
        """Start, and wait until every model is ready. Raises ServeError."""
        found = installation.find_server(self.config.server)
        installation.check_host(found, self.config.host)
        installation.check_host(found, self.config.metrics_host)
        self.models = repository.models(self.config.repository, self.config.load_models)
        for attempt in range(_NUM_ATTEMPTS):
            try:
                self._start_once(found)
                return
            except _PortLostError as error:
                self.stop()
                if attempt == _NUM_ATTEMPTS - 1:
                    raise ports.in_use("http or grpc", self.config.host, error.port) from error
            except BaseException:
                self.stop()
                raise

    def _start_once(self, found: installation.Installation) -> None:
        self._workspace = workspace = Workspace()
        self.token, self.token_file = _token(self.config.token_file, workspace.path)
        self.ports: Ports = ports.choose_ports(self.config)
        command = server_command(
            self.config,
            Launch(
                installation=found,
                backends=workspace.backends(found),
                shm_prefix=workspace.shm_prefix,
                token=self.token,
                ports=self.ports,
                models=self.models,
                model_config_name=self.config.model_config_name or _default_config_name(found),
            ),
        )
        self._process = launch.start(command, installation.server_environment(found), os.getpid())
        assert self._process.stdout is not None
        file = self.config.log_file or workspace.path / "server.log"
        sinks = () if self._on_log is None else (self._on_log,)
        self._reader = log.LogReader(self._process.stdout, file=file, sinks=sinks)
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.config.startup_timeout_s
        with httpx.Client(base_url=f"http://{self.http_url}", timeout=1.0, trust_env=False) as http:
            while time.monotonic() < deadline:
                if self.process.poll() is not None:
                    raise self._start_error(f"tritonserver ended with exit code {self.process.returncode}")
                if _answers(http, "/v2/health/ready"):
                    self._check_models(http)
                    return
                time.sleep(_POLL_S)
        raise self._start_error(f"tritonserver was not ready within {self.config.startup_timeout_s:g} s")

    def _check_models(self, http: httpx.Client) -> None:
        """Ask for each model: a server without models is 'ready', too."""
        unready = [name for name in self.models if not _answers(http, f"/v2/models/{name}/ready")]
        if unready:
            raise self._start_error(f"{', '.join(unready)} did not become ready")

    def _start_error(self, fact: str) -> Exception:
        """Make the most telling error that the log gives."""
        if self.process.poll() is not None and self._reader is not None:
            self._reader.close()
        lines = self.log_lines()
        taken = log.sockets_in_use(lines)
        if taken:
            return _PortLostError(taken[0])
        reasons = log.load_failures(lines)
        tail = lines[-_NUM_TAIL_LINES:]
        if reasons:
            return ModelLoadError(reasons, log_tail=tail)
        said = log.errors(lines)
        return ServerStartError(f"{fact}: {'; '.join(said[-3:]) or ' / '.join(tail[-3:])}", log_tail=tail)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running server's process. Raises ServerDiedError when it was never started or is stopped."""
        if self._process is None:
            raise ServerDiedError("the server is not running", exit_code=None)
        return self._process

    @property
    def pid(self) -> int:
        """Process id of tritonserver."""
        return self.process.pid

    def pids(self) -> list[int]:
        """Process ids of tritonserver and of everything it started, first tritonserver."""
        try:
            children = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return [self.pid, *(child.pid for child in children)]

    @property
    def http_url(self) -> str:
        """Address for HTTP calls, without a scheme."""
        return f"{self.config.host}:{self.ports.http}"

    @property
    def grpc_url(self) -> str:
        """Address for gRPC calls."""
        return f"{self.config.host}:{self.ports.grpc}"

    @property
    def metrics_url(self) -> str:
        """Address of the Prometheus metrics (path `/metrics`), without a scheme."""
        return f"{self.config.metrics_host}:{self.ports.metrics}"

    @property
    def admin_headers(self) -> dict[str, str]:
        """Headers that open statistics, repository control, trace, log and shared memory, over HTTP and over gRPC."""
        return {TOKEN_HEADER: self.token, f"triton-grpc-protocol-{TOKEN_HEADER}": self.token}

    @property
    def shm_prefix(self) -> str:
        """What the names of this server's shared-memory regions begin with."""
        assert self._workspace is not None
        return self._workspace.shm_prefix

    def log_lines(self) -> tuple[str, ...]:
        """Return the last lines of the server's log."""
        return self._reader.lines() if self._reader is not None else ()

    def stop(self) -> None:
        """Let running requests finish, end the server, remove its files and shared memory; safe to call twice."""
        if self._process is not None:
            _end(self._process, self.config.exit_timeout_s)
            self._process = None
        if self._reader is not None:
            self._reader.close()
        if self._workspace is not None:
            self._workspace.close()
            self._workspace = None


class _PortLostError(Exception):
    """Somebody took a port between our choosing it and the server's listening on it."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.port = port


def _end(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """SIGTERM, then, when that does not help in time, SIGKILL; children that outlive it too."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout_s + 5.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(children, timeout=2.0)
    for child in alive:
        child.kill()


def _token(file: Path | None, folder: Path) -> tuple[str, Path]:
    """Get the admin token: the owner's, or a new one in a file that only the owner can read. Raises RepositoryError."""
    if file is not None and file.exists():
        token = file.read_text(encoding="utf-8").strip()
        if not token.isalnum() or not token.isascii() or len(token) < 16:
            raise RepositoryError(f"token file {file} must hold at least 16 letters and digits")
        return token, file
    token = secrets.token_hex(24)
    target = file or folder / "token"
    target.touch(mode=0o600)
    target.write_text(token + "\n", encoding="utf-8")
    return token, target


def _default_config_name(found: installation.Installation) -> str:
    """`gpu` where a GPU can be used, else `cpu`."""
    return "gpu" if not found.embedded and Path("/proc/driver/nvidia/version").exists() else "cpu"


def _answers(http: httpx.Client, path: str) -> bool:
    try:
        return http.get(path).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False
