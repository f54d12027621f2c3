"""One Triton server as a context manager: started on a repository, ready when entered, gone without a trace when left."""

from __future__ import annotations

import logging
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from types import TracebackType

import psutil

from serve import installation, launch, log, ports, preflight, repository, unfinished
from serve.command import TOKEN_HEADER, Launch, Ports, server_command
from serve.concealment import blank_argument
from serve.config import ServerConfig
from serve.drain import finish_requests
from serve.errors import (
    ModelLoadError,
    PortInUseError,
    ResourceError,
    ServerDiedError,
    ServerStartError,
    StartStoppedError,
)
from serve.local_http import NoAnswerError, ask
from serve.preflight import token
from serve.workspace import Workspace

logger = logging.getLogger("serve")

_NUM_ATTEMPTS = 3
_CRASHES = {-signal.SIGABRT, -signal.SIGBUS, -signal.SIGSEGV}
"""Exit codes of a fault of the server's own (boost's lock_exception, seen on busy cores); a wrong configuration ends it with one above 0."""
_POLL_S = 0.05
_NUM_TAIL_LINES = 30
_EXIT_S = 0.2  # no request runs any more: for answers that are on their way


class TritonServer:
    """The real tritonserver on a model repository.

    `with TritonServer(ServerConfig(repository=..., http_port=0, grpc_port=0, metrics_port=0)) as server:` is ready
    inside. Attributes: `grpc_url`, `http_url` and `metrics_url` ("127.0.0.1:PORT"), `repository`, `models`, `token`,
    `token_file`, `admin_headers` (for HTTP and, prefixed, for gRPC), `pid`, `startup_s`.

    Raises the errors of `serve.errors`: PortInUseError, EmptyRepositoryError, ModelLoadError, ...
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        on_log: Callable[[str], None] | None = None,
        stop: threading.Event | None = None,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> None:
        """Remember what to start.

        `on_log` gets every line of the server's log, a start ends early when `stop` is set, `meanwhile` is called while
        tritonserver starts.
        """
        self.config = config
        self.repository = config.repository
        self.models: tuple[str, ...] = ()
        self._on_log = on_log
        self._stop = stop if stop is not None else threading.Event()
        self._meanwhile = meanwhile
        self._started = False
        self.startup_s = 0.0
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
        for attempt in range(_NUM_ATTEMPTS):
            try:
                found = self._check()
                self._workspace = Workspace()
                self.token, self.token_file = token(self.config.token_file, self._workspace.path)
                self.ports: Ports = ports.choose_ports(self.config)
                self._launch(found, self._workspace)
                return
            except PortInUseError as error:
                self.stop(timeout_s=0)
                chosen = getattr(self.config, f"{error.purpose}_port", 0)
                if chosen or attempt == _NUM_ATTEMPTS - 1:
                    raise  # a free port that was lost to somebody quicker is chosen anew, a wanted one is not
            except OSError as error:
                self.stop(timeout_s=0)
                raise _resource_error(error) from error
            except BaseException:
                self.stop(timeout_s=0)
                raise

    def restart(self) -> None:
        """Start again at once after the server ended: same addresses, same token. Raises ServeError."""
        assert self._workspace is not None
        found = self._check()
        self._end_process(0.0)
        self._workspace.clear()
        try:
            self._launch(found, self._workspace)
        except OSError as error:
            raise _resource_error(error) from error

    def _check(self) -> installation.Installation:
        """Find the server, and look at everything that can be known to fail before it is started."""
        found = installation.find_server(self.config.server)
        preflight.check(self.config, found)
        unfinished.complete(self.config.repository)
        self.models = repository.models(self.config.repository, self.config.load_models)
        return found

    def _launch(self, found: installation.Installation, workspace: Workspace) -> None:
        """Run tritonserver and wait until it is ready; again when it crashed by itself."""
        for attempt in range(_NUM_ATTEMPTS):
            try:
                self._run(found, workspace)
                return
            except ServerStartError as error:
                if self.process.returncode not in _CRASHES or attempt == _NUM_ATTEMPTS - 1:
                    raise
                logger.warning("tritonserver crashed while it started; starting it once more: %s", error)
                self._end_process(0.0)
                workspace.clear()

    def _run(self, found: installation.Installation, workspace: Workspace) -> None:
        command = server_command(
            self.config,
            Launch(
                installation=found,
                backends=workspace.backends(found),
                shm_prefix=workspace.shm_prefix,
                token=self.token,
                ports=self.ports,
                models=self.models,
                model_config_name=self.config.model_config_name or installation.default_config_name(found),
            ),
        )
        environment = installation.server_environment(found)
        environment |= {} if self.config.gpu is None else {"CUDA_VISIBLE_DEVICES": str(self.config.gpu)}
        began = time.monotonic()
        self._process = launch.start(command, environment, self.config.cpu_cores)
        assert self._process.stdout is not None
        file = self.config.log_file or workspace.path / "server.log"
        sinks = () if self._on_log is None else (self._on_log,)
        self._reader = log.LogReader(self._process.stdout, file=file, sinks=sinks)
        self._meanwhile()
        self._wait_until_ready()
        self.startup_s = time.monotonic() - began
        blank_argument(self.pid, self.token)
        self._started = True

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.config.startup_timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise self._start_error(f"tritonserver ended with exit code {self.process.returncode}")
            if self._says_yes("/v2/health/ready"):
                self._check_models()
                return
            if self._stop.wait(_POLL_S):
                raise StartStoppedError("the start was given up: the server was told to stop")
        raise self._start_error(f"tritonserver was not ready within {self.config.startup_timeout_s:g} s")

    def _says_yes(self, path: str) -> bool:
        try:
            return ask(self.http_url, "GET", path, timeout_s=1.0).ok
        except NoAnswerError:
            return False

    def _check_models(self) -> None:
        """Ask for each model: a server without models is 'ready', too."""
        unready = [name for name in self.models if not self._says_yes(f"/v2/models/{name}/ready")]
        if unready:
            raise self._start_error(f"{', '.join(unready)} did not become ready")

    def _start_error(self, fact: str) -> Exception:
        """Make the most telling error that the log gives."""
        if self.process.poll() is not None and self._reader is not None:
            self._reader.close()
        lines = self.log_lines()
        taken = log.sockets_in_use(lines)
        if taken:
            return ports.lost(self.config, self.ports, taken[0])
        if log.lacks_shared_memory(lines):
            return ResourceError(
                "the server ran out of shared memory: give /dev/shm more (Docker: --shm-size=1g)"
            )
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

    def stop(self, *, timeout_s: float | None = None) -> None:
        """End the server and remove its files and shared memory; safe to call twice.

        New requests are refused, and those that run may finish within `timeout_s` (default: the configuration's
        `exit_timeout_s`); 0 kills at once.
        """
        limit_s = self.config.exit_timeout_s if timeout_s is None else timeout_s
        if limit_s > 0 and self._started and self._reader is not None and self.process.poll() is None:
            finish_requests(self.http_url, self.admin_headers, self._reader, timeout_s=limit_s)
        self._end_process(min(limit_s, _EXIT_S))
        if self._workspace is not None:
            self._workspace.close()
            self._workspace = None

    def _end_process(self, timeout_s: float) -> None:
        if self._process is not None:
            launch.end(self._process, timeout_s)
            self._process = None
        self._started = False
        if self._workspace is not None:
            self._workspace.end_processes()  # one that was stopped would hold the log open
        if self._reader is not None:
            self._reader.close()


def _resource_error(error: OSError) -> ResourceError:
    """Say what of this machine was missing; the system's words have the file."""
    return ResourceError(f"the server cannot be started here: {error}; make room, or give another place")
