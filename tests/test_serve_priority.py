"""What starts gives way to what answers, and has its full priority back when it is ready."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from serve import priority
from serve.config import ServerConfig
from serve.server import TritonServer
from tests.serving import eventually

AUTOGROUP = Path("/proc/self/autogroup")
BASE = os.getpriority(os.PRIO_PROCESS, 0)
LOW = min(BASE + priority.STEP, priority.LOWEST)
THREADED = "import threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); print(flush=True); time.sleep(60)"

needs_right = pytest.mark.skipif(
    not priority.may_raise(), reason="needs root, CAP_SYS_NICE or a limit on nice"
)


def _started() -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", THREADED], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.fixture
def two() -> Iterator[tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]]:
    """Two processes with two threads each."""
    found = (_started(), _started())
    yield found
    for each in found:
        each.kill()
        each.communicate()


def _nice(pid: int) -> set[int]:
    """Nice values of all threads."""
    threads = [int(each.name) for each in Path(f"/proc/{pid}/task").iterdir()]
    return {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads}


@needs_right
def test_every_thread_is_lowered_and_raised_again(
    two: tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]],
) -> None:
    """Processes that are named late are found as well, one that is spared is left alone, one that ends is no error."""
    first, second = two
    ended, named = _started(), [first.pid]
    with priority.lowered(lambda: [*named, ended.pid], but=[second.pid]):
        eventually(lambda: _nice(first.pid) == {LOW}, what="lower priority")
        named.append(second.pid)
        ended.kill()
        ended.communicate()
        late = _started()
        named.append(late.pid)
        eventually(lambda: _nice(late.pid) == {LOW}, what="lower priority of the late one")
        assert _nice(second.pid) == {BASE}
    assert _nice(first.pid) == _nice(late.pid) == {BASE}
    late.kill()
    late.communicate()


@needs_right
def test_priority_is_raised_again_after_an_error(
    two: tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]],
) -> None:
    """A start that fails leaves nothing slow behind."""
    pid = two[0].pid

    def start() -> None:
        with priority.lowered(lambda: [pid]):
            eventually(lambda: _nice(pid) == {LOW}, what="lower priority")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        start()
    assert _nice(pid) == {BASE}


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="needs a kernel with autogroups")
@pytest.mark.parametrize("may_raise", [True, False])
def test_session_is_lowered_whoever_asks(
    two: tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
    *,
    may_raise: bool,
) -> None:
    """Between sessions only the session's own value counts, and it needs no right; our own session keeps its own."""
    monkeypatch.setattr(priority, "may_raise", lambda: may_raise)
    mine = AUTOGROUP.read_text()

    def group() -> int:
        return int(Path(f"/proc/{two[0].pid}/autogroup").read_text().split()[-1])

    before = group()
    with priority.lowered(lambda: [two[0].pid]):
        eventually(lambda: group() == before + priority.STEP, what="a lower session")
    assert group() == before
    with priority.lowered(lambda: [os.getpid()], but=[os.getpid()]):
        time.sleep(0.2)
        assert AUTOGROUP.read_text() == mine


def test_nothing_is_lowered_that_could_not_be_raised(
    two: tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the right, the threads of a process are not touched."""
    changed = []

    def refuse(_which: int, who: int, nice: int) -> None:
        changed.append(who)
        if nice <= BASE:
            raise PermissionError

    monkeypatch.setattr(os, "setpriority", refuse)
    priority.may_raise.cache_clear()
    try:
        with priority.lowered(lambda: [two[0].pid]):
            time.sleep(0.2)
            assert not priority.may_raise()
    finally:
        priority.may_raise.cache_clear()
    assert set(changed) == {0}  # the thread that tried, and nobody else


@needs_right
def test_server_starts_low_and_answers_with_full_priority(repository_factory: Callable[..., Path]) -> None:
    """Tritonserver and the processes of its models, all of their threads."""
    during: set[int] = set()
    server = TritonServer(
        ServerConfig(repository=repository_factory(), http_port=0, grpc_port=0, metrics_port=0),
        on_log=lambda _line: during.update(_nice(server.pid)),
    )
    with server:
        assert LOW in during
        assert {value for pid in server.pids() for value in _nice(pid)} == {BASE}
        assert len(server.pids()) > 1
        assert psutil.Process(server.pid).num_threads() > 1


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="needs a kernel with autogroups")
@pytest.mark.parametrize("alone", [True, False])
def test_command_gives_way_until_it_is_ready(repository: Path, *, alone: bool) -> None:
    """A service has its session for itself, which is lowered from the first moment; a program in a terminal shares one."""
    ports = [word for name in ("http", "grpc", "metrics", "health") for word in (f"--{name}-port", "0")]
    command = [sys.executable, "-m", "serve", "--repository", str(repository), *ports]
    mine, seen = AUTOGROUP.read_text(), set[str]()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=alone) as process:
        assert process.stdout is not None
        group = Path(f"/proc/{process.pid}/autogroup")
        lines = iter(process.stdout.readline, "")
        found = threading.Thread(target=lambda: any("token" in line for line in lines))
        found.start()
        try:
            while found.is_alive():
                seen.add(group.read_text())
                found.join(0.02)
            if alone:
                assert str(priority.STEP) in {text.split()[-1] for text in seen}
                eventually(lambda: group.read_text().split()[-1] == "0", what="full priority")
            else:
                assert seen == {mine}
                assert group.read_text() == mine
        finally:
            process.terminate()
