"""What a number of images a day takes: `python benchmarks/capacity.py RESULT.json --images-per-day 1e6 1e7 1e8 1e9`.

RESULT is what latency.py or throughput.py measured of one replica. A simulation of the batcher gives the rate that a replica takes within the
SLO under bursts; peak rate over that, and spares, give replicas; sizes give bandwidth; prices give cost, with and without
autoscaling over the day. `capacity_check.py` compares the simulation
with one and two real replicas, at the speed that the machine had in each run.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from benchmarks.queueing import NUM_REQUESTS, Service, arrivals, highest_rate, service_of, simulate
from benchmarks.report import Page, figure, number, text_table
from benchmarks.results import ResultError, read_result
from benchmarks.subject import fail

DAY_S = 86_400
PIXEL_BYTES = 224 * 224 * 3
REQUEST_BYTES = 600
"""Headers and scores of a request with one image, there and back."""
HEADER = (
    "images a day", "mean /s", "peak /s", "replicas", "queue p50 ms", "queue p99 ms", "latency p99 ms",
    "peak Gbit/s", "TB a day", "cost a day", "autoscaled", "per million",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CapacityConfig:
    """Plan replicas, bandwidth and cost."""

    result: tyro.conf.Positional[Path]
    """Result of latency.py or throughput.py for one replica on the machine that is planned with."""
    images_per_day: tuple[float, ...] = (1e6, 1e7, 1e8, 1e9)
    """Demands to plan for."""
    peak_factor: float = 2.0
    """Busiest hour over the mean of the day."""
    burst_factor: float = 1.5
    """Rate within bursts (a tenth of the time, 5 s each) over the mean of the hour; 1 for none."""
    slo_p99_ms: float = 250.0
    """What 99 of 100 requests must stay within at the peak, network apart."""
    image_bytes: int = PIXEL_BYTES
    """Bytes of an image on the wire: by default prepared pixels of 224 x 224; the mean file size for decode="server"."""
    views_per_image: float = 1.0
    """Views that the model sees of an image: more than 1 with animations, strips, transparency."""
    price_per_hour: float = 0.10
    """Price of one replica."""
    price_per_gb: float = 0.0
    """Price of a GB between callers and replicas; 0 within one network."""
    spare: int = 1
    """Replicas beyond what the peak needs: one may be down or being replaced."""
    batch_delay_ms: float = 0.5
    """The batcher's delay, as configured."""
    max_utilisation: float = 0.85
    """Plan no replica above this share of its capacity."""
    out: Path | None = None
    """HTML page to write."""

    def __post_init__(self) -> None:
        """Check the values. Raises ValueError that names the option."""
        if not 1 <= self.peak_factor <= 20:
            raise ValueError(f"--peak-factor must be 1 to 20, got {self.peak_factor}")
        for name in ("slo_p99_ms", "image_bytes", "views_per_image", "max_utilisation"):
            if getattr(self, name) <= 0:
                raise ValueError(f"--{name.replace('_', '-')} must be above 0, got {getattr(self, name)}")
        if any(each <= 0 for each in self.images_per_day):
            raise ValueError(f"--images-per-day must be above 0, got {self.images_per_day}")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one demand takes."""

    images_per_day: float
    mean_per_s: float
    peak_per_s: float
    replicas: int
    queue_p50_ms: float
    queue_p99_ms: float
    latency_p99_ms: float
    peak_gbit_per_s: float
    tb_per_day: float
    cost_per_day: float
    """All replicas all day."""
    cost_autoscaled: float
    """Replicas as the hour needs them."""

    @property
    def cost_per_million(self) -> float:
        """Of images, autoscaled."""
        return self.cost_autoscaled / self.images_per_day * 1e6

    def cells(self) -> list[str]:
        """Line under HEADER."""
        return [
            f"{self.images_per_day:,.0f}",
            *(number(each) for each in (self.mean_per_s, self.peak_per_s)),
            f"{self.replicas:,}",
            *(number(each) for each in (self.queue_p50_ms, self.queue_p99_ms, self.latency_p99_ms)),
            *(number(each) for each in (self.peak_gbit_per_s, self.tb_per_day)),
            *(f"{each:,.2f}" for each in (self.cost_per_day, self.cost_autoscaled, self.cost_per_million)),
        ]


def day_curve(peak_factor: float, num_hours: int = 24) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Rate of every hour over the day's mean: the von Mises shape whose largest value is `peak_factor`."""
    hours = np.cos(np.linspace(0.0, 2 * np.pi, num_hours, endpoint=False))
    low, high = 0.0, 200.0
    for _ in range(60):
        middle = (low + high) / 2
        curve = np.exp(middle * (hours - 1))
        low, high = (middle, high) if curve.max() / curve.mean() < peak_factor else (low, middle)
    return np.asarray(curve / curve.mean())


def plan(config: CapacityConfig, service: Service, rate_per_replica: float, images_per_day: float) -> Plan:
    """Plan one demand; `rate_per_replica`: views a second that one replica takes within the SLO."""
    mean = images_per_day / DAY_S
    curve = day_curve(config.peak_factor)
    views = mean * config.views_per_image
    needed = max(1, math.ceil(views * config.peak_factor / rate_per_replica))
    hourly = [max(1, math.ceil(views * each / rate_per_replica)) + config.spare for each in curve]
    rate = views * config.peak_factor / needed
    waits = simulate(service, arrivals(rate, NUM_REQUESTS / rate, burst_factor=config.burst_factor))
    wire_bytes = config.image_bytes * config.views_per_image + REQUEST_BYTES
    traffic = images_per_day * wire_bytes / 1e9 * config.price_per_gb
    return Plan(
        images_per_day=images_per_day,
        mean_per_s=mean,
        peak_per_s=mean * config.peak_factor,
        replicas=needed + config.spare,
        queue_p50_ms=float(np.percentile(waits.queue_ms, 50)),
        queue_p99_ms=float(np.percentile(waits.queue_ms, 99)),
        latency_p99_ms=float(np.percentile(waits.latency_ms, 99)),
        peak_gbit_per_s=mean * config.peak_factor * wire_bytes * 8 / 1e9,
        tb_per_day=images_per_day * wire_bytes / 1e12,
        cost_per_day=(needed + config.spare) * 24 * config.price_per_hour + traffic,
        cost_autoscaled=sum(hourly) * config.price_per_hour + traffic,
    )


def latency_curve(service: Service, burst_factor: float) -> tuple[list[float], dict[str, list[float]]]:
    """Utilisation, and the median and p99 latency of a replica there."""
    shares = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95]
    found: dict[str, list[float]] = {"p50": [], "p99": []}
    for share in shares:
        rate = share * service.capacity_per_s
        waits = simulate(service, arrivals(rate, NUM_REQUESTS / rate, burst_factor=burst_factor, seed=2))
        for name, percent in (("p50", 50), ("p99", 99)):
            found[name].append(float(np.percentile(waits.latency_ms, percent)))
    return shares, found


def facts(config: CapacityConfig, service: Service, rate_per_replica: float) -> list[tuple[str, str]]:
    """Rows that a reader must know."""
    return [
        ("a batch of b images takes", f"{service.fixed_ms:.2f} + {service.per_image_ms:.2f} x b ms"),
        ("instances, largest batch", f"{service.num_instances}, {service.max_batch}"),
        ("capacity of a replica", f"{service.capacity_per_s:.1f} images/s"),
        ("taken within the SLO", f"{rate_per_replica:.1f} images/s (p99 <= {config.slo_p99_ms:g} ms)"),
        (
            "day, bursts",
            f"busiest hour {config.peak_factor:g} x the mean; bursts {config.burst_factor:g} x the hour",
        ),
        ("price of a replica", f"{config.price_per_hour:g} an hour"),
    ]


def page(config: CapacityConfig, service: Service, rate_per_replica: float, plans: list[Plan]) -> Page:
    """One page: the plan, what it rests on, and how latency grows with load."""
    found = Page(
        "Capacity",
        "Replicas, bandwidth, cost and waiting time, from the measured service time of one replica.",
    )
    found.table(HEADER, [each.cells() for each in plans])
    found.heading("What it rests on")
    found.table(("", ""), facts(config, service, rate_per_replica), text_columns=(1,))
    drawing, axes = figure()
    shares, curves = latency_curve(service, config.burst_factor)
    for name, values in curves.items():
        axes.plot(shares, values, marker="o", label=name)
    axes.axhline(config.slo_p99_ms, color="#999999", linestyle="--", label="SLO")
    axes.set(xlabel="share of a replica's capacity", ylabel="latency, ms", yscale="log")
    axes.legend(frameon=False)
    found.heading("Latency of a replica by load")
    found.figure(
        drawing,
        "Simulated latency of one replica under the same bursts; the batcher makes larger batches as load grows.",
    )
    return found


def main(config: CapacityConfig) -> int:
    """Plan, print, write the page."""
    try:
        service = dataclasses.replace(service_of(read_result(config.result)), delay_ms=config.batch_delay_ms)
    except ResultError as error:
        fail(error)
    rate = highest_rate(
        service,
        slo_ms=config.slo_p99_ms,
        burst_factor=config.burst_factor,
        max_utilisation=config.max_utilisation,
    )
    if not rate:
        fail(f"one request alone takes longer than the SLO of {config.slo_p99_ms:g} ms on this replica")
    plans = [plan(config, service, rate, each) for each in config.images_per_day]
    print(text_table(("", ""), facts(config, service, rate)) + "\n")
    print(text_table(HEADER, [each.cells() for each in plans]))
    if config.out is not None:
        print(f"\n{page(config, service, rate, plans).write(config.out)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(CapacityConfig)))
