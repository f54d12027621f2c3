"""Whether the files of a model version are the ones that were published: sha256 against `manifest.json`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

MANIFEST = "manifest.json"
"""Written by the export beside the models: {"files": {file name: sha256}}."""


class ManifestError(Exception):
    """A file is not the published one; the message names it."""


def verify_files(version: Path, *needed: Path) -> bool:
    """Check a version directory; False when it has no manifest (a repository that somebody else made).

    Raises ManifestError when a listed file is missing or differs, or when one of `needed` is not listed.
    """
    manifest = version / MANIFEST
    if not manifest.is_file():
        return False
    try:
        files = dict(json.loads(manifest.read_text(encoding="utf-8"))["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{manifest} cannot be read: {error!r}; publish the version again") from error
    for path in needed:
        if path.relative_to(version).as_posix() not in files:
            raise ManifestError(f"{path} is not in {manifest}: it was not published")
    for path in needed or [version / name for name in files]:
        _check(path, files[path.relative_to(version).as_posix()])
    return True


def _check(path: Path, expected: str) -> None:
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}; publish the version again") from error
    if found != expected:
        raise ManifestError(
            f"{path} has sha256 {found}, but {expected} was published: the file was changed or damaged; "
            "publish the version again"
        )
