"""Chooses the INT8 settings: the fastest ones first, more layers in float until decisions agree on the selection images.

1. Calibration methods in turn with every layer quantized, until one agrees well enough; else the best of them stays.
2. Where none does, the layers, each with what follows it, are split into blocks in graph order, each block's harm is measured by
   quantizing it alone, and blocks go back to float, most harmful first, a few more at each step, until enough decisions agree.
   What then remains in INT8 may not be worth it: a version runs the file that was fastest of those that passed their gates.
The test split is not looked at here.
"""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export import session
from export.gates import Limits
from export.int8 import Int8Settings, Method, Quantizer, blocks
from export.parity import compare
from export.source import Pixels, Scores, Source

SMALLEST_SCORE = 1e-4
"""Nobody sets a threshold nearer to 0 or 1: what moves beyond does not count."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How hard the search tries."""

    methods: tuple[Method, ...] = ("minmax", "percentile", "entropy")
    """Calibration methods, in the order they are tried."""
    num_blocks: int = 12
    """Blocks the layers are split into for finding the sensitive ones."""
    float_steps: tuple[int, ...] = (3, 6, 9)
    """How many of them are in float at each step."""
    safety: float = 0.004
    """How much above the gate's agreement the selection images must lie, so that the test images pass too: of 400 images, a share
    that is 2 % in truth passes by luck once in seventy."""
    batch_size: int = 16
    """Batch of the measurements."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One measured setting, on the selection images."""

    settings: Int8Settings
    agreement: float
    """Smallest share of equal decisions over the policy and the mid-range thresholds."""
    mean_shift: float

    @property
    def rank(self) -> tuple[float, float]:
        """Larger is better."""
        return (self.agreement, -self.mean_shift)


@dataclass(frozen=True, kw_only=True)
class Found:
    """The chosen setting and everything that was tried."""

    chosen: Trial
    trials: tuple[Trial, ...]
    num_layers: int
    float_layers: tuple[str, ...]
    """Layers the search put back to float."""

    def to_dict(self) -> dict[str, Any]:
        """For the report."""
        return {
            "method": self.chosen.settings.method,
            "float_layers": list(self.float_layers),
            "num_layers": self.num_layers,
            "trials": [dataclasses.asdict(trial) for trial in self.trials],
        }


class _Bench:
    """Measures settings against the reference scores of the selection images."""

    def __init__(
        self,
        source: Source,
        quantizer: Quantizer,
        folder: Path,
        batch_size: int,
        accelerator: session.CpuAccelerator,
    ) -> None:
        self._source, self._quantizer, self._batch_size = source, quantizer, batch_size
        self._accelerator: session.CpuAccelerator = accelerator
        self._split = source.images.selection
        self._reference = self._scores(quantizer.prepared)
        self._file = folder / "trial.onnx"
        self.trials: list[Trial] = []

    def _scores(self, path: Path) -> Scores:
        return self._run(path, self._split.pixels)

    def _run(self, path: Path, pixels: Pixels) -> Scores:
        opened = session.open_session(path, accelerator=self._accelerator)
        return session.run(opened, pixels, batch=self._batch_size)

    def try_settings(self, settings: Int8Settings) -> Trial:
        """Quantize, score, compare; remembered in `trials`."""
        self._quantizer.write(self._file, settings)
        parity = compare(self._source, self._split, self._reference, self._scores(self._file), ())
        trial = Trial(settings=settings, agreement=parity.min_agreement, mean_shift=parity.shift.mean)
        self.trials.append(trial)
        return trial

    def harm(self, method: Method, block: tuple[str, ...], views: int) -> float:
        """Mean squared shift of the logits when this block alone is quantized, on the first `views` views.

        Logits, because thresholds may lie anywhere: a shift of 0.005 is nothing at 0.5 and much at 0.02.
        """
        others = tuple(name for part in self._quantizer.segments for name in part if name not in block)
        self._quantizer.write(self._file, Int8Settings(method=method, float_nodes=others, corrected=False))
        scores = self._run(self._file, self._split.pixels[:views])
        return float(np.square(_logits(scores) - _logits(self._reference[:views])).mean())


def search_int8(
    source: Source,
    fp32: Path,
    path: Path,
    limits: Limits,
    config: SearchConfig,
    accelerator: session.CpuAccelerator = "none",
) -> Found:
    """Write the best INT8 graph found to `path`; whether it passes its gate is for the test images to say."""
    target = min(1.0, limits.min_agreement + config.safety)
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        folder = Path(temporary)
        quantizer = Quantizer(fp32, source.images.calibration, folder)
        bench = _Bench(source, quantizer, folder, config.batch_size, accelerator)
        best = _best_method(bench, config, target)
        if best.agreement < target:
            best = _with_float_blocks(bench, quantizer, best, config, target)
        quantizer.write(path, best.settings)
        floats = tuple(name for name in quantizer.layers if name in best.settings.float_nodes)
        return Found(
            chosen=best, trials=tuple(bench.trials), num_layers=len(quantizer.layers), float_layers=floats
        )


def _best_method(bench: _Bench, config: SearchConfig, target: float) -> Trial:
    for method in config.methods:
        if bench.try_settings(Int8Settings(method=method)).agreement >= target:
            break
    return max(bench.trials, key=lambda trial: trial.rank)


def _with_float_blocks(
    bench: _Bench, quantizer: Quantizer, start: Trial, config: SearchConfig, target: float
) -> Trial:
    method = start.settings.method
    parts = blocks(quantizer.segments, config.num_blocks)
    order = sorted(parts, key=lambda block: -bench.harm(method, block, views=96))
    best = start
    for num in config.float_steps:
        floats = tuple(name for block in order[:num] for name in block)
        trial = bench.try_settings(Int8Settings(method=method, float_nodes=floats))
        best = max((best, trial), key=lambda each: each.rank)
        if trial.agreement >= target:
            break
    return best


def _logits(scores: Scores) -> NDArray[np.float64]:
    kept = np.clip(scores.astype(float), SMALLEST_SCORE, 1.0 - SMALLEST_SCORE)
    return np.asarray(np.log(kept / (1.0 - kept)))
