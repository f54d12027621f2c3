"""What a command line or a machine can get wrong is said at once, and what goes wrong later stops one replica at most."""

from __future__ import annotations

import errno
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve import supervise
from serve.__main__ import main
from serve.config import ServerConfig, WatchConfig
from serve.errors import ResourceError, ServerDiedError, StartStoppedError
from serve.health import HealthServer
from serve.server import TritonServer
from serve.supervise import Supervisor
from serve.workspace import Workspace, sweep
from tests.serving import eventually

FREE: dict[str, Any] = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ("--replicas 0", "replicas"),
        ("--replicas -1", "replicas"),
        ("--health-port 70000", "health_port"),
        ("--http-port 65530 --replicas 2", "http_port"),
        ("--drain-s -1", "drain_s"),
    ],
)
def test_values_that_cannot_be_are_refused(
    arguments: str, field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command ends with status 2 and the name of the field."""
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    assert ended.value.code == 2
    assert f"{field} must" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("field", ["token_file", "log_file"])
def test_file_in_a_folder_that_is_not_there(repository: Path, tmp_path: Path, field: str) -> None:
    """The error names the file and is one of ours."""
    config = ServerConfig(repository=repository, **{**FREE, field: tmp_path / "none" / "file"})
    with pytest.raises(ResourceError, match="none/file"):
        TritonServer(config).start()


def test_no_room_for_the_servers_folder(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full in the middle of the start is a typed error with the system's words."""

    def full(*_: object) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Workspace, "backends", full)
    with pytest.raises(ResourceError, match="No space left"):
        TritonServer(ServerConfig(repository=repository, **FREE)).start()


def test_start_ends_when_it_is_told_to_stop(repository: Path) -> None:
    """Whoever stops the command while models load does not wait for them."""
    stop = threading.Event()
    server = TritonServer(ServerConfig(repository=repository, **FREE), stop=stop)
    stop.set()
    with pytest.raises(StartStoppedError):
        server.start()
    with pytest.raises(ServerDiedError):
        _ = server.pid


def test_failure_of_the_watch_is_that_replicas_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a free descriptor the watch says that it sees nothing, waits, and goes on."""
    stop, fails = threading.Event(), threading.Event()
    supervisor = Supervisor(ServerConfig(), WatchConfig(interval_s=0.01), health_port=0)
    supervisor._backoff_s = 0.01

    def step(_: Supervisor) -> None:
        if fails.is_set():
            raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Supervisor, "_step", step)
    fails.set()
    thread = threading.Thread(target=supervisor.run, args=(stop,))
    thread.start()
    try:
        eventually(lambda: "Too many open files" in supervisor.problems().get("watch", ""), what="trouble")
        fails.clear()
        eventually(lambda: "watch" not in supervisor.problems(), what="sight again")
        assert thread.is_alive()
    finally:
        stop.set()
        thread.join(timeout=20)


def test_pause_grows_until_a_server_has_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed starts that take long do not shorten the pause; a server that ran for a while does."""
    supervisor = Supervisor(ServerConfig(), WatchConfig(), health_port=0)
    monkeypatch.setattr(supervise, "_HEALTHY_AFTER_S", 0.0)
    assert [supervisor._next_pause_s() for _ in range(4)] == [0.0, 0.5, 1.0, 2.0]
    supervisor._running_since = 0.0
    assert supervisor._next_pause_s() == 0.0
    supervisor.close()


def test_callers_who_never_ask_do_not_fill_the_health_endpoint() -> None:
    """Of many silent connections the oldest are closed, and whoever asks is answered."""
    health = HealthServer("127.0.0.1", 0, dict)
    host, _, port = health.url.partition(":")
    before = threading.active_count()
    silent = [socket.create_connection((host, int(port)), timeout=20) for _ in range(100)]
    try:
        assert httpx.get(f"http://{health.url}/ready", trust_env=False).status_code == 200
        assert silent[0].recv(1) == b""
        eventually(lambda: threading.active_count() - before <= 40, what="bounded threads")
    finally:
        for each in silent:
            each.close()
        health.close()


def test_starts_side_by_side_leave_each_other_alone() -> None:
    """A folder that is being made is not swept away by another start."""
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: Workspace(), range(24)))
    try:
        assert all((each.path / "lock").is_file() for each in made)
        assert not {each.id for each in made} & set(sweep())
    finally:
        for each in made:
            each.close()


def test_cores_are_ordered_by_memory_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that numbers its cores across nodes each replica gets the cores of one node."""
    for node, cores in enumerate(("0,2,4-6", "1,3,7")):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}" / "cpulist").write_text(f"{cores}\n")
    (tmp_path / "node10").mkdir()
    (tmp_path / "node10" / "cpulist").write_text("\n")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3, 4, 5, 7, 9})
    assert supervise._cores(tmp_path) == [0, 2, 4, 5, 1, 3, 7, 9]
