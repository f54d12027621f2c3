"""The load generator, its process, and the reading of the server's own counters, against the real server."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.counters import Statistics, TargetError, parse_metrics, read_metrics
from benchmarks.load import Job, Schedule, run_closed
from benchmarks.senders import Route
from benchmarks.target import Address, Target, pixel_message
from benchmarks.worker import Worker, WorkerError
from serve.server import TritonServer
from tests.small_model import SIZE

PIXELS = np.zeros((1, SIZE, SIZE, 3), dtype=np.uint8)
QUICK = Schedule(warmup_s=0.2, window_s=0.3, max_windows=3)


def _address(server: TritonServer, model: str = "moderation") -> Address:
    return Address(url=server.grpc_url, model=model, headers=server.admin_headers)


def _job(server: TritonServer, **changes: object) -> Job:
    settings: dict[str, object] = {
        "route": Route(via="wire", url=server.grpc_url, timeout_s=10.0),
        "requests": [pixel_message(PIXELS)],
        "images_per_request": 1,
        "concurrency": 4,
        "schedule": QUICK,
        "statistics": _address(server),
        "server_pids": tuple(server.pids()),
    }
    return Job(**{**settings, **changes})  # type: ignore[arg-type]


def _pid(_stop: threading.Event) -> int:
    return os.getpid()


def _fail(_stop: threading.Event, what: str) -> None:
    raise ValueError(what)


def _die(_stop: threading.Event) -> None:
    os._exit(3)


def test_worker_runs_elsewhere_and_reports_failures() -> None:
    """A function runs in the other process; its error comes back with its words, a dead process with its status."""
    with Worker() as worker:
        assert worker.call(_pid) == worker.pid != os.getpid()
        with pytest.raises(WorkerError, match="ValueError: no such thing"):
            worker.call(_fail, "no such thing")
        assert worker.call(_pid) == worker.pid
        with pytest.raises(WorkerError, match="exit status 3"):
            worker.call(_die)


def test_generator_and_server_count_the_same_requests(triton: TritonServer) -> None:
    """What the generator says it was answered is what the server says it executed, within what was in flight."""
    with Worker() as worker:
        # Windows of a second: Triton 2.51 was seen to let a batch wait for half of one.
        report = worker.call(
            run_closed, _job(triton, schedule=Schedule(warmup_s=0.2, window_s=1.0, max_windows=4))
        )
    assert report.errors == {}
    assert report.statistics is not None
    assert abs(report.statistics.num_images - report.num_images) <= 16
    assert len(report.latency_ms) == report.num_images > 20
    assert report.generator_cpu_s > 0
    assert report.server_cpu_s is not None
    assert report.server_memory_bytes is not None
    assert report.server_memory_bytes > 10e6


def test_stop_ends_a_run_early_with_what_there_is(triton: TritonServer) -> None:
    """Ctrl-C sets the event; the samples so far come back."""
    stop = threading.Event()
    threading.Timer(1.0, stop.set).start()
    started = time.monotonic()
    report = run_closed(stop, _job(triton, schedule=Schedule(warmup_s=0.1, window_s=0.4, max_windows=200)))
    assert time.monotonic() - started < 30
    assert report.latency_ms


def test_errors_are_counted_and_are_not_latencies(triton: TritonServer) -> None:
    """A request that the server refuses is an error of a kind, never a fast answer."""
    wrong = pixel_message(np.zeros((1, SIZE + 1, SIZE, 3), dtype=np.uint8))
    report = run_closed(threading.Event(), _job(triton, requests=[wrong], concurrency=1, server_pids=()))
    assert report.latency_ms == []
    assert list(report.errors) == ["invalid_argument"]
    assert not report.point({}).valid


def test_metrics_page_has_the_same_counters(triton: TritonServer) -> None:
    """Both ways to read the server agree on what was counted."""
    run_closed(threading.Event(), _job(triton, concurrency=1))
    with Target(_address(triton)) as target:
        by_call = target.statistics()
        by_page = read_metrics(triton.metrics_url, "moderation")
    assert by_page.num_images == by_call.num_images > 0
    assert by_page.compute_infer_ns == pytest.approx(by_call.compute_infer_ns, rel=0.02)


def test_metrics_are_summed_over_versions_and_scaled() -> None:
    """Microseconds become nanoseconds, versions add up, other models do not."""
    text = "\n".join(
        [
            'nv_inference_count{model="moderation",version="1"} 3',
            'nv_inference_count{model="moderation",version="2"} 4',
            'nv_inference_count{model="other",version="1"} 100',
            'nv_inference_queue_duration_us{model="moderation",version="1"} 5',
        ]
    )
    assert parse_metrics(text, "moderation") == Statistics(num_images=7, queue_ns=5000)


def test_nobody_at_the_address_is_a_clear_error() -> None:
    """The message names the address and how to start a server."""
    with pytest.raises(TargetError, match=r"127\.0\.0\.1:9'.*python -m serve"):
        Target(Address(url="127.0.0.1:9"))


def test_a_model_that_is_not_there_is_a_clear_error(triton: TritonServer) -> None:
    """The message names the model and what the server has instead."""
    with pytest.raises(TargetError, match=r"does not serve model 'absent'.*it serves: .*moderation"):
        Target(_address(triton, "absent"))


def test_protected_statistics_say_so(triton: TritonServer) -> None:
    """Without the token the statistics are refused, by name; with the metrics address they are read there."""
    with Target(Address(url=triton.grpc_url)) as target, pytest.raises(TargetError, match="statistics"):
        target.statistics()
    with Target(Address(url=triton.grpc_url, metrics_url=triton.metrics_url)) as target:
        assert target.statistics().num_images >= 0


def test_in_process_reading_counts_images(triton: TritonServer) -> None:
    """Every mode runs the served file and counts each image once."""
    from benchmarks.in_process import modes, run_mode
    from benchmarks.serving import model_file

    path: Path = model_file(Path(triton.repository))
    for mode in modes(2):
        reading = run_mode(threading.Event(), path, mode, 0.05, 0.02)
        assert reading.num_images == len(reading.latency_ms) * mode.batch_size > 0
