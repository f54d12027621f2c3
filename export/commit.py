"""How a repository changes at one moment: a whole model folder is staged beside it, then swapped in a single system call.

Staging lies outside the repository, because a server in `--model-control-mode=none` would take every folder in it for a model.
`renameat2(RENAME_EXCHANGE)` swaps two folders atomically. On file systems that lack it, two renames under a journal do the
same: whoever comes next (`recover`) completes them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from export.errors import LockedError, RepositoryError

AT_FDCWD, RENAME_EXCHANGE = -100, 2
JOURNAL = "journal.json"
PART = ".part"
"""Ending of a file that is still being written."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class Staging:
    """The folder beside a repository where changes are prepared; holding it means holding the publisher's lock."""

    def __init__(self, repository: Path, path: Path) -> None:
        self.repository = repository
        self.path = path
        self.recovered: list[str] = []
        """What a killed publisher had left, one sentence for each thing."""

    def new_folder(self) -> Path:
        """Make an empty folder; what is left of it when a publisher dies is removed by the next one."""
        return Path(tempfile.mkdtemp(prefix="stage-", dir=self.path))

    def commit(self, staged: Path) -> Path | None:
        """Put the staged model folder in the place of the one of the same name; the commit point.

        Returns where the folder that was there before lies now, None when there was none.
        """
        sync_tree(staged)
        target = self.repository / staged.name
        if not target.exists():
            staged.rename(target)
            sync_folder(self.repository)
            return None
        if not exchange(staged, target):
            self._journalled_swap(staged, target)
        sync_folder(self.repository)
        return staged

    def remove(self, name: str) -> Path:
        """Take a model folder out of the repository, in one step; where it lies now, until the staging folder is closed."""
        aside = self.new_folder() / name
        (self.repository / name).rename(aside)
        sync_folder(self.repository)
        return aside

    def _journalled_swap(self, staged: Path, target: Path) -> None:
        aside = staged.with_name(f"{staged.name}.before")
        journal = self.path / JOURNAL
        entry = {"staged": str(staged), "target": str(target), "aside": str(aside)}
        write_synced(journal, json.dumps(entry))
        target.rename(aside)
        staged.rename(target)
        aside.rename(staged)
        sync_folder(self.repository)  # a journal that is gone must not outrun the renames that it told of
        journal.unlink()

    def recover(self) -> list[str]:
        """Complete a swap that was cut short and remove what dead publishers left; one sentence for each."""
        done = []
        journal = self.path / JOURNAL
        if journal.exists():
            done += self._complete(read_journal(journal))
            journal.unlink()
        journal.with_name(f"{JOURNAL}{PART}").unlink(missing_ok=True)
        for left in sorted(self.path.glob("stage-*")):
            shutil.rmtree(left)
            done.append(f"removed {left}, left by a publisher that was cut short")
        return done

    def _complete(self, entry: dict[str, Path] | None) -> list[str]:
        """Finish a swap as its journal says, wherever the repository was mounted when it was written."""
        if entry is None:
            return ["removed a journal that was cut short: its swap had not begun"]
        target = self.repository / entry["target"].name
        if target.exists():
            return []
        places = [self.path.joinpath(*entry[key].parts[-2:]) for key in ("staged", "aside")]
        source = next((each for each in places if each.exists()), None)
        if source is None:
            raise RepositoryError(
                f"{target} was being replaced when its publisher was killed, and neither {places[0]} nor {places[1]} "
                "is there any more: publish again into another folder"
            )
        source.rename(target)
        return [f"completed the swap of {target}"]


def staging_path(repository: Path) -> Path:
    """Where the staging folder of a repository lies: beside it."""
    repository = repository.resolve()
    return repository.parent / f".{repository.name}.staging"


@contextlib.contextmanager
def open_staging(repository: Path) -> Iterator[Staging]:
    """Take the publisher's lock, finish what was cut short, and lend the staging folder.

    Raises LockedError when another publisher is at work, RepositoryError where the folder cannot be used or the disk is full.
    """
    repository = repository.resolve()
    path = staging_path(repository)
    with _lock_file(repository, path) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LockedError(f"another publisher is at work on {repository}: wait for it to end") from error
        staging = Staging(repository, path)
        staging.recovered = staging.recover()
        try:
            yield staging
        except OSError as error:
            if error.errno in NO_ROOM:
                raise _no_room(repository, path, error) from error
            raise
        finally:
            for left in path.glob("stage-*"):
                shutil.rmtree(left)


def _lock_file(repository: Path, path: Path) -> TextIO:
    """Make the folders and open the lock; not taken yet. Raises RepositoryError where that cannot be."""
    try:
        repository.mkdir(parents=True, exist_ok=True)
        path.mkdir(exist_ok=True)
        lock = (path / "lock").open("a")
    except OSError as error:
        raise RepositoryError(
            f"cannot stage beside {repository}: {error}; the folder above a repository must be writable"
        ) from error
    if path.stat().st_dev != repository.stat().st_dev:
        lock.close()
        raise RepositoryError(
            f"{repository} is another file system than {path.parent}: publish into a folder of the mounted file system, "
            "a whole folder can only be swapped within one"
        )
    return lock


def _no_room(repository: Path, path: Path, error: OSError) -> RepositoryError:
    free = shutil.disk_usage(path).free // 2**20
    return RepositoryError(
        f"{repository} is as it was: {error.strerror} in {path} ({free} MiB free); make room "
        "(`python -m export prune` removes old versions) and run the command again"
    )


def exchange(one: Path, other: Path) -> bool:
    """Swap two folders atomically; False where kernel or file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    code = libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE)
    if code == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise RepositoryError(f"cannot swap {one} and {other}: {os.strerror(number)}")


def link_tree(source: Path, target: Path) -> None:
    """Copy a folder whose files never change: by hard links, or by copying where the file system has none."""

    def link(one: str, other: str) -> str:
        try:
            os.link(one, other)
        except OSError:
            shutil.copy2(one, other)
        return other

    shutil.copytree(source, target, copy_function=link)


def read_journal(path: Path) -> dict[str, Path] | None:
    """Places that a swap moves folders between; None for a file that was cut short, which is older than the first move."""
    try:
        entry = json.loads(path.read_bytes())
        return {key: Path(entry[key]) for key in ("staged", "target", "aside")}
    except (ValueError, KeyError, TypeError):
        return None


def write_synced(path: Path, text: str) -> None:
    """Write a small file, whole or not at all, and wait until it is on the disk."""
    part = path.with_name(f"{path.name}{PART}")
    with part.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)
    sync_folder(path.parent)


def sync_tree(folder: Path) -> None:
    """Wait until every file and folder below is on the disk."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync_folder(folder: Path) -> None:
    """Wait until the names in one folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
