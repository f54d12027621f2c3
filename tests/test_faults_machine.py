"""What a machine can do to a server: a full disk, no permission, a jumping clock, no free descriptors, a publisher killed half-way."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks.fault_kinds import started
from benchmarks.fault_load import Load
from benchmarks.fault_replicas import Replica
from export.commit import open_staging
from export.errors import RepositoryError
from export.publish import publish
from export.repository import ModelFolder
from moderation_client import ModerationClient
from serve.config import ServerConfig, WatchConfig
from serve.errors import RepositoryError as UnusableError
from serve.server import TritonServer
from serve.watch import Watch
from tests.conftest import StartServer
from tests.serving import coloured, eventually, infer
from tests.small_export import quick_config, small_source
from tests.test_faults_replicas import known_images

ROOT = Path(__file__).parent.parent
FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
DAY_S = 86_400


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if os.getuid() != 0 or mount is None:
        pytest.skip("needs root and `mount`")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=False)
    if done.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_while_publishing(small_disk: Path, tmp_path: Path) -> None:
    """Publishing to a full disk is a clear error, the repository stays as it was, and after making room it goes through."""
    repository = small_disk / "repository"
    source = small_source(tmp_path / "scratch")
    config = quick_config(repository, report=tmp_path / "report")
    publish(source, config)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))
    with pytest.raises(RepositoryError, match=r"is as it was: No space left on device .*MiB free"):
        publish(source, config)
    assert list(ModelFolder(repository).versions) == [1]
    assert not list((small_disk / ".repository.staging").glob("stage-*"))
    ballast.unlink()
    publish(source, config)
    assert list(ModelFolder(repository).versions) == [1, 2]


def test_repository_without_permission(repository_factory: Callable[..., Path]) -> None:
    """A folder that the server's user may not read is named with the reason, also when root runs the tests."""
    repository = repository_factory()
    (repository / "moderation").chmod(0)
    command = [sys.executable, "-m", "serve", "--repository", str(repository), "--health-port", "0"]
    if os.getuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("needs setpriv (Debian: util-linux) to give up root's right to read everything")
        command = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", *command]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    (repository / "moderation").chmod(0o755)
    assert done.returncode == 1
    assert "RepositoryError" in done.stderr
    assert "Permission denied" in done.stderr
    assert "Traceback" not in done.stderr


def _interrupted(repository: Path, tmp_path: Path) -> Path:
    """Bring a repository into the state between the two renames of a swap; the staged folder."""
    with open_staging(repository) as staging:
        path = staging.path
    staged, aside = path / "stage-x" / "moderation", path / "stage-x" / "moderation.before"
    staged.parent.mkdir()
    shutil.copytree(repository / "moderation", staged)
    (repository / "moderation").rename(aside)
    # written while the folder was mounted elsewhere
    entry = {"staged": staged, "target": repository / "moderation", "aside": aside}
    moved = {key: str(Path("/elsewhere") / value.relative_to(tmp_path)) for key, value in entry.items()}
    (path / "journal.json").write_text(json.dumps(moved))
    return staged


def test_half_finished_publish_is_completed_at_start(
    repository_factory: Callable[..., Path], start_triton: StartServer, tmp_path: Path
) -> None:
    """A repository whose model folder is between two places when the publisher dies is whole again at the next start."""
    repository = repository_factory()
    staged = _interrupted(repository, tmp_path)
    server = start_triton(repository, load_models=("moderation",))
    assert infer(server.grpc_url, coloured((255, 0, 0)))[0, 0] == pytest.approx(0.982, abs=1e-3)
    assert not staged.exists()
    assert not (staged.parents[1] / "journal.json").exists()


def test_half_finished_publish_that_cannot_be_completed(
    repository_factory: Callable[..., Path], tmp_path: Path
) -> None:
    """Where the folders are gone the error has the command to run; while its publisher works, nothing is touched."""
    repository = repository_factory()
    staged = _interrupted(repository, tmp_path)
    with open_staging(repository):
        assert (repository / "moderation").exists(), "export completes it under its lock"
    staged = _interrupted(repository, tmp_path)
    shutil.rmtree(staged.parent)
    with pytest.raises(UnusableError, match="run `python -m export recover "):
        TritonServer(ServerConfig(repository=repository)).start()


def _is_well(watch: Watch) -> bool:
    watch.check()
    return watch.ready


def test_clock_that_jumps(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_triton: StartServer
) -> None:
    """The clock of server and model process jumps a day ahead and two days back: no call fails, nothing is taken for broken."""
    if not FAKETIME:
        pytest.skip("needs libfaketime (Debian: apt-get install libfaketime)")
    offset = tmp_path / "offset"
    offset.write_text("+0")
    settings = {"LD_PRELOAD": FAKETIME[0], "FAKETIME_TIMESTAMP_FILE": offset, "FAKETIME_NO_CACHE": 1}
    settings |= {"DONT_FAKE_MONOTONIC": 1, "FAKETIME_DONT_FAKE_MONOTONIC": 1}
    with monkeypatch.context() as patched:
        for name, value in settings.items():
            patched.setenv(name, str(value))
        server = start_triton(repository, load_models=("moderation",))
    watch = Watch(server, WatchConfig(probe_interval_s=0.1))
    with (
        ModerationClient(server.grpc_url) as client,
        Load(client, known_images(), num_callers=4, rate_per_s=60.0) as load,
    ):
        for jump_s in (DAY_S, -DAY_S):
            load.wait(num_calls=30)
            offset.write_text(f"{jump_s:+d}")
            load.wait(num_calls=60)
            eventually(lambda: _is_well(watch), what="correct answers after the jump")
    assert load.outcomes() == {"ok": load.num_asked}
    days = {line[:10] for line in server.log_lines() if line[:2] == "20"}
    server.stop()
    assert {line[:10] for line in server.log_lines() if line[:2] == "20"} - days, "the clock did not jump"


def test_no_free_descriptors(repository: Path, tmp_path: Path) -> None:
    """Callers who hold every descriptor of the server open cannot end it; once they are gone it answers again."""
    script = 'ulimit -n 300 && exec "$0" "$@"'
    replica = Replica(repository, tmp_path, wrapper=("sh", "-c", script))
    with started([replica]), contextlib.ExitStack() as held:
        pid = replica.server().pid
        for _ in range(400):
            with contextlib.suppress(OSError):
                address = ("127.0.0.1", replica.ports["http"])
                held.enter_context(socket.create_connection(address, timeout=0.2))
        time.sleep(1.0)
        held.close()
        url = f"http://127.0.0.1:{replica.ports['http']}/v2/health/ready"

        def answers() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                return httpx.get(url, timeout=2.0, trust_env=False).is_success
            return False

        eventually(answers, timeout_s=30, what="an answer after the flood of connections")
        with ModerationClient(replica.url) as client, Load(client, known_images(), num_callers=2) as load:
            load.wait(num_calls=10)
        assert load.outcomes() == {"ok": load.num_asked}
        assert replica.server().pid == pid


def test_million_chunks_sent_directly(repository: Path, tmp_path: Path) -> None:
    """What a proxy refuses ends this old server's process (known, see docs/threat_model.md): it is started again and answers."""
    replica = Replica(repository, tmp_path)
    head = b"POST /v2/models/moderation/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with started([replica]):
        address = ("127.0.0.1", replica.ports["http"])
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=30) as attacker:
            attacker.sendall(head + b"1\r\nx\r\n" * 10**6 + b"0\r\n\r\n")
            attacker.recv(100)
        with ModerationClient(replica.url, timeout_s=60.0) as client:
            assert client.moderate([known_images().pixels[0]])[0].error is None
        eventually(replica.is_ready, timeout_s=60, what="ready")
