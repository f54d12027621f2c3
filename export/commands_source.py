"""The commands that bring a model in: `publish` for a run of ours."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from export.gates import Gates, Variant
from export.live import LiveServer
from export.probe import Probe
from export.publish import Golden, PublishConfig
from export.releases import DEFAULT_TARGET
from export.serving import Serving

FLAT = tyro.conf.arg(name="")


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a new version goes, how it is checked and how it is served."""

    repository: Path = Path("model_repository")
    """Triton model repository; made when it is not there."""
    target_triton: str = DEFAULT_TARGET
    """Oldest Triton release (YY.MM) that must load it."""
    variant: tuple[Variant, ...] = ("fp32", "int8")
    """Variants to make; FP32 always is. FP16 is for GPUs."""
    serving: Annotated[Serving, FLAT] = field(default_factory=Serving)
    gates: Gates = field(default_factory=Gates)
    carry_policy: bool = True
    """Let the recommended policy travel with the model, readable by every caller."""
    encoded: bool = True
    """Keep the model that takes encoded files beside it."""
    golden: Golden = "real"
    """`real`: eight held-out images go into the repository for self-tests; `synthetic`: drawn ones, when real ones must not be kept."""
    probe: Probe = "server"
    """How the candidate is proved before it can answer: on a private `server`, or only `in_process` where none can run."""
    live: Annotated[LiveServer, FLAT] = field(default_factory=LiveServer)
    report: Path | None = None
    """Folder for parity.json and parity.html; by default `export` beside the model."""

    def config(self, default_report: Path) -> PublishConfig:
        """As `publish` takes it."""
        from export.variants import VariantConfig  # noqa: PLC0415 - the quantizer takes seconds to import

        names = (
            "repository",
            "target_triton",
            "serving",
            "carry_policy",
            "encoded",
            "golden",
            "probe",
            "live",
        )
        variants = VariantConfig(
            variants=self.variant, gates=self.gates, max_batch_size=self.serving.max_batch_size
        )
        settings = {name: getattr(self, name) for name in names}
        return PublishConfig(**settings, variants=variants, report=self.report or default_report)


@dataclass(frozen=True, kw_only=True)
class Publish:
    """Make and check the variants of a run and publish them as the next version."""

    source: tyro.conf.Positional[Path]
    """Run directory, as `python -m train` writes it."""
    target: Annotated[Target, FLAT] = field(default_factory=Target)

    def run(self) -> int:
        """Run the command; its exit status."""
        from export.from_run import ImagesConfig, source_of_run  # noqa: PLC0415 - torch takes seconds to import
        from export.publish import publish, report_built  # noqa: PLC0415

        source = source_of_run(self.source, ImagesConfig())
        report_built(publish(source, self.target.config(self.source / "export")))
        return 0
