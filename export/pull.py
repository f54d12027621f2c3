"""What a serving container runs before its server: `python -m export.pull URL REPOSITORY`.

Brings a pushed repository, and fits instances and threads to the CPUs that the container was given, where its settings leave them
open. Loads nothing of training and no ONNX, so that the image needs neither.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from export.operations import fit
from export.transfer import pull
from moderation_client import ModerationError


@dataclass(frozen=True, kw_only=True)
class Pull:
    """Bring a pushed model into a repository, every file checked, and fit it to this machine."""

    url: Annotated[str, tyro.conf.Positional]
    """Where from: s3://bucket/path, gs://..., file:///path, whatever fsspec has a driver for."""
    repository: Annotated[Path, tyro.conf.Positional]
    """Triton model repository to fill; its parent folder must be writable, too."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; its exit status."""
    command = tyro.cli(Pull, prog="python -m export.pull", description=__doc__, args=arguments)
    try:
        num_files = pull(command.url, command.repository)
        settings = fit(command.repository)
    except ModerationError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(f"{num_files} files in {command.repository}; {settings.instances} x {settings.threads} threads")
    return 0


if __name__ == "__main__":
    sys.exit(main())
