"""Find the server's settings by measurement: `python benchmarks/tune.py model_repository --slo-p99-ms 50` writes the winner through export.

Searches instances x threads x largest batch x queue delay with the real server and the project's load generator, each candidate in a short
closed loop; the best ones and the repository's own settings are then measured again in interleaved rounds, because the fastest of many short runs is
partly the luckiest. Resumable: what was measured is kept beside the page and not measured again.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from tqdm import tqdm

from benchmarks import tune_page
from benchmarks.corpus import load_files
from benchmarks.environment import capture_environment, cpu_quota, sha256_of
from benchmarks.load import LoadReport, Schedule, run_closed
from benchmarks.payloads import Payloads
from benchmarks.results import Bar, Point, Result, file_stem, make_result, write_result
from benchmarks.senders import Route
from benchmarks.serving import Settings, VariantError, model_file, read_config, serving
from benchmarks.stats import percentile, ratio
from benchmarks.subject import end_cleanly_on_sigterm, fail, inspect, print_bars
from benchmarks.worker import Interrupted, Worker, WorkerError
from export.errors import ExportError

RESULTS = Path("runs/benchmarks")
INTRA_OP = "intra_op_thread_count"
Goal = Literal["throughput", "latency"]


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """Choose instances, threads, largest batch and queue delay for an SLO."""

    repository: tyro.conf.Positional[Path] = Path("model_repository")
    """Model repository whose settings are tuned."""
    slo_p99_ms: float | None = None
    """Candidates beyond this p99 lose; by default none does."""
    goal: Goal = "throughput"
    """`throughput`: most images/s at --callers; `latency`: lowest p50 of a lone caller."""
    callers: int = 16
    """Single-image callers for --goal throughput."""
    file: str | None = None
    """ONNX file to tune for; by default the one that the repository serves."""
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8)
    delays_us: tuple[int, ...] = (0, 1000)
    slice_s: float = 3.0
    """How long each candidate is measured in the search, and in each final round."""
    num_finalists: int = 3
    num_rounds: int = 5
    """Rounds of the final."""
    budget_s: float = 600.0
    """The search stops after so long; the final is always run."""
    write: bool = False
    """Write the winner into the repository through `export`."""
    out: Path | None = None
    """Where to write, without ending; by default runs/benchmarks/<date>_<commit>_<machine>_tune."""

    def __post_init__(self) -> None:
        """Check the values. Raises ValueError that names the option."""
        for name in ("callers", "slice_s", "num_finalists", "num_rounds", "budget_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"--{name.replace('_', '-')} must be above 0, got {getattr(self, name)}")

    @property
    def num_callers(self) -> int:
        """Callers that a candidate is measured with."""
        return self.callers if self.goal == "throughput" else 1


def candidates(config: TuneConfig, num_cores: int) -> list[Settings]:
    """Every sensible combination: instances x threads fill the cores, delays only where batches form."""
    found = []
    shapes = [
        (num_cores // threads, threads) for threads in range(1, num_cores + 1) if num_cores % threads == 0
    ]
    for instances, threads in shapes:
        for batch in config.batch_sizes if config.goal == "throughput" else config.batch_sizes[-1:]:
            for delay in config.delays_us if batch > 1 and config.goal == "throughput" else (0,):
                found.append(
                    Settings(
                        num_instances=instances,
                        num_threads=threads,
                        max_batch_size=batch,
                        max_queue_delay_us=delay,
                        file=config.file,
                    )
                )
    return found


def own_settings(config: TuneConfig) -> Settings:
    """Give what the repository has now. Raises VariantError."""
    found = read_config(config.repository)
    return Settings(
        num_instances=sum(group.count for group in found.instance_group) or 1,
        num_threads=int(found.parameters[INTRA_OP].string_value or "0") or int(cpu_quota()),
        max_batch_size=found.max_batch_size,
        max_queue_delay_us=found.dynamic_batching.max_queue_delay_microseconds,
        file=config.file,
    )


@dataclass(kw_only=True)
class Trials:
    """What was measured, by settings; kept in a file so that a search can be taken up again."""

    path: Path
    stamp: str
    """Hash of model and options: measurements of something else are not taken up."""
    known: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, stamp: str) -> Trials:
        """Read what an earlier search left, if it was of the same thing."""
        try:
            payload = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            payload = {}
        return cls(
            path=path, stamp=stamp, known=payload.get("known", {}) if payload.get("stamp") == stamp else {}
        )

    def add(self, settings: Settings, figures: dict[str, float]) -> None:
        """Remember, at once on disk."""
        self.known[str(settings)] = figures
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps({"stamp": self.stamp, "known": self.known}), encoding="utf-8")
        part.replace(self.path)


def run_settings(config: TuneConfig, settings: Settings, load: Worker, files: list[bytes]) -> LoadReport:
    """Start the server with these settings and measure. Raises VariantError."""
    with serving(config.repository, settings) as running:
        subject = inspect(running.address, running.pids, "started here")
        schedule = Schedule(warmup_s=1.0, window_s=config.slice_s / 3, max_windows=3)
        route = Route(via="wire", url=running.address.url)
        payloads = Payloads(subject=subject, route=route, files=files, schedule=schedule)
        return load.call(run_closed, payloads.job("pixels", 1, config.num_callers))


def figures_of(report: LoadReport) -> dict[str, float]:
    """What candidates are ranked by."""
    known = bool(report.latency_ms)
    mean_batch = report.statistics.mean_batch if report.statistics else None
    return {
        "images_per_s": report.images_per_s,
        "p50_ms": percentile(report.latency_ms, 50) if known else 1e9,
        "p99_ms": percentile(report.latency_ms, 99) if known else 1e9,
        "mean_batch": mean_batch or 0.0,
    }


def rank(config: TuneConfig, figures: dict[str, float]) -> tuple[bool, float]:
    """Larger is better: within the SLO first, then what the goal asks for."""
    within = config.slo_p99_ms is None or figures["p99_ms"] <= config.slo_p99_ms
    return within, figures["images_per_s"] if config.goal == "throughput" else -figures["p50_ms"]


def search(config: TuneConfig, trials: Trials, load: Worker, files: list[bytes]) -> list[Settings]:
    """Measure every candidate once, within the budget; the best ones."""
    deadline = time.monotonic() + config.budget_s
    everything = candidates(config, max(1, int(cpu_quota())))
    for settings in tqdm(everything, desc="candidates", disable=None):
        if str(settings) not in trials.known and time.monotonic() < deadline:
            trials.add(settings, figures_of(run_settings(config, settings, load, files)))
    measured = [each for each in everything if str(each) in trials.known]
    measured.sort(key=lambda each: rank(config, trials.known[str(each)]), reverse=True)
    return measured[: config.num_finalists]


def final(
    config: TuneConfig, finalists: list[Settings], load: Worker, files: list[bytes]
) -> dict[Settings, list[dict[str, float]]]:
    """Measure finalists and the repository's own settings again, in interleaved rounds."""
    own = own_settings(config)
    entrants = list(dict.fromkeys([own, *finalists]))
    rounds: dict[Settings, list[dict[str, float]]] = {each: [] for each in entrants}
    for index in tqdm(range(config.num_rounds), desc="final", disable=None):
        for settings in entrants[index % len(entrants) :] + entrants[: index % len(entrants)]:
            rounds[settings].append(figures_of(run_settings(config, settings, load, files)))
    return rounds


def median_figures(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Median of each figure over the rounds."""
    return {name: percentile([each[name] for each in rounds], 50) for name in rounds[0]}


def measure(config: TuneConfig, trials: Trials) -> tuple[Result, Settings]:
    """Search, run the final, name the winner. Raises VariantError, TargetError or WorkerError."""
    started_at = datetime.datetime.now(datetime.timezone.utc)
    files = load_files(None, num_images=16)
    model = {"file_sha256": sha256_of(model_file(config.repository, config.file))}
    environment = capture_environment(model=model)
    with Worker() as load:
        rounds = final(config, search(config, trials, load, files), load, files)
    own = own_settings(config)
    winner = max(rounds, key=lambda each: rank(config, median_figures(rounds[each])))
    points = [
        Point(settings={"phase": "search", "settings": name}, values=dict(figures))
        for name, figures in trials.known.items()
    ]
    points += final_points(rounds, own, winner)
    bars = [against_own(config, rounds[winner], rounds[own])]
    return make_result(
        "tune", config, points, bars=bars, environment=environment, started_at=started_at
    ), winner


def final_points(
    rounds: dict[Settings, list[dict[str, float]]], own: Settings, winner: Settings
) -> list[Point]:
    """Give one point an entrant of the final."""
    return [
        Point(
            settings={"phase": "final", "settings": str(each), "own": each == own, "winner": each == winner},
            samples={name: [figures[name] for figures in measured] for name in measured[0]},
            values=dict(median_figures(measured)),
        )
        for each, measured in rounds.items()
    ]


def against_own(config: TuneConfig, winner: list[dict[str, float]], own: list[dict[str, float]]) -> Bar:
    """Judge whether the winner is at least as good as what the repository has, by the final's rounds."""
    if config.goal == "throughput":
        found = ratio([each["images_per_s"] for each in winner], [each["images_per_s"] for each in own])
        name = "winner ÷ the repository's own settings, images/s"
    else:
        found = ratio([each["p50_ms"] for each in own], [each["p50_ms"] for each in winner])
        name = "the repository's own settings ÷ winner, p50"
    low, high = found.interval.low, found.interval.high
    return Bar(name=name, measured=found.value, low=low, high=high, limit=1.0, sense="at_least")


def main(config: TuneConfig) -> int:
    """Tune, print, write; with --write the winner goes into the repository through export."""
    stamp_source: dict[str, Any] = {
        "callers": config.num_callers, "slice_s": config.slice_s, "goal": config.goal, "file": config.file
    }  # fmt: skip
    try:
        digest = sha256_of(model_file(config.repository, config.file))
        trials = Trials.open(
            RESULTS / f"tune-{digest[:12]}-{config.goal}.json", json.dumps([digest, stamp_source])
        )
        result, winner = measure(config, trials)
    except (VariantError, WorkerError) as error:
        fail(error)
    except (KeyboardInterrupt, Interrupted):
        fail("interrupted; what was measured is kept, run again to go on")
    print(tune_page.text(result))
    print_bars(result.bars)
    stem = config.out or RESULTS / file_stem(result)
    data = write_result(result, stem.parent, name=f"{stem.name}.json")
    print(f"\n{data}\n{tune_page.page(result).write(stem.parent / f'{stem.name}.html')}")
    if config.write:
        try:
            print(tune_page.write_winner(config.repository, winner))
        except (VariantError, ExportError) as error:
            fail(error)
    return 0


if __name__ == "__main__":
    end_cleanly_on_sigterm()
    raise SystemExit(main(tyro.cli(TuneConfig)))
