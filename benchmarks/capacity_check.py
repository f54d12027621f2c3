"""Whether the capacity model tells the truth: one and two real replicas under Poisson load, against what the simulation says of them.

    python benchmarks/capacity_check.py --repository REPOSITORY

A replica is a server of its own on one core, with one instance of one thread. Before each load its service time is measured with a lone caller and batches of 1 to the
largest; then the load (a share of that capacity) is offered for `duration_s`, to one replica alone, and to two at once, each with its own independent arrivals as
a random balancer would give them. The simulation gets the arrivals, the service time, and the mean time that the server itself counts for computing in that run, because
the speed of a shared machine changes within minutes; what it is asked for is how long requests wait, and how long the slowest take.
"""

from __future__ import annotations

import contextlib
import datetime
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from benchmarks.arrivals import OpenJob, OpenReport, due_times, run_open
from benchmarks.capacity_page import check_page, check_text
from benchmarks.corpus import load_files
from benchmarks.environment import Environment, capture_environment
from benchmarks.load import Schedule, run_closed
from benchmarks.networks import NetworkConfig, ensure_network
from benchmarks.payloads import Payloads
from benchmarks.queueing import Service, Times, Waits, at_speed, service_of, simulate
from benchmarks.results import Bar, Point, Result, file_stem, make_result, write_result
from benchmarks.senders import Route
from benchmarks.serving import Settings, copy_variant
from benchmarks.subject import Subject, end_cleanly_on_sigterm, inspect, print_bars
from benchmarks.target import Address
from benchmarks.worker import Worker
from moderation_client.contract import MODEL_NAME
from serve.config import ServerConfig
from serve.server import TritonServer

RESULTS = Path("runs/benchmarks")
TOLERANCE = 1.3
"""Measured over simulated, or the other way round, at most."""


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """Compare the simulation with real replicas."""

    repository: Path | None = None
    """Published model; by default a network with random weights is exported."""
    backbone: str = "resnet50"
    """Network of that repository: slow enough that the load generator costs nothing beside it."""
    loads: tuple[float, ...] = (0.3, 0.5, 0.7, 0.85)
    """Shares of a replica's capacity that are offered."""
    max_batch: int = 4
    """Largest batch of a replica."""
    duration_s: float = 60.0
    """Length of each load."""
    out: Path | None = None
    """Where to write, without ending."""


@contextlib.contextmanager
def replicas(repository: Path, number: int, folder: Path, config: CheckConfig) -> Iterator[list[Subject]]:
    """Start servers, each on a core of its own."""
    settings = Settings(
        num_instances=1,
        num_threads=1,
        max_batch_size=config.max_batch,
        max_queue_delay_us=0,
        queue_limits=False,
    )
    variant = copy_variant(repository, folder / "repository", settings)
    with contextlib.ExitStack() as running:
        subjects = []
        for core in range(number):
            server = TritonServer(
                ServerConfig(
                    repository=variant,
                    load_models=(MODEL_NAME,),
                    http_port=0,
                    grpc_port=0,
                    metrics_port=0,
                    cpu_cores=(core,),
                    exit_timeout_s=5.0,
                )
            )
            running.callback(server.stop)
            server.start()
            address = Address(url=server.grpc_url, headers=server.admin_headers)
            subjects.append(inspect(address, tuple(server.pids()), "started here"))
        yield subjects


def payloads_of(subject: Subject) -> Payloads:
    """Prepared requests of a replica."""
    route = Route(via="wire", url=subject.address.url)
    schedule = Schedule(warmup_s=0.5, window_s=1.0)
    return Payloads(subject=subject, route=route, files=load_files(None, num_images=16), schedule=schedule)


def service_points(payloads: Payloads, load: Worker, max_batch: int) -> list[Point]:
    """Service time of batches: one caller, so that nothing waits."""
    found = []
    for batch in sorted({1, max(1, max_batch // 2), max_batch}):
        report = load.call(run_closed, payloads.job("pixels", batch, 1))
        found.append(report.point({"phase": "service", "batch_size": batch, "concurrency": 1}))
    return found


def open_job(payloads: Payloads, rate_per_s: float, seed: int, config: CheckConfig) -> OpenJob:
    """Independent arrivals at one replica."""
    job = payloads.job("pixels", 1, 1)
    return OpenJob(
        url=payloads.subject.address.url,
        messages=job.requests,
        rate_per_s=rate_per_s,
        duration_s=config.duration_s,
        slo_ms=1e9,
        timeout_s=60.0,
        seed=seed,
        statistics=job.statistics,
    )


def compare(service: Service, jobs: Sequence[OpenJob], reports: Sequence[OpenReport], load: float) -> Point:
    """One load on all replicas: what was measured, and what the simulation says of the same arrivals."""
    latency = np.concatenate([np.asarray(each.latency_ms) for each in reports])
    simulated = [
        _simulated(service, np.asarray(due_times(job)), report, job.seed)
        for job, report in zip(jobs, reports, strict=True)
    ]
    warm = [
        waits.latency_ms[np.asarray(due_times(job)) >= job.warmup_s]
        for waits, job in zip(simulated, jobs, strict=True)
    ]
    predicted = np.concatenate(warm)
    values: dict[str, str | int | float | bool | None] = {
        "num_errors": sum(sum(each.errors.values()) for each in reports)
    }
    for name, of in (("mean", np.mean), ("p50", np.median), ("p99", lambda each: np.percentile(each, 99))):
        values[f"measured_{name}_ms"] = float(of(latency))
        values[f"simulated_{name}_ms"] = float(of(predicted))
    queues = [each.statistics.mean_ms("queue") for each in reports if each.statistics is not None]
    values["measured_queue_ms"] = float(np.mean([each for each in queues if each is not None]))
    values["simulated_queue_ms"] = float(np.mean(np.concatenate([each.queue_ms for each in simulated])))
    return Point(
        settings={
            "phase": "load",
            "replicas": len(jobs),
            "load": load,
            "rate_per_s": jobs[0].rate_per_s * len(jobs),
        },
        samples={"latency_ms": [float(each) for each in latency]},
        values=values,
        valid=not any(each.errors for each in reports),
    )


def _simulated(service: Service, moments: Times, report: OpenReport, seed: int) -> Waits:
    """The same arrivals at the speed that the replica had in this run."""
    if report.statistics is not None:
        parts = [
            report.statistics.mean_ms(each) for each in ("compute_input", "compute_infer", "compute_output")
        ]
        compute_ms = sum(each for each in parts if each is not None)
        if compute_ms:
            service = at_speed(service, moments, compute_ms, seed=seed)
    return simulate(service, moments, seed=seed)


def run_loads(
    subjects: Sequence[Subject], environment: Environment, workers: Sequence[Worker], config: CheckConfig
) -> list[Point]:
    """Measure the service time and offer the load to all of `subjects` at once, for every load."""
    found: list[Point] = []
    everything = [payloads_of(each) for each in subjects]
    with ThreadPoolExecutor(len(subjects)) as pool:
        for number, load in enumerate(config.loads):
            points = service_points(everything[0], workers[0], config.max_batch)
            service = service_of(make_result("service", config, points, environment=environment))
            rate = load * service.capacity_per_s
            jobs = [
                open_job(payloads, rate, 100 * number + index, config)
                for index, payloads in enumerate(everything)
            ]
            running = [
                pool.submit(worker.call, run_open, job) for worker, job in zip(workers, jobs, strict=False)
            ]
            found += [*points, compare(service, jobs, [each.result() for each in running], load)]
    return found


def bars(points: Sequence[Point]) -> list[Bar]:
    """Mean and p99 of every load, measured and simulated, within the tolerance of each other."""
    found = []
    for point in points:
        if point.settings["phase"] != "load":
            continue
        for name in ("mean", "p99"):
            measured, simulated = (point.number(f"{kind}_{name}_ms") for kind in ("measured", "simulated"))
            what = f"{point.settings['replicas']} replica(s) at {point.settings['load']}: {name} latency, measured and simulated apart by"
            ratio = max(measured / simulated, simulated / measured)
            found.append(Bar(name=what, measured=ratio, limit=TOLERANCE, sense="at_most"))
    return found


def run(config: CheckConfig) -> Result:
    """Measure one replica, then two."""
    started_at = datetime.datetime.now(datetime.timezone.utc)
    repository = config.repository or ensure_network(NetworkConfig(backbone=config.backbone))
    with (
        tempfile.TemporaryDirectory(prefix="capacity-") as folder,
        replicas(repository, 2, Path(folder), config) as subjects,
        Worker() as one,
        Worker() as other,
    ):
        subject = subjects[0]
        environment = capture_environment(server=subject.server, model=subject.model)
        points = [
            each
            for number in (1, 2)
            for each in run_loads(subjects[:number], environment, (one, other), config)
        ]
    return make_result(
        "capacity", config, points, bars=bars(points), environment=environment, started_at=started_at
    )


def main(config: CheckConfig) -> int:
    """Measure, print, write; 1 when the simulation is further off than allowed."""
    result = run(config)
    print(check_text(result))
    print_bars(result.bars)
    stem = config.out or RESULTS / file_stem(result)
    data = write_result(result, stem.parent, name=f"{stem.name}.json")
    print(f"\n{data}\n{check_page(result).write(stem.parent / f'{stem.name}.html')}")
    return 1 if result.missed else 0


if __name__ == "__main__":
    end_cleanly_on_sigterm()
    raise SystemExit(main(tyro.cli(CheckConfig)))
