"""The commands that look at a repository or change what it serves: list, rollback, configure, verify, prune, recover, lint, push, pull."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from export import listing, operations
from export.live import LiveServer
from export.releases import DEFAULT_TARGET
from export.serving import Serving
from moderation_client.contract import MODEL_NAME

FLAT = tyro.conf.arg(name="")


@dataclass(frozen=True, kw_only=True)
class OnRepository:
    """Which model of which repository."""

    repository: tyro.conf.Positional[Path] = Path("model_repository")
    """Triton model repository."""
    model: str = MODEL_NAME
    """Model in it."""


@dataclass(frozen=True, kw_only=True)
class List(OnRepository):
    """Show the versions of a model; `*` marks the one that answers."""

    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        """Run the command; its exit status."""
        found = listing.rows(self.repository, self.model)
        print(
            json.dumps([dataclasses.asdict(row) for row in found], indent=1)
            if self.json
            else listing.table(found)
        )
        return 0


@dataclass(frozen=True, kw_only=True)
class Rollback(OnRepository):
    """Make an older version answer again, by default the one before."""

    version: int | None = None
    """Version to go back (or forward) to."""
    live: Annotated[LiveServer, FLAT] = field(default_factory=LiveServer)

    def run(self) -> int:
        """Run the command; its exit status."""
        number = operations.rollback(self.repository, version=self.version, model=self.model, live=self.live)
        print(f"version {number} is active now")
        return 0


@dataclass(frozen=True, kw_only=True)
class Configure(OnRepository):
    """Change how the active version is served; what is not given goes back to its default."""

    serving: Annotated[Serving, FLAT] = field(default_factory=Serving)
    live: Annotated[LiveServer, FLAT] = field(default_factory=LiveServer)

    def run(self) -> int:
        """Run the command; its exit status."""
        operations.configure(self.repository, self.serving, model=self.model, live=self.live)
        settings = self.serving.resolved()
        print(
            f"{settings.instances} instances x {settings.threads} threads, batches of up to {settings.max_batch_size}"
        )
        return 0


@dataclass(frozen=True, kw_only=True)
class Verify(OnRepository):
    """Check every published file against the checksums of its manifest."""

    def run(self) -> int:
        """Run the command; its exit status."""
        problems = listing.verify(self.repository, self.model)
        print("\n".join(problems) or "every file is as published")
        return 1 if problems else 0


@dataclass(frozen=True, kw_only=True)
class Prune(OnRepository):
    """Remove old versions, never one that is served; their numbers are not given again."""

    keep: int = 3
    """How many of the newest versions stay."""

    def run(self) -> int:
        """Run the command; its exit status."""
        removed = operations.prune(self.repository, keep=self.keep, model=self.model)
        print(f"removed: {', '.join(map(str, removed)) or 'nothing'}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Recover:
    """Complete what a killed publisher had begun and remove what it left; every command that changes a repository does so first."""

    repository: tyro.conf.Positional[Path] = Path("model_repository")
    """Triton model repository."""

    def run(self) -> int:
        """Run the command; its exit status."""
        print("\n".join(operations.recover(self.repository)) or "nothing was left unfinished")
        return 0


@dataclass(frozen=True, kw_only=True)
class Lint:
    """Say what Triton would refuse, guess, ignore or expose, without a server; any repository will do."""

    repository: tyro.conf.Positional[Path] = Path("model_repository")
    """Triton model repository, of this program or anybody's."""
    target_triton: str = DEFAULT_TARGET
    """Oldest Triton release (YY.MM) that must load it."""
    cpus: int = 0
    """CPUs that the server may use; 0 means as many as this machine gives."""
    strict: bool = False
    """Warnings fail the command too."""
    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        """Run the command; its exit status: 1 when something is wrong."""
        from export.lint import lint  # noqa: PLC0415 - onnx takes half a second to import

        found = lint(self.repository, target=self.target_triton, cpus=self.cpus)
        if self.json:
            print(json.dumps([finding.to_dict() for finding in found], indent=1))
        else:
            print("\n".join(map(str, found)) or f"{self.repository}: nothing to say")
        worst = {"error", "warning"} if self.strict else {"error"}
        return 1 if any(finding.severity in worst for finding in found) else 0


@dataclass(frozen=True, kw_only=True)
class Push(OnRepository):
    """Write a model to an object store; readers see the old state until the last byte is there."""

    url: str
    """Where to: s3://bucket/path, gs://..., file:///path, whatever fsspec has a driver for."""

    def run(self) -> int:
        """Run the command; its exit status."""
        from export.transfer import push  # noqa: PLC0415

        print(f"{push(self.repository, self.url, model=self.model)} files sent to {self.url}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Pull:
    """Bring a pushed model into a repository, every file checked, in one swap."""

    repository: tyro.conf.Positional[Path] = Path("model_repository")
    """Triton model repository."""
    url: str
    """Where from."""

    def run(self) -> int:
        """Run the command; its exit status."""
        from export.transfer import pull  # noqa: PLC0415

        print(f"{pull(self.url, self.repository)} files in {self.repository}")
        return 0
