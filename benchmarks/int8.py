"""How much faster INT8 is than FP32, in process, in turns: what `--variant int8` buys on this machine's CPU.

    python benchmarks/int8.py      ResNet-50 and EfficientNet-Lite0, batch 1 and 8; on OpenVINO, too, where it is installed

Weights are random, batch-norm statistics come from photographs: speed does not depend on what the weights know. Both files are
made by the product's own export. The two take turns within seconds of each other, so that a busy machine slows both; the ratio
of neighbouring turns is the claim, its median over all turns what is compared with the bar.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import tyro
from numpy.typing import NDArray

from benchmarks.networks import NetworkConfig, ensure_network
from benchmarks.results import Bar, Point, make_result, write_result
from export.openvino import devices
from export.session import open_session
from moderation_client.contract import IMAGE_INPUT

FILES = {"fp32": "model.onnx", "int8": "model_int8.onnx"}
RUNNERS = {"int8": "ONNX Runtime", "openvino": "OpenVINO"}


@dataclass(frozen=True, kw_only=True)
class Int8Config:
    """What to measure."""

    backbones: tuple[str, ...] = ("resnet50", "efficientnet_lite0")
    """Networks; the bar is ResNet-50's."""
    batch_sizes: tuple[int, ...] = (1, 8)
    threads: int = 2
    """Threads of the one session that runs at a time."""
    num_turns: int = 15
    """Turns of FP32 and INT8."""
    turn_s: float = 2.0
    """How long a turn lasts at least."""
    out: Path = Path("benchmarks/results")
    """Folder for the JSON."""
    networks: Path = Path("runs/benchmarks/networks")
    """Where exported networks are kept."""


def open_sessions(version: Path, threads: int) -> dict[str, onnxruntime.InferenceSession]:
    """FP32 and INT8 on ONNX Runtime's own CPU code, and INT8 on OpenVINO behind it where its plugin is installed."""
    sessions = {name: open_session(version / file, threads=threads) for name, file in FILES.items()}
    if importlib.util.find_spec("onnxruntime_ep_openvino") is not None and devices():
        sessions["openvino"] = open_session(version / FILES["int8"], threads=threads, accelerator="openvino")
    return sessions


def images_per_s(session: onnxruntime.InferenceSession, pixels: NDArray[np.uint8], turn_s: float) -> float:
    """Run for a turn; images a second."""
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < turn_s:
        session.run(None, {IMAGE_INPUT: pixels})
        count += len(pixels)
    return count / (time.perf_counter() - started)


def measure(backbone: str, batch_size: int, config: Int8Config) -> Point:
    """Take turns; images a second of each variant and the ratio of neighbours."""
    repository = ensure_network(NetworkConfig(backbone=backbone, out=config.networks))
    version = repository / "moderation" / "1"
    sessions = open_sessions(version, config.threads)
    golden = np.load(version / "golden.npy")
    pixels = np.ascontiguousarray(np.resize(golden, (batch_size, *golden.shape[1:])))
    for session in sessions.values():
        images_per_s(session, pixels, config.turn_s / 2)
    samples: dict[str, list[float]] = {f"{name}_images_per_s": [] for name in sessions}
    for _ in range(config.num_turns):
        for name, session in sessions.items():
            samples[f"{name}_images_per_s"].append(images_per_s(session, pixels, config.turn_s))
    base = samples["fp32_images_per_s"]
    for name in list(sessions)[1:]:
        pairs = zip(samples[f"{name}_images_per_s"], base, strict=True)
        samples[f"{name}_ratio"] = [ours / theirs for ours, theirs in pairs]
    return Point(settings={"backbone": backbone, "batch_size": batch_size}, samples=samples)


def bars(points: list[Point]) -> list[Bar]:
    """ResNet-50's ratio at its better batch size against the bar and the goal; the others are goals without a promise."""
    found = []
    for backbone in dict.fromkeys(str(point.settings["backbone"]) for point in points):
        limits = [(3.3, False), (4.0, True)] if backbone == "resnet50" else [(1.5, True)]
        for key, runner in RUNNERS.items():
            ours = [point for point in points if point.settings["backbone"] == backbone]
            ratios = [point.samples[f"{key}_ratio"] for point in ours if f"{key}_ratio" in point.samples]
            if not ratios:
                continue
            best = max(ratios, key=statistics.median)
            low, high = np.quantile(best, [0.1, 0.9])
            name = f"INT8 by {runner} / FP32 images per second, {backbone}"
            for limit, goal in limits:
                found.append(
                    Bar(
                        name=name,
                        measured=statistics.median(best),
                        limit=limit,
                        sense="at_least",
                        low=float(low),
                        high=float(high),
                        goal=goal,
                    )
                )
    return found


def table(points: list[Point]) -> str:
    """Lines for a terminal."""
    lines = [
        f"{'network':22} {'batch':>5} {'FP32/s':>8} {'INT8/s':>8} {'ratio':>6} {'OpenVINO/s':>11} {'ratio':>6}"
    ]
    for point in points:
        settings = point.settings
        line = f"{settings['backbone']!s:22} {settings['batch_size']!s:>5} "
        line += f"{statistics.median(point.samples['fp32_images_per_s']):8.1f}"
        for key, width in (("int8", 8), ("openvino", 11)):
            if f"{key}_ratio" in point.samples:
                rate, ratio = (
                    statistics.median(point.samples[f"{key}_{name}"]) for name in ("images_per_s", "ratio")
                )
                line += f" {rate:{width}.1f} {ratio:6.2f}"
        lines.append(line)
    return "\n".join(lines)


def main() -> int:
    """Run the benchmark; exit status 1 when a bar is missed."""
    config = tyro.cli(Int8Config, description=__doc__)
    points = [measure(backbone, size, config) for backbone in config.backbones for size in config.batch_sizes]
    result = make_result("int8", config, points, bars=bars(points))
    print(table(points), *result.bars, sep="\n")
    print(write_result(result, config.out))
    return 1 if result.missed else 0


if __name__ == "__main__":
    sys.exit(main())
