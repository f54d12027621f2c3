"""What lint says: one finding is a file, a field, why it matters and what to do; and how findings are printed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong, or worth knowing."""

    severity: Severity
    """`error`: a server refuses it or answers wrongly; `warning`: it works and should not stay; `note`: what is exposed."""
    file: str
    """Path within the repository."""
    field: str
    """Field of the configuration or the graph; empty when the file as a whole is meant."""
    why: str
    fix: str

    def __str__(self) -> str:
        """Print on one line, as compilers do."""
        place = f"{self.file}: {self.field}" if self.field else self.file
        return f"{self.severity}: {place}: {self.why}; {self.fix}"

    def to_dict(self) -> dict[str, str]:
        """JSON-ready."""
        return dataclasses.asdict(self)


class Findings:
    """Collects findings about one repository."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self.items: list[Finding] = []

    def add(self, severity: Severity, path: Path, field: str, why: str, fix: str) -> None:
        """Add one; `path` is shown relative to the repository."""
        shown = path.relative_to(self._repository) if path.is_relative_to(self._repository) else path
        finding = Finding(severity=severity, file=str(shown), field=field, why=why, fix=fix)
        if finding not in self.items:
            self.items.append(finding)

    def error(self, path: Path, field: str, why: str, fix: str) -> None:
        """Add an error."""
        self.add("error", path, field, why, fix)

    def warning(self, path: Path, field: str, why: str, fix: str) -> None:
        """Add a warning."""
        self.add("warning", path, field, why, fix)

    def note(self, path: Path, field: str, why: str, fix: str) -> None:
        """Add a note."""
        self.add("note", path, field, why, fix)


def has_errors(findings: Sequence[Finding]) -> bool:
    """Whether a pipeline should stop."""
    return any(finding.severity == "error" for finding in findings)
