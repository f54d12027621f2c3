"""The capacity model against queues whose answer is known, and the plan that follows from it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.capacity import CapacityConfig, day_curve, plan
from benchmarks.environment import ROOT, capture_environment
from benchmarks.queueing import Service, arrivals, at_speed, fit_line, highest_rate, service_of, simulate
from benchmarks.results import Point, Result, ResultError, make_result, write_result

PLAIN = Service(fixed_ms=0.0, per_image_ms=10.0, max_batch=1, num_instances=1)
BATCHING = Service(fixed_ms=8.0, per_image_ms=2.0, max_batch=8, num_instances=2)
EXPONENTIAL = tuple(float(each) for each in -np.log(1 - (np.arange(4000) + 0.5) / 4000))


@pytest.mark.parametrize(
    ("num_instances", "load", "wait_ms"), [(1, 0.5, 10.0), (1, 0.8, 40.0), (2, 0.8, 17.78), (4, 0.8, 7.455)]
)
def test_waits_are_those_of_the_erlang_formula(num_instances: int, load: float, wait_ms: float) -> None:
    """Independent arrivals and exponential service of mean 10 ms: the mean wait is Erlang's (1917)."""
    service = dataclasses.replace(PLAIN, num_instances=num_instances, spread=EXPONENTIAL)
    rate = load * num_instances / 0.01
    waits = simulate(service, arrivals(rate, 200_000 / rate, seed=3), seed=4)
    assert waits.queue_ms.mean() == pytest.approx(wait_ms, rel=0.12)
    assert waits.busy_share == pytest.approx(load, rel=0.03)


def test_constant_service_waits_half_as_long() -> None:
    """Pollaczek (1930) and Khinchine (1932): at load 0.8 a constant service of 10 ms waits 20 ms on average."""
    waits = simulate(PLAIN, arrivals(80.0, 2000.0, seed=1))
    assert waits.queue_ms.mean() == pytest.approx(20.0, rel=0.1)
    assert waits.latency_ms == pytest.approx(waits.queue_ms + 10.0)


def test_batches_form_as_the_server_forms_them() -> None:
    """A free instance takes what waits, up to the largest batch; with a delay it waits for company, not longer."""
    moments = np.array([0.0, 0.001, 0.002, 0.003])
    one = dataclasses.replace(BATCHING, num_instances=1, max_batch=2)
    waits = simulate(one, moments)
    assert waits.queue_ms == pytest.approx([0, 9, 8, 19])  # 10 ms alone, 12 ms for two, then the last
    patient = dataclasses.replace(one, delay_ms=5.0)
    assert simulate(patient, moments).queue_ms == pytest.approx([1, 0, 11, 10])
    assert simulate(patient, np.array([0.0])).queue_ms == pytest.approx([5])


def test_batching_carries_more_than_single_requests() -> None:
    """Above what single requests could take, larger batches form and the queue stays finite."""
    rate = 0.9 * BATCHING.capacity_per_s
    assert rate > 2 * 1000 / BATCHING.batch_ms(1)
    waits = simulate(BATCHING, arrivals(rate, 30_000 / rate))
    assert 3 < waits.mean_batch <= 8
    assert np.percentile(waits.queue_ms, 99) < 200


def test_speed_of_a_run_is_found_from_its_computing_time() -> None:
    """A replica that ran 1.6 times slower than it was measured is found out from the mean time that its requests were computed for."""
    slower = dataclasses.replace(BATCHING, fixed_ms=12.8, per_image_ms=3.2, overhead_ms=1.0)
    moments = arrivals(0.6 * slower.capacity_per_s, 60.0, seed=7)
    waits = simulate(slower, moments, seed=8)
    compute_ms = float(np.mean(waits.latency_ms - waits.queue_ms)) - 1.0
    found = at_speed(dataclasses.replace(BATCHING, overhead_ms=1.0), moments, compute_ms, seed=8)
    assert [found.fixed_ms, found.per_image_ms] == pytest.approx([12.8, 3.2], rel=0.02)


def test_bursts_keep_the_rate_and_spread_the_counts() -> None:
    """The mean rate is what was asked for; counts a second vary more than those of independent arrivals."""
    calm, bursty = (arrivals(200.0, 4000.0, burst_factor=factor, seed=5) for factor in (1.0, 4.0))
    assert calm.size == pytest.approx(800_000, rel=0.01)
    assert bursty.size == pytest.approx(800_000, rel=0.12)
    assert np.all(np.diff(bursty) >= 0)
    counts = [np.bincount(each.astype(int)) for each in (calm, bursty)]
    assert counts[0].var() / counts[0].mean() == pytest.approx(1.0, abs=0.15)
    assert counts[1].var() / counts[1].mean() > 20
    with pytest.raises(ValueError, match="burst factor"):
        arrivals(1.0, 1.0, burst_factor=11.0)


def test_highest_rate_meets_the_slo_and_a_higher_one_does_not() -> None:
    """The rate found is the border: found within the utilisation, lower under bursts, none when service alone is too slow."""
    rate = highest_rate(BATCHING, slo_ms=40.0, max_utilisation=1.0, num_requests=20_000)
    for factor, holds in ((1.0, True), (1.1, False)):
        moments = arrivals(factor * rate, 20_000 / (factor * rate))
        assert (np.percentile(simulate(BATCHING, moments).latency_ms, 99) <= 40.0) == holds
    assert highest_rate(BATCHING, slo_ms=40.0, burst_factor=2.0, num_requests=20_000) < rate
    assert highest_rate(BATCHING, slo_ms=1e6, max_utilisation=0.7, num_requests=5_000) == pytest.approx(
        0.7 * BATCHING.capacity_per_s
    )
    assert highest_rate(BATCHING, slo_ms=5.0, num_requests=5_000) < 0.01 * rate


@pytest.mark.parametrize("peak_factor", [1.0, 1.5, 3.0, 6.0])
def test_day_has_its_mean_and_its_peak(peak_factor: float) -> None:
    """The curve's mean is 1 and its largest hour the factor."""
    curve = day_curve(peak_factor)
    assert curve.mean() == pytest.approx(1.0)
    assert curve.max() == pytest.approx(peak_factor, rel=1e-6)
    assert curve.min() >= 0


def test_plan_grows_with_the_demand() -> None:
    """A thousand times the images: a thousand times bandwidth, about as many more replicas; autoscaling costs less, the queue the same."""
    config = CapacityConfig(result=Path("unused"), views_per_image=1.2, price_per_gb=0.01)
    small, large = (plan(config, BATCHING, 300.0, each) for each in (1e7, 1e10))
    assert large.replicas - 1 == pytest.approx(1000 * (small.replicas - 1), rel=0.5)
    assert large.replicas - 1 == pytest.approx(1e10 / 86_400 * 2 * 1.2 / 300, rel=0.01)
    assert large.tb_per_day == pytest.approx(1000 * small.tb_per_day)
    assert large.tb_per_day == pytest.approx(1e10 * (150_528 * 1.2 + 600) / 1e12)
    assert large.peak_gbit_per_s == pytest.approx(large.tb_per_day * 8000 / 86_400 * 2)
    assert large.cost_autoscaled < 0.6 * large.cost_per_day + 1e10 * 1.2 * 150_528 / 1e9 * 0.01
    assert large.cost_per_million < small.cost_per_million


def result_of(points: list[Point]) -> Result:
    """A latency result of a replica with two instances and batches of up to 8."""
    environment = capture_environment(model={"instances": "2", "max_batch_size": "8"})
    return make_result("latency", CapacityConfig(result=Path("unused")), points, environment=environment)


def measured(batch: int) -> Point:
    """What a lone caller measures of batches that take 8 + 2 b ms, and 1 ms on the way."""
    values = {"server_queue_ms": 0.0, "server_compute_input_ms": 0.5, "server_compute_output_ms": 0.5}
    infer_ms = 7.0 + 2.0 * batch
    latencies = [infer_ms + 2.0 + wobble for wobble in (-1.0, 0.0, 1.0)]
    return Point(
        settings={"batch_size": batch, "concurrency": 1},
        samples={"latency_ms": latencies},
        values={**values, "server_compute_infer_ms": infer_ms, "mean_batch": float(batch)},
    )


def test_service_time_is_read_from_a_result() -> None:
    """Fixed part, slope, spread and overhead come from the points; without the server's split there is nothing to plan with."""
    service = service_of(result_of([measured(1), measured(4), measured(8)]))
    assert [service.fixed_ms, service.per_image_ms] == pytest.approx([8.0, 2.0])
    assert (service.num_instances, service.max_batch) == (2, 8)
    assert service.overhead_ms == pytest.approx(1.0)
    assert np.mean(service.spread) == pytest.approx(1.0)
    assert max(service.spread) > 1.05
    with pytest.raises(ResultError, match="server-side times"):
        service_of(result_of([Point(settings={}, samples={"latency_ms": [1.0]})]))


def test_line_never_has_a_negative_part() -> None:
    """Noise does not make batches cheaper than nothing: such fits go through the origin."""
    batches = np.array([1.0, 2.0, 4.0])
    assert fit_line(batches, np.array([1.0, 2.5, 6.0]))[0] == 0.0
    assert list(fit_line(batches, np.array([6.0, 5.0, 4.0]))) == pytest.approx([0.0, (6 + 2.5 + 1) / 3])
    assert list(fit_line(np.array([2.0, 2.0]), np.array([10.0, 12.0]))) == pytest.approx([0.0, 5.5])


def test_program_prints_a_plan_and_a_page(tmp_path: Path) -> None:
    """From a result file to the table and the page, as the docs say it."""
    data = write_result(result_of([measured(1), measured(8)]), tmp_path, name="latency.json")
    command = [sys.executable, "benchmarks/capacity.py", str(data), "--images-per-day", "1e6", "1e9"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "capacity.html")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "1,000,000,000" in done.stdout
    assert "<svg" in (tmp_path / "capacity.html").read_text()
    refused = subprocess.run(
        [*command, "--slo-p99-ms", "3"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert refused.returncode == 2
    assert "takes longer than the SLO" in refused.stderr
