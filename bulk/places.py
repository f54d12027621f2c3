"""Where things lie: a path or fsspec URL becomes a file system and a path in it; whole objects appear there at once or not at all."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from bulk.errors import SourceError


@dataclass(frozen=True)
class Place:
    """A file or folder of a file system; `place_of` makes one of what a person wrote."""

    fs: Any
    """fsspec's file system."""
    path: str
    """Path in it, absolute."""

    @property
    def url(self) -> str:
        """What `place_of` makes the same place of, wherever it runs."""
        return self.path if self.is_local else str(self.fs.unstrip_protocol(self.path))

    @property
    def is_local(self) -> bool:
        """Whether paths are of this machine."""
        return isinstance(self.fs, LocalFileSystem)

    def child(self, name: str) -> Place:
        """A file below this folder."""
        return self.at(f"{self.path.rstrip('/')}/{name}")

    def at(self, path: str) -> Place:
        """Another path of the same file system."""
        return Place(self.fs, path)

    def open(self) -> IO[bytes]:
        """Open for reading. Raises OSError."""
        stream: IO[bytes] = self.fs.open(self.path, "rb")
        return stream

    def has(self, name: str) -> bool:
        """Whether this folder holds the file, asked anew."""
        self.fs.invalidate_cache()
        return bool(self.fs.exists(self.child(name).path))

    def names(self) -> set[str]:
        """Names of the files directly in this folder; none when it is not there."""
        try:
            self.fs.invalidate_cache()
            return {str(each["name"]).rsplit("/", 1)[-1] for each in self.fs.ls(self.path, detail=True)}
        except FileNotFoundError:
            return set()

    def read(self) -> bytes:
        """Whole content. Raises OSError."""
        content: bytes = self.fs.cat_file(self.path)
        return content

    def write(self, name: str, content: bytes) -> None:
        """Commit a file of this folder: it is there whole, or as it was before.

        A local file is renamed into place after it has reached the disk; an object store shows an upload when it is complete.
        """
        if not self.is_local:
            self.fs.pipe_file(self.child(name).path, content)
            return
        folder = Path(self.path)
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix="_", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(folder / name)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def sweep(self) -> None:
        """Remove what killed writers left behind: only when everything is there."""
        if self.is_local and Path(self.path).is_dir():
            for each in Path(self.path).glob("_*.part"):
                each.unlink(missing_ok=True)


def place_of(url: str) -> Place:
    """Find the file system of a path or URL. Raises SourceError when its driver is not installed."""
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise SourceError(f"{url}: {error}") from error
    return Place(fs, str(path))
