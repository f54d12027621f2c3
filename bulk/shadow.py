"""Two versions on the same images before anybody depends on the new one: both judge the source, then their rows are compared.

Each side is a backfill of its own, below --out, so that a shadow run of any size is resumable and leaves both sets of verdicts.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from bulk.comparison import Comparison, compare
from bulk.config import BulkConfig, ServiceConfig, SourceConfig
from bulk.errors import ShadowError
from bulk.places import place_of
from bulk.run import run_bulk, say
from bulk.shadow_page import page


@dataclass(frozen=True, kw_only=True)
class ShadowConfig:
    """Compare a candidate version with the live one on the images of SOURCE; exit code 1 when they differ more than allowed."""

    source: tyro.conf.Positional[str]
    """Images to judge twice: a folder, Parquet or tars, as for a backfill."""
    out: Path
    """Folder for both sets of verdicts, shadow.json and shadow.html."""
    live: str | None = None
    """Version that decides today; by default the one that answers."""
    candidate: str | None = None
    """Version that might; by default the one that answers at --candidate-url."""
    candidate_url: tuple[str, ...] = ()
    """Servers of the candidate, where it is not loaded beside the live version."""
    service: Annotated[ServiceConfig, tyro.conf.arg(name="")] = field(default_factory=ServiceConfig)
    reading: Annotated[SourceConfig, tyro.conf.arg(name="")] = field(default_factory=SourceConfig)
    max_flips: float = 0.01
    """Share of images whose decision may differ."""
    max_laxer: float = 0.002
    """Share of images that the candidate may judge less strictly: what was stopped and would pass."""
    examples: int = 20
    """Flipped images listed on the page, the gravest first. Ids may be personal data: 0 leaves them out."""
    thumbnails: bool = False
    """Show the examples' pictures on the page: only where whoever opens it may see them."""
    ray: str | None = None
    """Address of a Ray cluster; by default everything runs in this process."""
    workers: int = 2
    """Shards worked on at once."""
    worker_cpus: float = 1.0
    """CPUs that Ray sets aside for each actor."""
    nice: int = 10
    """How far workers step back from other processes of their machine, 0 to 19."""

    def __post_init__(self) -> None:
        """Check the values. Raises ValueError that names the option."""
        for name in ("max_flips", "max_laxer"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name.replace('_', '-')} is a share, 0 to 1, got {getattr(self, name)}")
        if not self.candidate_url and (self.candidate is None or self.candidate == self.live):
            raise ValueError("give --candidate, another version than --live, or --candidate-url")
        if self.examples < 0:
            raise ValueError(f"--examples must be 0 or more, got {self.examples}")

    def side(self, name: str) -> BulkConfig:
        """Options of one side's backfill."""
        of_candidate = name == "candidate"
        url = self.candidate_url if of_candidate and self.candidate_url else self.service.url
        return BulkConfig(
            source=self.source,
            out=str(self.out / name),
            service=dataclasses.replace(self.service, url=url),
            reading=self.reading,
            model_version=self.candidate if of_candidate else self.live,
            ray=self.ray,
            workers=self.workers,
            worker_cpus=self.worker_cpus,
            nice=self.nice,
        )

    def broken_bounds(self, found: Comparison) -> list[str]:
        """Say which bounds are exceeded."""
        bounds = {"flips": (found.flip_share, self.max_flips), "laxer": (found.laxer_share, self.max_laxer)}
        return [
            f"{share:.3%} of the images {word}, more than the {limit:.3%} allowed (--max-{name})"
            for (name, (share, limit)), word in zip(
                bounds.items(), ("get another decision", "are judged less strictly"), strict=True
            )
            if share > limit
        ]


def run_shadow(config: ShadowConfig) -> int:
    """Judge twice, compare, write; 1 when a bound is exceeded. Raises a subtype of ModerationError."""
    for name in ("live", "candidate"):
        say(f"{name}: {config.side(name).model_version or 'the version that answers'}")
        run_bulk(config.side(name))
    found = compare(
        place_of(str(config.out / "live")), place_of(str(config.out / "candidate")), config.examples
    )
    if not found.num_compared:
        raise ShadowError("not one image was judged by both versions: the rows say why")
    broken = config.broken_bounds(found)
    target = place_of(str(config.out))
    target.write("shadow.json", json.dumps(found.to_dict(), indent=1).encode())
    html = page(found, broken, thumbnails_of=config.side("live") if config.thumbnails else None)
    target.write("shadow.html", html.encode())
    print(f"\n{found.text()}\n{config.out / 'shadow.html'}")
    for each in broken:
        say(f"bound exceeded: {each}")
    return 1 if broken else 0
