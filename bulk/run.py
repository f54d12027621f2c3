"""A backfill from start to end: plan or resume, judge what is missing, check that every input has its row."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial

import pyarrow as pa

from bulk.config import BulkConfig
from bulk.errors import PlanError
from bulk.places import Place, place_of
from bulk.plan import Plan, check_same, done_shards, make_plan, part_name, read_plan, read_shards
from bulk.progress import Progress, summary
from bulk.reading import Shard
from bulk.rows import Counts, read_counts
from bulk.work import Task, Worker, connect

NUM_READERS = 32
"""Footers that are read at a time."""
Judge = Callable[[Task, list[Shard], Progress], None]
"""Judges shards somewhere and tells the progress."""


def run_bulk(config: BulkConfig) -> Counts:
    """Judge what is not judged yet; the counts of the whole result. Raises a subtype of ModerationError, or ValueError."""
    out = place_of(config.out)
    plan = open_plan(config, out)
    shards = read_shards(plan, out)
    done = done_shards(out)
    missing = [shard for shard in shards if shard.index not in done]
    say(f"{len(shards):,} shards, {len(done):,} of them done")
    task = Task(
        source=plan.source,
        out=out.url,
        service=config.service,
        model_version=plan.model_version,
        nice=config.nice,
    )
    before = sum(
        counts.num_images for counts in read_parts(out, [each for each in shards if each.index in done])
    )
    with Progress(plan, len(done), before, cost_per_hour=config.cost_per_hour) as progress:
        if missing:
            _judge_of(config)(task, missing, progress)
        elapsed_s = progress.elapsed_s
    counts = check_complete(plan, shards, out)
    out.sweep()
    now = counts.num_images - before if missing else 0
    print(summary(counts, num_now=now, elapsed_s=elapsed_s, cost_per_hour=config.cost_per_hour))
    return counts


def open_plan(config: BulkConfig, out: Place) -> Plan:
    """Read the plan, or make it. The version that judges is fixed here. Raises PlanError or SourceError."""
    plan = read_plan(out)
    if plan is not None:
        check_same(plan, config)
        return plan
    if done_shards(out):
        raise PlanError(f"{config.out} holds results but no plan: give another --out")
    version = config.model_version
    if version is None:
        with connect(config.service) as client:
            found = client.spec(timeout_s=config.service.timeout_s).version
            version = None if found is None else str(found)
    return make_plan(config, out, version)


def _judge_of(config: BulkConfig) -> Judge:
    if config.ray is None:
        return lambda task, shards, progress: judge_here(task, shards, progress, workers=config.workers)
    from bulk.on_ray import judge_on_ray  # noqa: PLC0415  Ray takes seconds to import

    return lambda task, shards, progress: judge_on_ray(task, shards, progress, config=config)


def judge_here(task: Task, shards: Iterable[Shard], progress: Progress, *, workers: int) -> None:
    """Judge shards in this process, several at once so that one's end overlaps another's beginning."""
    with Worker(task) as worker, ThreadPoolExecutor(workers, thread_name_prefix="bulk-shard") as pool:
        running: set[Future[Counts]] = set()
        try:
            for shard in shards:
                if len(running) >= workers:
                    running = _settle(running, progress)
                running.add(pool.submit(worker.run, shard, progress.images))
            while running:
                running = _settle(running, progress)
        except BaseException:
            worker.close()  # others end at their next image: they are done again
            raise


def _settle(running: set[Future[Counts]], progress: Progress) -> set[Future[Counts]]:
    """Wait for one shard at least; those still running. Raises what a shard raised."""
    done, rest = wait(running, return_when=FIRST_COMPLETED)
    for each in done:
        each.result()
        progress.shard_done()
    return rest


def read_parts(out: Place, shards: Sequence[Shard]) -> list[Counts]:
    """Counts of every part, many footers at a time: a store takes a while for each. Raises PlanError."""
    with ThreadPoolExecutor(NUM_READERS, thread_name_prefix="bulk-footer") as pool:
        return list(pool.map(partial(_read_part, out), shards))


def _read_part(out: Place, shard: Shard) -> Counts:
    place = out.child(part_name(shard.index))
    try:
        with place.open() as stream:
            counts = read_counts(stream)
    except FileNotFoundError as error:
        raise PlanError(f"{place.url} is missing: run the same command again") from error
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise PlanError(
            f"{place.url} is damaged ({error}): remove it and run the same command again"
        ) from error
    if shard.num_images is not None and counts.num_images != shard.num_images:
        raise PlanError(f"{place.url} has {counts.num_images} rows, its shard {shard.num_images}")
    return counts


def check_complete(plan: Plan, shards: Sequence[Shard], out: Place) -> Counts:
    """Add up every part's counts, each compared with its shard. Raises PlanError when a row is missing or too many."""
    total = sum(read_parts(out, shards), Counts())
    if plan.num_images is not None and total.num_images != plan.num_images:
        raise PlanError(f"{out.url} has {total.num_images} rows, the plan {plan.num_images}")
    if len(total.policy_versions) > 1:
        say(f"note: the policy changed on the way: {', '.join(sorted(total.policy_versions))}")
    return total


def say(message: str) -> None:
    """Tell what is not a result."""
    print(message, file=sys.stderr, flush=True)
