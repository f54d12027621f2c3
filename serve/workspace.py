"""A server's own folder (backends, token, log), and what is cleaned up after servers that were killed.

Every running server holds a lock on `<root>/<id>/lock`. The kernel drops it when the process ends, however it ends, so whoever
can take the lock of a folder knows that its owner is gone, and removes the folder and the shared memory that bears its id.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil

from serve.errors import ResourceError, UnsafeRepositoryError
from serve.installation import Installation

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # where Linux keeps POSIX shared memory
_END_S = 5.0
OUR_BACKENDS = Path(__file__).parent / "backends"


class Workspace:
    """Folder of one server, locked while it lives. Use as a context manager or call `close`."""

    def __init__(self) -> None:
        """Sweep what dead servers left, then make and lock a new folder. Raises ResourceError."""
        try:
            root = _root()
            self.id = secrets.token_hex(6)
            self.path = root / self.id
            with _alone(root):
                _sweep(root)
                self.path.mkdir(mode=0o700)
                self._lock = _locked(self.path)
        except OSError as error:
            raise ResourceError(f"cannot make a folder for the server: {error}") from error
        self.shm_prefix = _shm_prefix(self.id)

    def backends(self, installation: Installation) -> Path:
        """Lay out a backend directory: the installation's own, ours, and the stub beside the Python backend.

        Ours stands in for `onnxruntime` only where the installation has none.
        """
        target = self.path / "backends"
        target.mkdir()
        for found in installation.backends.iterdir() if installation.backends.is_dir() else ():
            if found.is_dir() and found.name != "python":
                (target / found.name).symlink_to(found)
        python = target / "python"
        shutil.copytree(
            installation.backends / "python", python, ignore=shutil.ignore_patterns("__pycache__")
        )
        if installation.stub is not None:
            stub = Path(shutil.copy(installation.stub, python / "triton_python_backend_stub"))
            stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
        for ours in OUR_BACKENDS.iterdir():
            if ours.is_dir() and ours.name != "__pycache__" and not (target / ours.name).exists():
                shutil.copytree(ours, target / ours.name, ignore=shutil.ignore_patterns("__pycache__"))
        return target

    def end_processes(self) -> None:
        """Kill what runs models for a server that has ended."""
        _end_processes(self.path)

    def clear(self) -> None:
        """Remove what a server that ended left, but keep the token and the log."""
        self.end_processes()
        _remove_shared_memory(self.path)
        shutil.rmtree(self.path / "backends", ignore_errors=True)

    def close(self) -> None:
        """Remove the folder and this server's shared memory; safe to call twice."""
        _remove(self.path)
        self._lock.close()


def sweep(root: Path | None = None) -> list[str]:
    """Clean up after servers whose owner is gone; the ids of those cleaned."""
    root = root or _root()
    with _alone(root):
        return _sweep(root)


def _sweep(root: Path) -> list[str]:
    cleaned = []
    for folder in sorted(root.iterdir()):
        try:
            lock = _locked(folder)
        except (BlockingIOError, FileNotFoundError, NotADirectoryError):
            continue  # its server lives, or somebody else is sweeping it
        with lock:
            _remove(folder)
            cleaned.append(folder.name)
    return cleaned


def _root() -> Path:
    """Find the user's folder for servers; refuse it when somebody else could write there."""
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    root = Path(base) / f"moderation-serve-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    status = root.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise UnsafeRepositoryError(f"{root} is not a folder that only you can write to: remove it")
    return root


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One start at a time: to another one's sweep, a folder that is made and not locked yet looks like a dead server's."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _locked(folder: Path) -> IO[bytes]:
    """Open and lock a folder's lock file. Raises BlockingIOError when its server lives."""
    lock = (folder / "lock").open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise
    return lock


def _shm_prefix(workspace_id: str) -> str:
    return f"moderation-{workspace_id}-"


def _remove_shared_memory(folder: Path) -> None:
    for region in SHARED_MEMORY.glob(f"{_shm_prefix(folder.name)}*"):
        region.unlink(missing_ok=True)


def _end_processes(folder: Path) -> None:
    """Kill model processes of a server that has ended: one that was stopped, or hangs in its own exit, never goes."""
    killed = []
    for process in psutil.process_iter():
        try:
            if (process.cmdline() or [""])[0].startswith(f"{folder}/"):
                process.kill()
                killed.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    deadline = time.monotonic() + _END_S
    while not all(_has_ended(process) for process in killed) and time.monotonic() < deadline:
        time.sleep(0.02)


def _has_ended(process: psutil.Process) -> bool:
    """Whether it runs no more; until somebody collects it, which may take its adopted parent seconds, it is a zombie."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _remove(folder: Path) -> None:
    _end_processes(folder)
    _remove_shared_memory(folder)
    shutil.rmtree(folder, ignore_errors=True)
