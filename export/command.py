"""The command line: which commands there are, and how a mistake reads on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from export.gates import Gates, Variant
from export.publish import Golden, PublishConfig, publish, report_built
from export.releases import DEFAULT_TARGET
from export.serving import Serving
from export.variants import VariantConfig
from moderation_client import ModerationError

FLAT = tyro.conf.arg(name="")
COMMANDS = ("publish",)
DESCRIPTION = "Verified ONNX variants of a trained run, in a Triton model repository."


@dataclass(frozen=True, kw_only=True)
class Publish:
    """Make and check the variants of a run and publish them as the next version."""

    run: tyro.conf.Positional[Path]
    """Run directory, as `python -m train` writes it."""
    repository: Path = Path("model_repository")
    """Triton model repository; made when it is not there."""
    target_triton: str = DEFAULT_TARGET
    """Oldest Triton release (YY.MM) that must load it."""
    variant: tuple[Variant, ...] = ("fp32", "int8")
    """Variants to make; FP32 always is."""
    serving: Annotated[Serving, FLAT] = field(default_factory=Serving)
    gates: Gates = field(default_factory=Gates)
    carry_policy: bool = True
    """Let the recommended policy travel with the model, readable by every caller."""
    encoded: bool = True
    """Keep the model that takes encoded files beside it."""
    golden: Golden = "real"
    """`real`: eight held-out images go into the repository for self-tests; `synthetic`: drawn ones, when real ones must not be kept."""
    report: Path | None = None
    """Folder for parity.json and parity.html; by default `export` in the run directory."""

    def __call__(self) -> None:
        """Run the command."""
        from export.from_run import ImagesConfig, source_of_run  # noqa: PLC0415 - torch takes seconds to import

        source = source_of_run(self.run, ImagesConfig())
        names = ("repository", "target_triton", "serving", "carry_policy", "encoded", "golden")
        variants = VariantConfig(
            variants=self.variant, gates=self.gates, max_batch_size=self.serving.max_batch_size
        )
        settings = {name: getattr(self, name) for name in names}
        config = PublishConfig(**settings, variants=variants, report=self.report or self.run / "export")
        report_built(publish(source, config))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status. A path in the place of a command means `publish`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] not in COMMANDS and not words[0].startswith("-"):
        words.insert(0, "publish")
    command = tyro.extras.subcommand_cli_from_dict(
        {"publish": Publish}, prog="python -m export", description=DESCRIPTION, args=words
    )
    try:
        command()
    except ModerationError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0
