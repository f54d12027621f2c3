"""How a published model is run: instances, threads, batching, queues. Kept in the repository's state, not in a version."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from export.errors import RepositoryError
from export.session import cpu_quota

MIN_INSTANCES = 2
"""Triton's batcher is not told of a request that comes while no instance is free, when the queue has limits or priorities (which ours
always has); it looks by itself every half second. A lone caller asks again while the only instance still hands out its answer. Seen on
24.10: of a model that takes 4 ms he got 5 to 28 answers a second from one instance, and 230 from two. With two, it hit 2 of
2,700 requests of two callers, and none of one, three, four or sixteen."""
_COUNTS = ("instances", "gpu_instances", "encoded_instances")


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Settings that go into config.pbtxt; 0 means chosen for this machine."""

    instances: int = 0
    """Model instances on the CPU, 2 or more; by default as many as CPUs / threads. Many with one thread each carry more load, 2 with several threads answer a lone caller faster (measured with `serve`'s own backend)."""
    threads: int = 0
    """Threads of each CPU instance; by default 1, or what `instances` leaves."""
    gpu_instances: int = 2
    """Model instances on each GPU, 2 or more for the same reason as on CPUs; not measured on a GPU."""
    max_batch_size: int = 32
    """Largest batch the server forms or takes."""
    max_queue_delay_us: int = 500
    """How long a request may wait for others to share its batch."""
    max_queue_size: int = 256
    """Interactive requests that may wait; what comes on top is refused at once."""
    queue_timeout_ms: int = 2000
    """How long an interactive request may wait before it is refused; a caller may shorten it."""
    backfill_queue_size: int = 4096
    """Requests of priority 2 (backfills) that may wait."""
    backfill_timeout_ms: int = 30000
    """How long a request of priority 2 may wait."""
    encoded_instances: int = 0
    """Instances of the model that takes encoded files, 2 or more; by default one for each CPU."""
    also_load: tuple[int, ...] = ()
    """Versions that stay loaded beside a newer active one, for callers who pin them: a canary, a shadow run. Others get the newest."""
    latency_buckets_ms: tuple[float, ...] = (2, 5, 10, 20, 35, 50, 75, 100, 200, 500, 2000)
    """Edges of the latency histogram, where the target release has one."""
    trt_cache: str = "/var/cache/moderation/tensorrt"
    """Folder inside the GPU container where TensorRT keeps engines and timings: put it on a volume that lasts."""

    def __post_init__(self) -> None:
        """Check the values. Raises RepositoryError that names the field."""
        for name in ("instances", "threads", "max_queue_delay_us", "encoded_instances"):
            if getattr(self, name) < 0:
                raise RepositoryError(f"{name} must be 0 or more, got {getattr(self, name)}")
        positive = ("gpu_instances", "max_batch_size", "max_queue_size", "queue_timeout_ms")
        for name in (*positive, "backfill_queue_size", "backfill_timeout_ms"):
            if getattr(self, name) < 1:
                raise RepositoryError(f"{name} must be 1 or more, got {getattr(self, name)}")

    def check_quota(self) -> None:
        """Refuse what a person asks of this machine and it does not have. Raises RepositoryError.

        What a repository brings from a larger machine is not asked: `resolved` fits it. Two instances may have a thread on every CPU
        each: a lone caller keeps only one of them busy.
        """
        for name in _COUNTS:
            if getattr(self, name) == 1:
                raise RepositoryError(
                    f"{name} must be {MIN_INSTANCES} or more: a single instance leaves requests waiting for up to half a "
                    "second on Triton 24.10"
                )
        few = self.instances <= MIN_INSTANCES and self.threads <= cpu_quota()
        if not few and self.instances * self.threads > cpu_quota():
            raise RepositoryError(
                f"{self.instances} instances x {self.threads} threads are more than the {cpu_quota()} CPUs that this "
                "machine gives: lower one, or leave one at 0 and have it chosen"
            )

    def resolved(self) -> Serving:
        """Give the same fitted to this machine's CPU quota: every 0 replaced, and as many instances x threads as CPUs, but two instances at least."""
        quota = cpu_quota()
        threads = min(self.threads or max(1, quota // self.instances if self.instances else 1), quota)
        most = max(MIN_INSTANCES, quota // threads)
        return dataclasses.replace(
            self,
            instances=max(MIN_INSTANCES, min(self.instances or most, most)),
            threads=threads,
            gpu_instances=max(MIN_INSTANCES, self.gpu_instances),
            encoded_instances=max(MIN_INSTANCES, self.encoded_instances or quota),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, payload: Mapping[str, Any]) -> Serving:
        """Read what `to_dict` gave; a single instance, which earlier releases took, is two. Raises RepositoryError for unknown fields."""
        try:
            tuples = {name: tuple(payload.get(name, ())) for name in ("also_load", "latency_buckets_ms")}
            single = {name: MIN_INSTANCES for name in _COUNTS if payload.get(name) == 1}
            return cls(**{**payload, **tuples, **single})
        except (KeyError, TypeError) as error:
            raise RepositoryError(f"serving settings are not usable: {error}") from error
