"""Simulates the autoscaler that deploy/kubernetes asks for, on recorded load: `python benchmarks/autoscaling.py RECORD.json`.

The controller is Kubernetes' own algorithm (HorizontalPodAutoscaler, autoscaling/v2): desired = ceil(replicas x metric / target) outside
a tolerance of 10 %, the largest over the metrics, then stabilisation windows and rate policies. Each simulated replica replays seconds
that a real one was recorded in, at the load that its share of the arrivals is; new ones take time to start.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro
import yaml

from benchmarks.results import Point, ResultError, read_result

MANIFEST = Path("deploy/kubernetes/base/horizontalpodautoscaler.yaml")
SYNC_S, SCRAPE_S, RATE_WINDOW_S = 15, 15, 60
"""The controller's period, Prometheus' interval, and the adapter's rate()."""
TOLERANCE = 0.1
COUNTERS = ("num_requests", "num_executions", "queue_s", "compute_s")
Counters = dict[str, float]


def quantity(text: str) -> float:
    """Read a Kubernetes quantity: `20m` is 0.02."""
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def metrics_of(before: Counters, after: Counters, elapsed_s: float) -> dict[str, float]:
    """The adapter's two metrics of one replica, by the formulas of prometheus-adapter.yaml."""
    rate = {name: (after[name] - before[name]) / elapsed_s for name in COUNTERS}
    requests = max(rate["num_requests"], 0.001)
    return {
        "moderation_queue_seconds": rate["queue_s"] / requests,
        "moderation_busy_instances": rate["compute_s"] * rate["num_executions"] / requests,
    }


class Replica:
    """One pod: it replays recorded seconds, and Prometheus scrapes it."""

    def __init__(self, started_s: int, start_up_s: int) -> None:
        self.ready_s = started_s + start_up_s
        self.total: Counters = dict.fromkeys(COUNTERS, 0.0)
        self.scrapes: deque[tuple[int, Counters]] = deque()

    def live(self, second: Counters) -> None:
        """Add one second."""
        for name in COUNTERS:
            self.total[name] += second[name]

    def scrape(self, now_s: int) -> None:
        """Remember the counters, as far back as rate() looks."""
        self.scrapes.append((now_s, dict(self.total)))
        while self.scrapes[0][0] < now_s - RATE_WINDOW_S:
            self.scrapes.popleft()

    def metrics(self) -> dict[str, float] | None:
        """What the adapter gives; None with fewer than two scrapes."""
        if len(self.scrapes) < 2:
            return None
        (first_s, before), (last_s, after) = self.scrapes[0], self.scrapes[-1]
        return metrics_of(before, after, last_s - first_s)


@dataclass
class Autoscaler:
    """The controller, for one manifest."""

    spec: Mapping[str, Any]
    _wanted: deque[tuple[int, int]] = field(default_factory=deque)
    _changes: list[tuple[int, int]] = field(default_factory=list)

    def decide(self, now_s: int, replicas: Sequence[Replica]) -> int:
        """Number of replicas from now on."""
        current = len(replicas)
        wanted = max(self._by_metric(each["pods"], replicas) for each in self.spec["metrics"])
        wanted = min(max(wanted, int(self.spec["minReplicas"])), int(self.spec["maxReplicas"]))
        self._wanted.append((now_s, wanted))
        chosen = self._limited(now_s, current, self._stabilised(now_s, current))
        if chosen != current:
            self._changes.append((now_s, chosen - current))
        return chosen

    def _by_metric(self, metric: Mapping[str, Any], replicas: Sequence[Replica]) -> int:
        """ceil(replicas x metric / target); pods without a figure count as idle going up, as at the target going down."""
        name, target = metric["metric"]["name"], quantity(metric["target"]["averageValue"])
        found = [each.metrics() for each in replicas]
        known = [each[name] for each in found if each is not None]
        if not known:
            return len(replicas)
        ratio = sum(known) / len(known) / target
        if abs(ratio - 1) <= TOLERANCE:
            return len(replicas)
        missing = 0.0 if ratio > 1 else target
        ratio_all = (sum(known) + missing * (len(found) - len(known))) / len(found) / target
        if abs(ratio_all - 1) <= TOLERANCE or (ratio > 1) != (ratio_all > 1):
            return len(replicas)
        return math.ceil(ratio_all * len(found))

    def _stabilised(self, now_s: int, current: int) -> int:
        """Not below what was wanted within the window for down, not above what was within that for up."""
        up = self.spec["behavior"]["scaleUp"]["stabilizationWindowSeconds"]
        down = self.spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"]
        while self._wanted[0][0] < now_s - max(up, down):
            self._wanted.popleft()
        lowest = min(number for when, number in self._wanted if when >= now_s - up)
        highest = max(number for when, number in self._wanted if when >= now_s - down)
        return min(max(current, lowest), highest) if lowest > current else max(min(current, highest), lowest)

    def _limited(self, now_s: int, current: int, wanted: int) -> int:
        """Apply the rate policies, each over its own period."""
        if wanted > current:
            limits = [
                self._start(now_s, current, policy, up=True)
                for policy in self.spec["behavior"]["scaleUp"]["policies"]
            ]
            return min(wanted, max(limits))
        limits = [
            self._start(now_s, current, policy, up=False)
            for policy in self.spec["behavior"]["scaleDown"]["policies"]
        ]
        return max(wanted, min(limits))

    def _start(self, now_s: int, current: int, policy: Mapping[str, Any], *, up: bool) -> int:
        """How far one policy lets the number go from where it was when its period began."""
        recent = [change for when, change in self._changes if when > now_s - policy["periodSeconds"]]
        began = current - sum(change for change in recent if (change > 0) == up)
        if policy["type"] == "Pods":
            return int(began + policy["value"] if up else began - policy["value"])
        factor = 1 + policy["value"] / 100 if up else 1 - policy["value"] / 100
        return int(math.ceil(began * factor) if up else math.floor(began * factor))


class Recording:
    """Seconds of one real replica, by the load it was under."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.capacity_per_s = _capacity(points)
        self._levels = sorted((float(each.settings["offered_per_s"] or 0), each) for each in points)

    def second(self, rate_per_s: float, rng: np.random.Generator) -> Counters:
        """A second at this load, out of the nearest two levels; below the lowest, a part of it."""
        rates = [rate for rate, _ in self._levels]
        above = int(np.searchsorted(rates, rate_per_s))
        if above == 0:
            return self._drawn(0, rng, rate_per_s / rates[0])
        if above == len(rates):
            return self._drawn(above - 1, rng)
        share = (rate_per_s - rates[above - 1]) / (rates[above] - rates[above - 1])
        return self._drawn(above if rng.random() < share else above - 1, rng)

    def _drawn(self, level: int, rng: np.random.Generator, scale: float = 1.0) -> Counters:
        samples = self._levels[level][1].samples
        place = int(rng.integers(len(samples["num_requests"])))
        return {name: scale * samples[name][place] for name in COUNTERS}


def _capacity(points: Sequence[Point]) -> float:
    """Images a second that the replica answers when as many come."""
    (full,) = [each for each in points if each.settings["share_of_capacity"] == 1.0]
    return float(full.settings["offered_per_s"] or 0)


@dataclass(frozen=True)
class Trace:
    """What happened, every second."""

    rate_per_s: list[float]
    replicas: list[int]
    ready: list[int]
    queue_s: list[float]
    """Mean time in the queue of the requests answered in that second."""

    @property
    def changes(self) -> list[tuple[int, int]]:
        """(second, replicas from then on)."""
        pairs = zip(self.replicas, self.replicas[1:], strict=False)
        return [(at + 1, after) for at, (before, after) in enumerate(pairs) if before != after]


def simulate(
    spec: Mapping[str, Any],
    recording: Recording,
    load: Callable[[int], float],
    duration_s: int,
    *,
    start_up_s: int = 30,
    seed: int = 0,
) -> Trace:
    """Run the autoscaler against `load` (second -> images a second over all replicas)."""
    rng = np.random.default_rng(seed)
    scaler = Autoscaler(spec)
    replicas = [Replica(-start_up_s, start_up_s) for _ in range(spec["minReplicas"])]
    trace = Trace([], [], [], [])
    for now_s in range(duration_s):
        ready = [each for each in replicas if each.ready_s <= now_s]
        seconds = [recording.second(load(now_s) / len(ready), rng) for _ in ready]
        for each, second in zip(ready, seconds, strict=True):
            each.live(second)
            if now_s % SCRAPE_S == 0:
                each.scrape(now_s)
        if now_s % SYNC_S == SYNC_S // 2:
            wanted = scaler.decide(now_s, replicas)
            replicas = replicas[:wanted] + [Replica(now_s, start_up_s) for _ in range(wanted - len(replicas))]
        trace.rate_per_s.append(load(now_s))
        trace.replicas.append(len(replicas))
        trace.ready.append(len(ready))
        answered = max(1e-9, sum(each["num_requests"] for each in seconds))
        trace.queue_s.append(sum(each["queue_s"] for each in seconds) / answered)
    return trace


def read_manifest(path: Path) -> Mapping[str, Any]:
    """`spec` of a HorizontalPodAutoscaler."""
    spec: Mapping[str, Any] = yaml.safe_load(path.read_text())["spec"]
    return spec


def step_load(low: float, high: float, up_s: int, down_s: int) -> Callable[[int], float]:
    """`low` images a second, between `up_s` and `down_s` `high`."""
    return lambda now_s: high if up_s <= now_s < down_s else low


@dataclass(frozen=True, kw_only=True)
class AutoscalingConfig:
    """Double the load for a while, and see what the autoscaler does."""

    record: tyro.conf.Positional[Path]
    """Result of autoscaling_record.py."""
    manifest: Path = MANIFEST
    """HorizontalPodAutoscaler; its target of busy instances must be for one instance, as recorded."""
    replicas: float = 4.0
    """Load before and after, in replicas at 0.6 of their capacity."""
    start_up_s: int = 30
    """From a decision to a ready replica."""


UP_S, DOWN_S, END_S = 1200, 3000, 6000


def main() -> int:
    """Run the command; its exit status."""
    config = tyro.cli(AutoscalingConfig, description=__doc__)
    try:
        recording = Recording(read_result(config.record).points)
    except ResultError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    low = 0.6 * recording.capacity_per_s * config.replicas
    load = step_load(low, 2 * low, UP_S, DOWN_S)
    trace = simulate(read_manifest(config.manifest), recording, load, END_S, start_up_s=config.start_up_s)
    print(f"load {low:.0f} images/s, twice that from {UP_S} s to {DOWN_S} s")
    for at_s, number in trace.changes:
        print(f"  {at_s:5d} s: {number} replicas")
    waits = np.array(trace.queue_s)
    for name, part in (
        ("before", waits[600:UP_S]),
        ("twice", waits[UP_S + 120 : DOWN_S]),
        ("after", waits[-600:]),
    ):
        print(f"  queue {name}: mean {1000 * part.mean():.1f} ms, worst second {1000 * part.max():.1f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
