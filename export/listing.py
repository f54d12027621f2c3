"""What is in a repository, as a table for a person and as data: versions, which one answers, whether files are as published."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from export.errors import RepositoryError
from export.repository import ModelFolder
from export.session import CpuAccelerator
from export.version import verify_version
from moderation_client.contract import MODEL_NAME


@dataclass(frozen=True, kw_only=True)
class Row:
    """One version."""

    version: int
    active: bool
    made: str
    source: str
    cpu_file: str
    gpu_file: str
    cpu_accelerator: CpuAccelerator
    """What runs it on the CPU."""
    files: tuple[str, ...]
    """Variants that were published."""


def rows(repository: Path, model: str = MODEL_NAME) -> list[Row]:
    """Versions, oldest first. Raises RepositoryError when the model is not there."""
    folder = _existing(repository, model)
    assert folder.state is not None
    return [
        Row(
            version=number,
            active=number == folder.state.active,
            made=str(each.record.get("made", "?")),
            source=str(each.record.get("source", "?")),
            cpu_file=each.cpu_file,
            gpu_file=each.gpu_file,
            cpu_accelerator=each.cpu_accelerator,
            files=tuple(sorted(each.spec.files)),
        )
        for number, each in sorted(folder.versions.items())
    ]


def table(found: list[Row]) -> str:
    """Lines for a terminal; `*` marks the version that answers."""
    cells = [("", "version", "made", "source", "CPU runs", "GPU runs", "variants")]
    cells += [
        (
            "*" if row.active else "",
            str(row.version),
            row.made,
            row.source,
            row.cpu_file + ("" if row.cpu_accelerator == "none" else f" ({row.cpu_accelerator})"),
            row.gpu_file,
            ", ".join(row.files),
        )
        for row in found
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def verify(repository: Path, model: str = MODEL_NAME) -> list[str]:
    """Check every file of every version against its manifest; one sentence for each difference.

    Raises RepositoryError when the model is not there: what is missing is not as published.
    """
    folder = _existing(repository, model)
    return [problem for each in folder.versions.values() for problem in verify_version(each.path)]


def _existing(repository: Path, model: str) -> ModelFolder:
    folder = ModelFolder(repository, model)
    if folder.state is None:
        raise RepositoryError(f"{repository} holds no model {model!r}; publish one: python -m export RUN")
    return folder
