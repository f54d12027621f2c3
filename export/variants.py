"""Makes the FP32, FP16 and INT8 files of a source, measures each against the reference, and says which may be published."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from export import graph, session
from export.errors import GateError
from export.fp16 import write_fp16
from export.gates import Gates, Variant
from export.int8_search import SearchConfig, search_int8
from export.parity import Parity, compare, compare_batch
from export.releases import Release
from export.source import Pixels, Scores, Source
from export.version import FP16_FILE, accelerator_of

if TYPE_CHECKING:
    import onnxruntime

FILE_NAMES: dict[Variant, str] = {"fp32": "model.onnx", "fp16": FP16_FILE, "int8": "model_int8.onnx"}
"""Where each variant lies in a version's folder."""
NUM_SMALL_BATCH_VIEWS = 32
"""Views, spread over the test split, that are scored one by one and in pairs; at the largest batch it is all of them."""


@dataclass(frozen=True, kw_only=True)
class VariantConfig:
    """Which variants are made, and how."""

    variants: tuple[Variant, ...] = ("fp32", "int8")
    """FP32 is always made: the others come from it."""
    gates: Gates = field(default_factory=Gates)
    search: SearchConfig = field(default_factory=SearchConfig)
    max_batch_size: int = 32
    """Largest batch that is compared, and that the server will form."""
    cpu_accelerator: session.CpuAccelerator = "none"
    """What FP32 and INT8 are measured with, and will be run with on CPUs; FP16 is for GPUs."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """One variant with its figures."""

    variant: Variant
    path: Path
    parity: Parity
    failures: tuple[str, ...]
    """Figures that missed their limits; empty when it may be published."""
    time_ms: float
    """One batch of 8 on this machine, median."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """How it was made."""

    @property
    def passed(self) -> bool:
        """Whether it may be published."""
        return not self.failures


def build_variants(source: Source, config: VariantConfig, release: Release, folder: Path) -> list[Built]:
    """Make and measure the variants in `folder`. Raises GateError at once when FP32 itself fails."""
    say(f"reference scores by {source.reference_name} on {len(source.images.test.pixels)} views")
    reference = source.reference(source.images.test.pixels)
    fp32 = folder / FILE_NAMES["fp32"]
    started = time.monotonic()
    graph.save(source.graph(folder), fp32, source.spec, release)
    say(f"fp32 written in {time.monotonic() - started:.0f} s")
    built = [_measure(source, reference, "fp32", fp32, config, {})]
    if not built[0].passed:
        raise GateError("fp32", built[0].failures)
    if "fp16" in config.variants:
        built.append(_fp16(source, reference, fp32, config, release))
    if "int8" in config.variants:
        built.append(_int8(source, reference, fp32, config, release))
    return built


def say(line: str) -> None:
    """Progress for the person who waits."""
    print(f"export: {line}", flush=True)


def _int8(source: Source, reference: Scores, fp32: Path, config: VariantConfig, release: Release) -> Built:
    path = fp32.with_name(FILE_NAMES["int8"])
    found = search_int8(source, fp32, path, config.gates.int8, config.search, config.cpu_accelerator)
    graph.save(onnx.load(path), path, source.spec, release)
    return _measure(source, reference, "int8", path, config, found.to_dict())


def _fp16(source: Source, reference: Scores, fp32: Path, config: VariantConfig, release: Release) -> Built:
    path = fp32.with_name(FILE_NAMES["fp16"])
    notes = write_fp16(fp32, path, source.images.calibration)
    graph.save(onnx.load(path), path, source.spec, release)
    return _measure(source, reference, "fp16", path, config, notes.to_dict())


def _measure(
    source: Source,
    reference: Scores,
    variant: Variant,
    path: Path,
    config: VariantConfig,
    notes: Mapping[str, Any],
) -> Built:
    split = source.images.test
    opened = session.open_session(path, accelerator=accelerator_of(path.name, config.cpu_accelerator))
    largest = config.max_batch_size
    scores = _at_batch(opened, split.pixels, largest)
    chosen = np.unique(np.linspace(0, len(split.pixels) - 1, NUM_SMALL_BATCH_VIEWS).astype(int))
    small = {
        batch: _at_batch(opened, split.pixels[chosen], batch) for batch in {1, min(2, largest)} - {largest}
    }
    at_batch = [compare_batch(source, largest, reference, scores, scores)]
    at_batch += [
        compare_batch(source, batch, reference[chosen], scores[chosen], found)
        for batch, found in small.items()
    ]
    parity = compare(source, split, reference, scores, sorted(at_batch, key=lambda each: each.batch))
    failures = config.gates.of(variant).failures(parity)
    say(
        f"{variant}: largest score shift {parity.shift.max:.2g}, decisions agree on "
        f"{parity.min_agreement:.2%} of {parity.num_images} images at worst"
        + (f" - FAILED: {'; '.join(failures)}" if failures else "")
    )
    time_ms = session.time_batch_ms(opened, split.pixels[:8])
    return Built(variant=variant, path=path, parity=parity, failures=failures, time_ms=time_ms, notes=notes)


def _at_batch(opened: onnxruntime.InferenceSession, pixels: Pixels, batch: int) -> Scores:
    """Score views in batches of exactly `batch`: the last one is filled up with views that were shown already."""
    whole = len(pixels) - len(pixels) % batch
    parts = [session.run(opened, pixels[:whole], batch=batch)] if whole else []
    rest = pixels[whole:]
    if len(rest):
        filled = np.resize(rest, (batch, *rest.shape[1:]))
        parts.append(session.run(opened, filled, batch=batch)[: len(rest)])
    return np.concatenate(parts)


def published(built: Sequence[Built]) -> list[Built]:
    """Those that passed."""
    return [each for each in built if each.passed]
