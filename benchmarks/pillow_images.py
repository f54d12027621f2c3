"""Pillow's own test images: about a thousand awkward files, out of its source distribution, fetched and never committed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
from pathlib import Path

VERSION = "11.3.0"
SHA256 = "3828ee7586cd0b2091b6209e5ad53e20d0649bbe87164a459d0676e035e8f523"
FETCH_LIMIT_S = 300


class FetchError(Exception):
    """The source distribution cannot be fetched; the message has pip's words."""


def pillow_images(folder: Path) -> Path:
    """Give the folder of the images, fetched with pip below `folder` the first time. Raises FetchError."""
    images = folder / f"pillow-{VERSION}" / "Tests" / "images"
    if images.exists():
        return images
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "pillow"]
    try:
        subprocess.run(
            [*command, f"pillow=={VERSION}", "-d", str(folder)],
            check=True,
            capture_output=True,
            text=True,
            timeout=FETCH_LIMIT_S,
        )
    except (subprocess.SubprocessError, OSError) as error:
        words = str(getattr(error, "stderr", None) or error).strip()[-300:]
        raise FetchError(f"pillow {VERSION}'s source distribution cannot be fetched: {words}") from error
    archive = folder / f"pillow-{VERSION}.tar.gz"
    if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256:
        raise FetchError(f"{archive.name} is not the file that was expected (sha256)")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, [member for member in tar if "/Tests/images/" in member.name], filter="data")
    archive.unlink()
    return images
