"""How much faster INT8 is than FP32, in process, in turns: what `--variant int8` buys on this machine's CPU.

    python benchmarks/int8.py                                  ResNet-50 and EfficientNet-Lite0, batch 1 and 8
    python benchmarks/int8.py --provider-library libX.so ...   also through a plugin execution provider, if one is given

Weights are random, batch-norm statistics come from photographs: speed does not depend on what the weights know. Both files are
made by the product's own export. The two take turns within seconds of each other, so that a busy machine slows both; the ratio
of neighbouring turns is the claim, its median over all turns what is compared with the bar.
"""

from __future__ import annotations

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
from moderation_client.contract import IMAGE_INPUT

FILES = {"fp32": "model.onnx", "int8": "model_int8.onnx"}


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
    provider_library: Path | None = None
    """Shared library of a plugin execution provider that INT8 is run through as well."""
    provider_name: str = "OpenVINOExecutionProvider"
    """Name it registers."""


def open_session(path: Path, config: Int8Config, *, plugin: bool = False) -> onnxruntime.InferenceSession:
    """Load a file for one thread count, on the CPU provider or through the plugin."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = config.threads
    options.inter_op_num_threads = 1
    if not plugin:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    devices = [
        device
        for device in onnxruntime.get_ep_devices()
        if device.ep_name == config.provider_name and device.device.type.name == "CPU"
    ]
    options.add_provider_for_devices(devices, {"num_of_threads": str(config.threads)})
    return onnxruntime.InferenceSession(str(path), options)


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
    sessions = {name: open_session(version / file, config) for name, file in FILES.items()}
    if config.provider_library is not None:
        sessions["int8_plugin"] = open_session(version / FILES["int8"], config, plugin=True)
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
        ratios = [point.samples["int8_ratio"] for point in points if point.settings["backbone"] == backbone]
        best = max(ratios, key=statistics.median)
        low, high = np.quantile(best, [0.1, 0.9])
        limits = [(3.3, False), (4.0, True)] if backbone == "resnet50" else [(1.5, True)]
        for limit, goal in limits:
            found.append(
                Bar(
                    name=f"INT8 / FP32 images per second, {backbone}",
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
    lines = [f"{'network':22} {'batch':>5} {'FP32/s':>8} {'INT8/s':>8} {'ratio':>6}"]
    for point in points:
        fp32, int8, ratio = (
            statistics.median(point.samples[name])
            for name in ("fp32_images_per_s", "int8_images_per_s", "int8_ratio")
        )
        settings = point.settings
        line = (
            f"{settings['backbone']!s:22} {settings['batch_size']!s:>5} {fp32:8.1f} {int8:8.1f} {ratio:6.2f}"
        )
        if "int8_plugin_ratio" in point.samples:
            plugin = statistics.median(point.samples["int8_plugin_images_per_s"])
            line += f"   plugin provider {plugin:.1f}/s, {statistics.median(point.samples['int8_plugin_ratio']):.2f}"
        lines.append(line)
    return "\n".join(lines)


def main() -> int:
    """Run the benchmark; exit status 1 when a bar is missed."""
    config = tyro.cli(Int8Config, description=__doc__)
    if config.provider_library is not None:
        onnxruntime.register_execution_provider_library(config.provider_name, str(config.provider_library))
    points = [measure(backbone, size, config) for backbone in config.backbones for size in config.batch_sizes]
    result = make_result("int8", config, points, bars=bars(points))
    print(table(points), *result.bars, sep="\n")
    print(write_result(result, config.out))
    return 1 if result.missed else 0


if __name__ == "__main__":
    sys.exit(main())
