"""The same shards on a Ray cluster: Ray Data hands their numbers to a pool of actors, each of which holds one client.

An actor that dies, or whose node does, is started anew by Ray Data and its shard done again; a shard is committed by one rename, so
that however often it is done, its rows are there once. Results do not travel through Ray: actors write them to --out themselves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

from bulk.config import BulkConfig
from bulk.errors import ClusterError
from bulk.places import place_of
from bulk.plan import part_name
from bulk.progress import Progress
from bulk.reading import Shard
from bulk.work import Task, Worker, step_back

MAX_BLOCKS = 10_000
"""Blocks that Ray's driver keeps account of without trouble."""


class ShardActor:
    """What runs on the cluster."""

    def __init__(self, task: Task) -> None:
        """Connect lazily, step back at once."""
        step_back(task.nice, apart=True)
        self._worker = Worker(task)
        self._out = place_of(task.out)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Judge the shards of a batch; how many images each had. One that another attempt has committed is not done again."""
        num_images = []
        for row in batch["shard"]:
            shard = Shard(**row)
            done = self._out.has(part_name(shard.index))
            num_images.append(0 if done else self._worker.run(shard).num_images)
        return {"num_images": num_images}


def judge_on_ray(task: Task, shards: list[Shard], progress: Progress, *, config: BulkConfig) -> None:
    """Judge shards on the cluster. Raises ClusterError, or what a shard raised."""
    with cluster(str(config.ray)) as ray:
        from ray import exceptions  # noqa: PLC0415  seconds to import

        try:
            for row in _dataset(ray, task, shards, config).iter_rows():
                progress.images(int(row["num_images"]))
                progress.shard_done()
        except exceptions.RayTaskError as error:
            raise ClusterError(f"a worker failed: {error.cause or error}") from error
        except exceptions.RayError as error:
            raise ClusterError(
                f"the cluster lost the run: {error}. Run the same command again to go on"
            ) from error


def _dataset(ray: Any, task: Task, shards: list[Shard], config: BulkConfig) -> Any:
    """One block a shard, so that one at a time goes to an actor; a billion images' shards share blocks, and skip what is done."""
    items = [{"shard": dataclasses.asdict(each)} for each in shards]
    return ray.data.from_items(items, override_num_blocks=min(len(items), MAX_BLOCKS)).map_batches(
        ShardActor,
        fn_constructor_kwargs={"task": task},
        batch_size=1,
        num_cpus=config.worker_cpus,
        compute=ray.data.ActorPoolStrategy(size=config.workers, max_tasks_in_flight_per_actor=2),
    )


@contextlib.contextmanager
def cluster(address: str) -> Iterator[Any]:
    """Connect to a cluster, quietly. Raises ClusterError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # announced to become Ray's default
    try:
        import ray  # noqa: PLC0415  seconds to import
        import ray.data  # noqa: PLC0415
    except ImportError as error:
        raise ClusterError(
            f"--ray needs Ray on this machine and every node: pip install 'ray[data]' ({error})"
        ) from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ClusterError(f"no Ray cluster at {address!r}: {error}") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        ray.shutdown()
        sys.stdout.flush()
