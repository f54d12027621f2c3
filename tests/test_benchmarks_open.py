"""Open-loop load: arrivals, latency from the due time, refusals by kind, and the programs built on it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.arrivals import OpenJob, OpenReport, due_times, run_open
from benchmarks.results import read_result
from benchmarks.stats import percentile
from benchmarks.target import Address, pixel_message
from benchmarks.throughput import Session, ThroughputConfig, main, overload_bars
from serve.server import TritonServer
from tests.small_model import SIZE, build_repository, small_config

MESSAGE = pixel_message(np.zeros((1, SIZE, SIZE, 3), dtype=np.uint8))


def _job(url: str = "127.0.0.1:9", **changes: object) -> OpenJob:
    settings: dict[str, object] = {
        "messages": [MESSAGE],
        "rate_per_s": 50.0,
        "duration_s": 2.0,
        "slo_ms": 50.0,
    }
    return OpenJob(**{"url": url, "warmup_s": 0.3, **settings, **changes})  # type: ignore[arg-type]


def test_arrivals_are_poisson_and_repeatable() -> None:
    """The mean gap is 1 / rate and the gaps vary as much as they are long; one seed, one schedule."""
    job = _job(rate_per_s=200.0, duration_s=50.0)
    gaps = np.diff(due_times(job))
    assert gaps.mean() == pytest.approx(1 / 200, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)
    assert due_times(job) == due_times(job)
    assert due_times(job) != due_times(_job(rate_per_s=200.0, duration_s=50.0, seed=1))


def test_every_due_request_is_answered_and_counted(triton: TritonServer) -> None:
    """At a light load nothing is lost between generator and server."""
    statistics = Address(url=triton.grpc_url, headers=triton.admin_headers)
    report = run_open(threading.Event(), _job(triton.grpc_url, statistics=statistics))
    assert len(report.latency_ms) + sum(report.errors.values()) == report.num_due
    assert report.statistics is not None
    assert report.statistics.num_images >= len(report.latency_ms)
    assert report.goodput_per_s <= report.num_due / report.duration_s


def test_a_stall_is_charged_to_every_request_it_held_up(
    start_triton: Callable[..., TritonServer], tmp_path: Path
) -> None:
    """A model that stands still for 0.8 s delays the forty requests due meanwhile, not only those in flight."""
    server = start_triton(build_repository(tmp_path / "r", config=small_config(num_instances=2)))
    stubs = server.pids()[1:]

    def stall(number: int) -> None:
        for pid in stubs:
            os.kill(pid, number)

    timers = [threading.Timer(0.8, stall, [signal.SIGSTOP]), threading.Timer(1.6, stall, [signal.SIGCONT])]
    for timer in timers:
        timer.start()
    report = run_open(threading.Event(), _job(server.grpc_url, distribution="constant", duration_s=3.0))
    for timer in timers:
        timer.join()
    held_up = sum(latency > 100 for latency in report.latency_ms)
    assert held_up >= 20
    assert percentile(report.latency_ms, 99) > 500


def _report(**changes: object) -> OpenReport:
    settings: dict[str, object] = {
        "latency_ms": [10.0] * 95 + [80.0] * 5,
        "lateness_ms": [0.1] * 100,
        "errors": {},
        "num_sent": 100,
        "num_due": 100,
        "duration_s": 2.0,
        "offered_per_s": 50.0,
        "slo_ms": 50.0,
        "generator_cpu_s": 0.1,
        "server_cpu_s": None,
        "statistics": None,
    }
    return OpenReport(**{**settings, **changes})  # type: ignore[arg-type]


def test_goodput_counts_answers_within_the_slo() -> None:
    """Late answers are not good ones; errors alone fail the SLO."""
    assert _report().goodput_per_s == 47.5
    assert not _report().meets_slo()
    assert _report(latency_ms=[10.0] * 100).meets_slo()
    assert not _report(latency_ms=[10.0] * 99, errors={"queue_full": 1}).meets_slo()


def test_a_request_without_an_answer_is_an_error() -> None:
    """Neither answered nor refused when the generator gave up: the SLO is not met, and the count says why."""
    report = _report(latency_ms=[10.0] * 99)
    assert report.unanswered == 1
    assert not report.meets_slo()
    assert report.point({}).values["num_errors"] == 1


def test_an_interrupted_window_is_as_long_as_it_was(triton: TritonServer) -> None:
    """Ctrl-C after a second of a minute: rates are of that second, and it does not wait for the minute to pass."""
    stop = threading.Event()
    threading.Timer(1.5, stop.set).start()
    report = run_open(stop, _job(triton.grpc_url, duration_s=60.0, server_pids=(os.getpid(),)))
    assert report.interrupted
    assert report.duration_s < 10.0
    assert 20 < report.goodput_per_s < 90
    assert report.server_cpu_s is not None
    assert report.server_cpu_s >= 0


def test_overload_is_judged_by_valid_rounds_only() -> None:
    """A round in which the generator was late says nothing; when all are, the bars are missed and say so."""
    late = _report(lateness_ms=[30.0] * 100, latency_ms=[10.0] * 100)
    good = _report(latency_ms=[10.0] * 98 + [80.0] * 2)
    reports = [("search", 0.0, good), ("overload", 3.0, good), ("overload", 3.0, late)]
    session = Session(
        config=ThroughputConfig(slo_p99_ms=50.0), subject=None, payloads=None, load=None, reports=reports  # type: ignore[arg-type]
    )  # fmt: skip
    assert [bar.measured for bar in overload_bars(session)] == [1.0, pytest.approx(80.0)]
    session.reports = [("search", 0.0, good), ("overload", 3.0, late)]
    bars = overload_bars(session)
    assert all("no valid round" in bar.name and not bar.met for bar in bars)


def test_a_late_generator_makes_the_run_invalid() -> None:
    """When the generator was the bottleneck the point says so and is not valid."""
    assert _report().point({}).valid
    late = _report(lateness_ms=[0.1] * 90 + [30.0] * 10).point({})
    assert not late.valid
    assert "bottleneck" in late.notes[0]
    assert not _report(lateness_ms=[0.1] * 50).point({}).valid


def test_overload_is_reported_by_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Offered rates, overload rounds and the bars that judge them end in one file and one page."""
    repository = build_repository(tmp_path / "r", config=small_config(num_instances=2))
    config = ThroughputConfig(
        serve=True, repository=repository, rates=(30.0,), overload=True, num_rounds=1, duration_s=0.7,
        warmup_s=0.2, num_images=1, slo_p99_ms=500.0, max_queue_size=64, queue_timeout_ms=300.0, out=tmp_path / "t",
    )  # fmt: skip
    assert main(config) in (0, 1)
    result = read_result(tmp_path / "t.json")
    assert [point.settings["multiple"] for point in result.points] == [0.0, 1.0, 2.0, 3.0]
    assert [bar.sense for bar in result.bars] == ["at_least", "at_most"]
    assert "offered/s" in capsys.readouterr().out
    assert (tmp_path / "t.html").read_text().count("<svg") == 3
