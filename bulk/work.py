"""One shard from reading to commit: every image once, in order, by one version, however often the service fails meanwhile.

The client raises for trouble that is not an image's own; the shard then goes on at that image after a pause, until the patience is
over. What is committed is therefore always a judgement, or the image's own error.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from bulk.config import ServiceConfig
from bulk.errors import SourceError, TroubleError
from bulk.places import place_of
from bulk.plan import FOLDER, part_name
from bulk.reading import Input, Shard, read_shard
from bulk.rows import Counts, count, row_of, to_parquet
from moderation_client import (
    AuthenticationError,
    Decision,
    InvalidImageError,
    ModerationClient,
    ServiceError,
    Verdict,
    VerdictError,
)

MAX_PAUSE_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a worker must know, on whichever machine it runs."""

    source: str
    out: str
    service: ServiceConfig
    model_version: str | None
    nice: int = 0


def connect(service: ServiceConfig) -> ModerationClient:
    """Make a client for a backfill. Raises ValueError or a subtype of ModerationError."""
    token = service.token_file
    return ModerationClient(
        service.url,
        priority=service.priority,
        max_batch=service.max_batch,
        max_in_flight=service.max_in_flight,
        decode_threads=service.decode_threads,
        timeout_s=service.timeout_s,
        attempt_timeout_s=service.timeout_s,
        retry_overload=True,  # a backfill has time: a full queue means that others come first
        policy=service.policy,
        token=None if token is None else lambda: token.read_text(encoding="utf-8").strip(),
        ca_file=None if service.ca_file is None else str(service.ca_file),
        cert_file=None if service.cert_file is None else str(service.cert_file),
        key_file=None if service.key_file is None else str(service.key_file),
    )


class Worker:
    """Judges shards; any number of threads may share it."""

    def __init__(self, task: Task) -> None:
        """Nothing is connected until the first shard."""
        self._task = task
        self._source, self._out = place_of(task.source), place_of(task.out)
        self._client = connect(task.service)
        self._stopped = threading.Event()

    def __enter__(self) -> Worker:
        """Enter the block that closes the client."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """End pauses and connections."""
        self._stopped.set()
        self._client.close()

    def run(self, shard: Shard, on_image: Callable[[], object] = lambda: None) -> Counts:
        """Judge a shard and commit its rows. Raises TroubleError, SourceError, ContractError or PolicyError."""
        rows: list[dict[str, Any]] = []
        progress_at, num_pauses = time.monotonic(), 0
        while True:
            before = len(rows)
            try:
                for verdict in self._verdicts(shard, skip=before):
                    rows.append(row_of(verdict, shard.index, len(rows)))
                    on_image()
                self._out.write(part_name(shard.index), to_parquet(rows))
                return count(rows)
            except (ServiceError, OSError) as error:
                if len(rows) > before:
                    progress_at, num_pauses = time.monotonic(), 0
                self._check_patience(error, progress_at)
                self._stopped.wait(min(MAX_PAUSE_S, 0.5 * 2**num_pauses))
                num_pauses += 1

    def _verdicts(self, shard: Shard, skip: int) -> Iterator[Verdict]:
        """Judge from image `skip` on, in order; refused ones find their place among those that the client judges."""
        refused: dict[int, Verdict] = {}
        taken = skip

        def sources() -> Iterator[tuple[str, Any]]:
            nonlocal taken
            for each in read_shard(shard, self._source, self._out.child(FOLDER), skip=skip):
                number, taken = taken, taken + 1
                if isinstance(each.source, InvalidImageError):
                    refused[number] = _refused(each)
                else:
                    yield each.id, each.source

        number = skip
        for verdict in self._client.moderate_stream(sources(), model_version=self._task.model_version):
            while number in refused:
                yield refused.pop(number)
                number += 1
            yield verdict
            number += 1
        while number in refused:
            yield refused.pop(number)
            number += 1

    def _check_patience(self, error: Exception, progress_at: float) -> None:
        patience_s = self._task.service.patience_s
        if isinstance(error, AuthenticationError) or self._stopped.is_set():
            raise error
        if time.monotonic() - progress_at > patience_s:
            kind = SourceError if isinstance(error, OSError) else TroubleError
            raise kind(
                f"no progress for {patience_s:g} s: {error}. What is done is kept: run the same command again to go on"
            ) from error


def _refused(each: Input) -> Verdict:
    return Verdict(
        id=each.id,
        decision=Decision.REVIEW,
        reason="the image could not be judged",
        error=VerdictError.of(each.source),
    )


def step_back(nice: int, *, apart: bool = False) -> None:
    """Let other processes of this machine go first, with every thread: Linux keeps a priority for each, and Ray has made some already.

    Where the kernel groups processes by session (autogroup, see sched(7)) these values count inside one only, and the session has one too.
    It is set when the session is ours alone (a service, say); `apart` begins a new one, which a program in a terminal must not: it would
    miss Ctrl-C.
    """
    threads = Path("/proc/self/task")
    for thread in [int(each.name) for each in threads.iterdir()] if threads.is_dir() else [0]:
        with suppress(OSError, AttributeError):  # a platform without it: nothing is lost but politeness
            os.setpriority(os.PRIO_PROCESS, thread, max(nice, os.getpriority(os.PRIO_PROCESS, thread)))
    group = Path("/proc/self/autogroup")
    if group.exists() and (apart or os.getsid(0) == os.getpid()):
        with suppress(OSError):
            if os.getsid(0) != os.getpid():
                _leave_session()
            group.write_text(str(nice))


def _leave_session() -> None:
    """Begin a session. The leader of a group of processes, as Ray's workers are, may not, so it joins a group made for this.

    The session's own group would do as well, but its leader can be out of sight: outside the container.
    """
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, process_group=0) as other:
        os.setpgid(0, other.pid)
        os.setsid()
