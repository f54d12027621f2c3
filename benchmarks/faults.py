"""What a fault of one replica costs callers: throughput, p99 and errors while it is killed, stopped, drained, cut off or slowed.

    python benchmarks/faults.py                                   every fault, with two and with three replicas
    python benchmarks/faults.py --faults stop kill --num-replicas 2

Callers ask about one image after the other as fast as they are answered, and every answer is held against the known scores and
decision. What the surviving replicas can do is measured right before each fault, with the others idle; a fault counts as survived
at the end of the last second with less than 0.8 of it. "none" is a control: no fault, judged in the same way, without a bar of its
own; what it misses, the machine missed. All replicas and the callers share this machine.
"""

from __future__ import annotations

import datetime
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from tqdm import tqdm

from benchmarks import faults_page
from benchmarks.environment import capture_environment, sha256_of
from benchmarks.fault_kinds import CONTROL, KINDS, Fault, started
from benchmarks.fault_load import OK, WRONG, Call, Known, Load, recovery_s, throughput
from benchmarks.fault_replicas import Namespace, Replica, ReplicaError
from benchmarks.results import Bar, Point, Scalar, file_stem, make_result, write_result
from benchmarks.serving import model_file
from benchmarks.stats import percentile
from export.session import open_session, run
from export.version import cpu_accelerator
from moderation_client import ModelSpec, ModerationClient
from moderation_client.policy import Policy

SHARE, BACK_WITHIN_S = 0.8, 2.0
TOLERANCE = 1e-4
NUM_DISTINCT = 64
PAGES = Path("runs/benchmarks")


@dataclass(frozen=True, kw_only=True)
class FaultsConfig:
    """What to break, and how often to ask meanwhile."""

    repository: Path = Path("model_repository")
    """Published model."""
    faults: tuple[str, ...] = tuple(KINDS)
    """Which; all by default, the control among them."""
    num_replicas: tuple[int, ...] = (2, 3)
    """One run of every fault with each number of replicas."""
    num_images: int = 5000
    """At least so many images around each fault."""
    before_s: float = 4.0
    lasts_s: float = 10.0
    """From the beginning of a fault until it is undone."""
    num_callers: int = 8
    capacity_s: float = 5.0
    """How long the surviving replicas are measured."""
    out: Path = Path("benchmarks/results")
    """Folder for the JSON; the page goes to runs/benchmarks."""

    def __post_init__(self) -> None:
        """Check the values. Raises ValueError."""
        unknown = sorted(set(self.faults) - set(KINDS))
        if unknown:
            raise ValueError(f"unknown faults {', '.join(unknown)}; there are: {', '.join(KINDS)}")


def known_images(repository: Path) -> Known:
    """Coloured noise, no two with the same scores, and what the model file gives for it here."""
    file = model_file(repository)
    spec = ModelSpec.from_json((file.parent / "spec.json").read_text())
    policy = Policy.from_json((file.parent / "policy.json").read_text())
    rng = np.random.default_rng(0)
    shape = (4 * NUM_DISTINCT, spec.image.height, spec.image.width, 3)
    levels = rng.integers(40, 216, (shape[0], 1, 1, 3))
    pixels = (levels + rng.integers(-40, 40, shape)).astype(np.uint8)
    opened = open_session(file, threads=1, accelerator=cpu_accelerator(file.parent))
    scores = np.asarray(run(opened, pixels, batch=8), dtype=np.float64)
    chosen: list[int] = []
    for index in range(len(scores)):
        apart = np.abs(scores[index] - scores[chosen]).max(axis=1) if chosen else np.array([1.0])
        if len(chosen) < NUM_DISTINCT and apart.min() > 4 * TOLERANCE:
            chosen.append(index)
    return Known(pixels=pixels[chosen], scores=scores[chosen], policy=policy, tolerance=TOLERANCE)


class Watcher:
    """Notes when a client leaves a replica alone and comes back to it, and when `/ready` says so."""

    def __init__(self, client: ModerationClient, load: Load, victim: Replica) -> None:
        self.left_s: float | None = None
        self.back_s: float | None = None
        self.unready_s: float | None = None
        self.ready_s: float | None = None
        self._client, self._load, self._victim = client, load, victim
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.05):
            states = self._client.stats().replicas
            state = next(each for each in states if self._victim.url in each.url)
            now_s = self._load.now_s()
            self.left_s, self.back_s = _noted(self.left_s, self.back_s, now_s, well=not state.ejected)
            well = self._victim.is_ready()
            self.unready_s, self.ready_s = _noted(self.unready_s, self.ready_s, self._load.now_s(), well=well)


def _noted(
    lost_s: float | None, back_s: float | None, now_s: float, *, well: bool
) -> tuple[float | None, float | None]:
    """First moment of being lost, and the moment of the last return."""
    if not well:
        return (now_s if lost_s is None else lost_s), None
    return lost_s, (now_s if lost_s is not None and back_s is None else back_s)


def measure_capacity(urls: Sequence[str], known: Known, config: FaultsConfig) -> Point:
    """What these replicas answer a second, alone and undisturbed."""
    with ModerationClient(list(urls)) as client, Load(client, known, num_callers=config.num_callers) as load:
        load.wait(seconds=1.0 + config.capacity_s)
    calls = [call for call in load.calls if 1.0 <= call.done_s < 1.0 + config.capacity_s]
    values: dict[str, Scalar] = {"throughput_per_s": len(calls) / config.capacity_s, **counts(load)}
    return Point(
        settings={"phase": "capacity", "num_replicas": len(urls)},
        samples=samples(calls),
        values=values,
    )


def counts(load: Load) -> dict[str, Scalar]:
    """How the calls of a load ended."""
    outcomes = load.outcomes()
    failed = {key: value for key, value in outcomes.items() if key not in (OK, WRONG, "lost")}
    return {
        "num_asked": load.num_asked,
        "num_lost": outcomes.get("lost", 0),
        "num_wrong": outcomes.get(WRONG, 0),
        "num_failed": sum(failed.values()),
    }


def measure_fault(
    fault: Fault, victim: Replica, others: Sequence[Replica], known: Known, config: FaultsConfig
) -> Point:
    """One fault in the middle of the load."""
    urls = [victim.url, *(each.url for each in others)]
    with ModerationClient(urls) as client:
        client.moderate([known.pixels[0]])
        with Load(client, known, num_callers=config.num_callers) as load:
            load.wait(seconds=config.before_s)
            watcher = Watcher(client, load, victim)
            begun_s = load.now_s()
            fault.begin(victim)
            time.sleep(max(0.0, begun_s + config.lasts_s - load.now_s()))
            undone_s = load.now_s()
            fault.end(victim)
            load.wait(seconds=4.0, num_calls=max(0, config.num_images - len(load.calls)))
            watcher.close()
    marks = {"begun_s": begun_s, "undone_s": undone_s, "left_s": watcher.left_s, "back_s": watcher.back_s}
    marks |= {"unready_s": watcher.unready_s, "ready_s": watcher.ready_s}
    settings: dict[str, Scalar] = {"phase": "fault", "fault": fault.name, "num_replicas": len(urls)}
    return Point(settings=settings, samples=samples(load.calls), values={**marks, **counts(load)})


def samples(calls: Sequence[Call]) -> dict[str, list[float]]:
    """Raw values of every call in the order of their answers; milliseconds and their tenths are what callers notice."""
    ordered = sorted(calls, key=lambda call: call.done_s)
    right = [call for call in ordered if call.outcome == OK]
    return {
        "done_s": [round(call.done_s, 3) for call in right],
        "latency_ms": [round(call.latency_ms, 1) for call in right],
        "bad_s": [round(call.done_s, 3) for call in ordered if call.outcome != OK],
    }


def judged(point: Point, capacity_per_s: float) -> Point:
    """Add the figures that follow from the raw values."""
    pairs = zip(point.samples["done_s"], point.samples["latency_ms"], strict=True)
    calls = [Call(0, done_s - latency_ms / 1000, done_s, OK) for done_s, latency_ms in pairs]
    begun_s, undone_s = point.number("begun_s"), point.number("undone_s")
    wanted = SHARE * capacity_per_s

    def p99(from_s: float, to_s: float) -> float | None:
        window = [call.latency_ms for call in calls if from_s <= call.done_s < to_s]
        return percentile(window, 99) if window else None

    values: dict[str, Scalar] = {
        "survivors_per_s": capacity_per_s,
        "recovery_s": recovery_s(calls, begun_s, wanted, undone_s),
        "share_after_2s": throughput(calls, begun_s + BACK_WITHIN_S, undone_s) / capacity_per_s,
        "p99_before_ms": p99(0.5, begun_s),
        "p99_during_ms": p99(begun_s, undone_s),
        "p99_after_ms": p99(undone_s, calls[-1].done_s),
        "longest_ms": max(call.latency_ms for call in calls),
    }
    return Point(settings=point.settings, samples=point.samples, values={**point.values, **values})


def bars_of(points: Sequence[Point]) -> list[Bar]:
    """What must hold for every fault."""
    found = []
    for key, text in (("num_lost", "lost"), ("num_wrong", "wrong"), ("num_failed", "failed")):
        total = sum(point.number(key) for point in points)
        found.append(Bar(name=f"images {text}, all faults", measured=total, limit=0, sense="at_most"))
    for point in points:
        if point.settings["fault"] == CONTROL.name:
            continue
        name = f"{point.settings['fault']}, {point.settings['num_replicas']} replicas"
        recovery = point.number("recovery_s")
        text = f"{name}: s until {SHARE} of what survives is back"
        found.append(Bar(name=text, measured=recovery, limit=BACK_WITHIN_S, sense="at_most"))
        share = point.number("share_after_2s")
        text = f"{name}: share of what survives, from {BACK_WITHIN_S:g} s on"
        found.append(Bar(name=text, measured=share, limit=SHARE, sense="at_least"))
        if point.settings["fault"] == "stub":
            unseen = point.values["unready_s"] is None  # all of the time that it lasted, then
            late_s = point.number("undone_s" if unseen else "unready_s") - point.number("begun_s")
            found.append(Bar(name=f"{name}: s until unready", measured=late_s, limit=2.0, sense="at_most"))
    return found


def measure(config: FaultsConfig, known: Known, folder: Path) -> list[Point]:
    """Every fault with every number of replicas."""
    namespace = _namespace() if "partition" in config.faults else None
    replicas = {
        "nothing": Replica(config.repository, folder),
        "relay": Replica(config.repository, folder, relayed=True),
        "namespace": Replica(config.repository, folder, namespace=namespace),
    }
    points = []
    with started(list(replicas.values())):
        for num_replicas in config.num_replicas:
            for name in tqdm(config.faults, desc=f"{num_replicas} replicas", unit="fault"):
                victim = replicas[KINDS[name].needs]
                if KINDS[name].needs == "namespace" and namespace is None:
                    continue
                others = [each for each in replicas.values() if each is not victim][: num_replicas - 1]
                capacity = measure_capacity([each.url for each in others], known, config)
                point = measure_fault(KINDS[name], victim, others, known, config)
                points.append(judged(point, capacity.number("throughput_per_s")))
                _wait_well(victim)
    return points


def _namespace() -> Namespace | None:
    try:
        return Namespace()
    except ReplicaError as error:
        print(f"no partition: {error}", file=sys.stderr)
        return None


def _wait_well(replica: Replica) -> None:
    """Wait until a replica that was hurt answers alone."""
    spec_pixels = None
    with ModerationClient(replica.url) as client:
        while spec_pixels is None:
            if client.is_ready(timeout_s=5.0):
                spec = client.spec()
                spec_pixels = np.zeros((spec.image.height, spec.image.width, 3), dtype=np.uint8)
        client.moderate([spec_pixels], on_error="verdict")


def main() -> int:
    """Run the benchmark; exit status 1 when a bar is missed."""
    config = tyro.cli(FaultsConfig, description=__doc__)
    began = datetime.datetime.now(datetime.timezone.utc)
    file = model_file(config.repository)
    environment = capture_environment(
        model={"name": "moderation", "file": file.name, "model_sha256": sha256_of(file)}
    )
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        points = measure(config, known_images(config.repository), Path(folder))
    bars = bars_of([point for point in points if point.settings["phase"] == "fault"])
    result = make_result("faults", config, points, bars=bars, environment=environment, started_at=began)
    print(faults_page.text(result))
    print(write_result(result, config.out))
    print(faults_page.page(result).write(PAGES / f"{file_stem(result)}.html"))
    return 1 if result.missed else 0


if __name__ == "__main__":
    sys.exit(main())
