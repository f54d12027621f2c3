"""What publishing promises: a kill at any moment leaves old or new, and the first requests after a load are not slow.

    python benchmarks/publishing.py                           200 kills and 5 loads of the published model
    python benchmarks/publishing.py --num-kills 0             the loads alone

Without a published model a network with random weights is taken. Loads: a fresh server; the slowest of its first 20 requests against
the p99 of those that follow. The kills are in `benchmarks.publishing_kills`.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time

import numpy as np
import tritonclient.grpc as triton
import tyro

from benchmarks.networks import NetworkConfig, ensure_network
from benchmarks.publishing_kills import PublishingConfig, measure_kills, server_config
from benchmarks.results import Bar, Point, make_result, write_result
from export.errors import ExportError
from export.repository import ModelFolder
from moderation_client.contract import IMAGE_INPUT, MODEL_NAME
from serve.errors import ServeError
from serve.server import TritonServer


def measure_load(config: PublishingConfig) -> Point:
    """Start a fresh server and time every request from the first on, one after the other."""
    folder = ModelFolder(config.repository)
    assert folder.state is not None
    image = folder.get(folder.state.active).golden()[:1]
    latency_ms = []
    with TritonServer(server_config(config.repository, MODEL_NAME)) as server:
        client = triton.InferenceServerClient(server.grpc_url)
        part = triton.InferInput(IMAGE_INPUT, image.shape, "UINT8")
        part.set_data_from_numpy(image)
        for _ in range(20 + config.num_steady):
            started = time.perf_counter()
            client.infer(MODEL_NAME, [part])
            latency_ms.append((time.perf_counter() - started) * 1e3)
        client.close()
    ratio = max(latency_ms[:20]) / float(np.quantile(latency_ms[20:], 0.99))
    return Point(settings={"measure": "load"}, samples={"latency_ms": latency_ms}, values={"ratio": ratio})


def with_repository(config: PublishingConfig) -> PublishingConfig:
    """Give the configuration with a repository that holds a model. Raises ExportError when none can be made."""
    if ModelFolder(config.repository).state is not None:
        return config
    print(f"{config.repository} holds no published model: {config.backbone} with random weights instead")
    return dataclasses.replace(config, repository=ensure_network(NetworkConfig(backbone=config.backbone)))


def bars_of(config: PublishingConfig, loads: list[Point], kills: Point | None) -> list[Bar]:
    """Give the figures that must be reached."""
    bars = []
    if loads:
        ratio = statistics.median(point.number("ratio") for point in loads)
        name = "slowest of the first 20 requests / steady p99, median of loads"
        bars.append(Bar(name=name, measured=ratio, limit=2.0, sense="at_most"))
    if kills is not None:
        name = "publishers killed"
        killed = kills.number("num_killed")
        bars.append(Bar(name=name, measured=killed, limit=float(config.num_kills), sense="at_least"))
        for key, name in {
            "num_broken": "states after a kill that are neither old nor new, or not whole",
            "num_failed": "publishers that ended with an error on what a kill had left",
            "num_refused": f"states that the server refuses, of {kills.number('num_loads'):.0f} loaded",
        }.items():
            bars.append(Bar(name=name, measured=kills.number(key), limit=0.0, sense="at_most"))
    return bars


def main() -> int:
    """Run the benchmark; exit status 1 when a bar is missed."""
    config = tyro.cli(PublishingConfig, description=__doc__)
    try:
        config = with_repository(config)
        points = [measure_load(config) for _ in range(config.num_loads)]
        kills = measure_kills(config) if config.num_kills else None
    except (ExportError, ServeError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    bars = bars_of(config, points, kills)
    result = make_result("publishing", config, [*points, *([kills] if kills else [])], bars=bars)
    print(*result.bars, sep="\n")
    print(write_result(result, config.out))
    return 1 if result.missed else 0


if __name__ == "__main__":
    sys.exit(main())
