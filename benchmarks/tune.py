"""Find the server's settings by measurement: `python benchmarks/tune.py model_repository --slo-p99-ms 50` writes the winner through export.

Searches instances x threads x largest batch x queue delay with the real server and the project's load generator, each candidate in a short
closed loop; the best ones and the repository's own settings are then started together and measured again in interleaved rounds, because the fastest
of many short runs is partly the luckiest. What is written is within the SLO and at least as good as what was there. An interrupted search goes on where it was.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import tqdm

from benchmarks import tune_page
from benchmarks.corpus import load_files
from benchmarks.counters import TargetError
from benchmarks.ending import finish
from benchmarks.environment import capture_environment, cpu_quota, num_cores, sha256_of
from benchmarks.results import Bar, Point, Result, make_result
from benchmarks.serving import Running, Settings, VariantError, config_path, model_file, read_config, serving
from benchmarks.stats import median_interval, ratio
from benchmarks.subject import end_cleanly_on_sigterm, fail
from benchmarks.tune_trials import Figures, Goal, Load, Trials, median_figures
from benchmarks.worker import Interrupted, Worker, WorkerError
from export.errors import ExportError
from export.serving import MIN_INSTANCES
from moderation_client.contract import MODEL_NAME

RESULTS = Path("runs/benchmarks")
INTRA_OP = "intra_op_thread_count"


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
    write: bool = True
    """Write the winner into the repository through `export`, when it holds the SLO and is at least as good as what is there."""
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


Rounds = dict[Settings, list[Figures]]


def candidates(config: TuneConfig, num_cores: int) -> list[Settings]:
    """Every sensible combination: instances x threads fill the cores (two instances at least), delays only where batches form."""
    found = []
    shapes = [
        (max(MIN_INSTANCES, num_cores // threads), threads)
        for threads in range(1, num_cores + 1)
        if num_cores % threads == 0
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


def rank(config: TuneConfig, figures: Figures) -> tuple[bool, float]:
    """Larger is better: within the SLO first, then what the goal asks for."""
    return within_slo(config, figures), figures["images_per_s"] if config.goal == "throughput" else -figures[
        "p50_ms"
    ]


def within_slo(config: TuneConfig, figures: Figures) -> bool:
    """Whether the p99 is what was asked for, if anything was."""
    return config.slo_p99_ms is None or figures["p99_ms"] <= config.slo_p99_ms


def search(config: TuneConfig, trials: Trials, load: Load) -> list[Settings]:
    """Measure every candidate once, within the budget; the best ones. One that does not start is noted and left out."""
    deadline = time.monotonic() + config.budget_s
    everything = candidates(config, num_cores())
    for settings in tqdm(everything, desc="candidates", disable=None):
        if str(settings) in trials.known or time.monotonic() >= deadline:
            continue
        try:
            with serving(config.repository, settings) as running:
                trials.add(settings, load.measure(running))
        except (VariantError, TargetError) as error:
            trials.failed[str(settings)] = str(error)
    measured = [each for each in everything if str(each) in trials.known]
    measured.sort(key=lambda each: rank(config, trials.known[str(each)]), reverse=True)
    return measured[: config.num_finalists]


def final(config: TuneConfig, entrants: list[Settings], trials: Trials, load: Load) -> Rounds:
    """Measure finalists and the repository's own settings in interleaved rounds, all of them running: who is not asked does nothing."""
    running: dict[Settings, Running] = {}
    with contextlib.ExitStack() as servers:
        for settings in entrants:
            try:
                running[settings] = servers.enter_context(serving(config.repository, settings))
            except VariantError as error:
                trials.failed[str(settings)] = str(error)
        if not running:
            raise VariantError("no candidate started: " + "; ".join(trials.failed.values()))
        rounds: Rounds = {each: [] for each in running}
        order = list(running)
        for index in tqdm(range(config.num_rounds), desc="final", disable=None):
            for settings in order[index % len(order) :] + order[: index % len(order)]:
                rounds[settings].append(load.measure(running[settings]))
    return rounds


def measure(config: TuneConfig, trials: Trials) -> tuple[Result, Settings, str | None]:
    """Search, run the final; the result, the winner, and why it must not be written. Raises VariantError, TargetError or WorkerError."""
    started_at = datetime.datetime.now(datetime.timezone.utc)
    file = model_file(config.repository, config.file)
    environment = capture_environment(model={"file": file.name, "file_sha256": sha256_of(file)})
    own = own_settings(config)
    with Worker() as worker:
        files = load_files(None, num_images=16)
        load = Load(worker=worker, files=files, num_callers=config.num_callers, slice_s=config.slice_s)
        best = search(config, trials, load)
        rounds = final(config, list(dict.fromkeys([own, *best])), trials, load)
    winner = max(rounds, key=lambda each: rank(config, median_figures(rounds[each])))
    points = [
        Point(settings={"phase": "search", "settings": name}, values=dict(figures))
        for name, figures in trials.known.items()
    ]
    points += tune_page.final_points(rounds, own, winner)
    points += [
        Point(settings={"phase": "failed", "settings": name}, valid=False, notes=(reason,))
        for name, reason in trials.failed.items()
    ]
    bars = judge(config, rounds, winner, own)
    reason = why_not(config, rounds, winner, own)
    return (
        make_result("tune", config, points, bars=bars, environment=environment, started_at=started_at),
        winner,
        reason,
    )


def judge(config: TuneConfig, rounds: Rounds, winner: Settings, own: Settings) -> list[Bar]:
    """Judge the SLO, and whether the winner is at least as good as what the repository has, by the final's rounds."""
    bars = []
    if config.slo_p99_ms is not None:
        tail = median_interval([each["p99_ms"] for each in rounds[winner]])
        bars.append(
            Bar(
                name=f"p99 of the winner, {config.num_callers} callers, ms",
                measured=tail.value,
                low=tail.low,
                high=tail.high,
                limit=config.slo_p99_ms,
                sense="at_most",
            )
        )
    if own in rounds:
        bars.append(against_own(config, rounds[winner], rounds[own]))
    return bars


def against_own(config: TuneConfig, winner: list[Figures], own: list[Figures]) -> Bar:
    """Judge whether the winner is at least as good as what the repository has."""
    if config.goal == "throughput":
        found = ratio([each["images_per_s"] for each in winner], [each["images_per_s"] for each in own])
        name = "winner ÷ the repository's own settings, images/s"
    else:
        found = ratio([each["p50_ms"] for each in own], [each["p50_ms"] for each in winner])
        name = "the repository's own settings ÷ winner, p50"
    return Bar(
        name=name,
        measured=found.value,
        low=found.interval.low,
        high=found.interval.high,
        limit=1.0,
        sense="at_least",
        ratio=True,
        goal=config.slo_p99_ms is not None and not within_slo(config, median_figures(own)),
    )


def why_not(config: TuneConfig, rounds: Rounds, winner: Settings, own: Settings) -> str | None:
    """Why the winner must not be written; None when it may. Own settings that miss the SLO are not what must be matched."""
    if config.file not in (None, model_file(config.repository).name):
        return f"the repository does not serve {config.file}"
    missed = next((bar for bar in judge(config, rounds, winner, own) if not bar.met and not bar.goal), None)
    if missed is not None:
        return f"missed: {missed.name}"
    return "the repository's own settings are the best" if winner == own else None


def stamp_of(config: TuneConfig) -> str:
    """What measurements are of. Raises VariantError."""
    read_config(config.repository)
    return json.dumps(
        {
            "file": sha256_of(model_file(config.repository, config.file)),
            "configuration": sha256_of(config_path(config.repository / MODEL_NAME)),
            "cores": cpu_quota(),
            "load": [config.num_callers, config.slice_s, config.goal],
        },
        sort_keys=True,
    )


def main(config: TuneConfig) -> int:
    """Tune, print, write; the winner goes into the repository through export unless there is a reason against it."""
    try:
        digest = sha256_of(model_file(config.repository, config.file))[:12]
        trials = Trials.open(RESULTS / f"tune-{digest}-{config.goal}.json", stamp_of(config))
        result, winner, reason = measure(config, trials)
    except (VariantError, TargetError, WorkerError) as error:
        fail(error)
    except (KeyboardInterrupt, Interrupted):
        fail("interrupted; what was measured is kept, run again to go on")
    code = finish(result, config.out, text=tune_page.text, page=tune_page.page)
    trials.close()
    if reason is not None:
        print(f"nothing was written into {config.repository}: {reason}")
    elif config.write:
        try:
            print(tune_page.write_winner(config.repository, winner))
        except (VariantError, ExportError) as error:
            fail(error)
    return code


if __name__ == "__main__":
    end_cleanly_on_sigterm()
    raise SystemExit(main(tyro.cli(TuneConfig)))
