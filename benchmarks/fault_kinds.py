"""The faults: what is done to one replica in the middle of the load, and how it is undone."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import psutil

from benchmarks.fault_replicas import Replica

Needs = Literal["nothing", "namespace", "relay"]
DELAY_MS = 150.0
"""One way, for each piece: three of its four packets in a request pay it."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that can happen to a replica."""

    name: str
    text: str
    """For the page: what happens at the first mark, and what at the second."""
    begin: Callable[[Replica], None]
    end: Callable[[Replica], None]
    needs: Needs = "nothing"
    gone: bool = True
    """Whether the replica answers nothing while it lasts: the others then have all the work."""


def _nothing(_replica: Replica) -> None:
    """Undo nothing: the supervisor does."""


def _kill(replica: Replica) -> None:
    replica.signal(signal.SIGKILL)
    replica.process.wait()


def _start(replica: Replica) -> None:
    replica.stop()
    replica.start()


def _crash(replica: Replica) -> None:
    replica.server().kill()


def _pause(replica: Replica) -> None:
    replica.server().suspend()


def _resume(replica: Replica) -> None:
    with contextlib.suppress(psutil.NoSuchProcess, StopIteration):  # the watch may have replaced it
        replica.server().resume()


def _stub(replica: Replica) -> None:
    for each in replica.stubs():
        each.kill()


def _hang(replica: Replica) -> None:
    for each in replica.stubs():
        each.suspend()


def _drain(replica: Replica) -> None:
    replica.stop()


def _cut(replica: Replica) -> None:
    assert replica.namespace is not None
    replica.namespace.cut(True)


def _mend(replica: Replica) -> None:
    assert replica.namespace is not None
    replica.namespace.cut(False)


def _slow(replica: Replica) -> None:
    replica.delay(DELAY_MS)


def _fast(replica: Replica) -> None:
    replica.delay(0.0)


FAULTS = {
    fault.name: fault
    for fault in (
        Fault(name="kill", text="kill -9 of the whole replica; started again", begin=_kill, end=_start),
        Fault(
            name="crash",
            text="kill -9 of tritonserver alone; its supervisor starts it again",
            begin=_crash,
            end=_nothing,
            gone=False,
        ),
        Fault(name="stop", text="SIGSTOP of tritonserver; SIGCONT", begin=_pause, end=_resume),
        Fault(
            name="stub",
            text="kill -9 of the process that runs the model, inside tritonserver; its supervisor loads it again",
            begin=_stub,
            end=_nothing,
            gone=False,
        ),
        Fault(
            name="hang",
            text="SIGSTOP of the process that runs the model; its supervisor loads it again",
            begin=_hang,
            end=_nothing,
            gone=False,
        ),
        Fault(name="drain", text="SIGTERM, requests finish; started again", begin=_drain, end=_start),
        Fault(name="restart", text="SIGTERM and at once a new start", begin=_start, end=_nothing, gone=False),
        Fault(
            name="partition",
            text="packets to and from it are lost; mended",
            begin=_cut,
            end=_mend,
            needs="namespace",
        ),
        Fault(
            name="slow",
            text=f"each piece of data takes {DELAY_MS:g} ms longer each way; mended",
            begin=_slow,
            end=_fast,
            needs="relay",
            gone=False,
        ),
    )
}


CONTROL = Fault(
    name="none",
    text="nothing happens: what this machine does by itself",
    begin=_nothing,
    end=_nothing,
    gone=False,
)
"""Judged like a fault, and shown beside the faults without a bar."""
KINDS = {CONTROL.name: CONTROL} | FAULTS


@contextlib.contextmanager
def started(replicas: list[Replica]) -> Iterator[list[Replica]]:
    """Start replicas, and end them all in any case."""
    with contextlib.ExitStack() as running:
        for replica in replicas:
            running.callback(replica.close)
        for replica in replicas:
            replica.start()
        yield replicas
        for replica in replicas:
            replica.begin_stop()  # all at once
