"""Processes that start do not take the cores from those that answer: they run at a lower priority until they are ready.

Only where the priority may be raised again afterwards: as root, with CAP_SYS_NICE, or with a limit on nice that allows it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

logger = logging.getLogger("serve")

STEP = 5
"""Added to nice: a third of the time that a process of normal priority gets beside it (each step is a factor of 1.25)."""
_LOOK_S = 0.05
_MAX_ROUNDS = 20


@contextlib.contextmanager
def lowered(pids: Callable[[], Sequence[int]], *, but: Iterable[int] = ()) -> Iterator[None]:
    """Keep the processes that `pids` names, also those that come meanwhile, at low priority inside the block; `but` some."""
    if not may_raise():
        yield
        return
    spared, touched = frozenset(but), set[int]()
    base = os.getpriority(os.PRIO_PROCESS, 0)
    end = threading.Event()

    def look() -> None:
        while not end.wait(_LOOK_S):
            for pid in set(pids()) - spared - touched:
                touched.add(pid)
                _set(pid, base + STEP)

    watcher = threading.Thread(target=look, name="priority")
    watcher.start()
    try:
        yield
    finally:
        end.set()
        watcher.join()
        for pid in touched:
            _set(pid, base)


@functools.cache
def may_raise() -> bool:
    """Whether a priority that was lowered may be raised again; tried on a thread, which has a priority of its own."""
    allowed = []

    def attempt() -> None:
        base = os.getpriority(os.PRIO_PROCESS, 0)
        try:
            os.setpriority(os.PRIO_PROCESS, 0, base + 1)
            os.setpriority(os.PRIO_PROCESS, 0, base)
        except OSError:
            return
        allowed.append(True)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return bool(allowed)


def _set(pid: int, nice: int) -> None:
    """Set every thread of a process; again while threads come that inherited the old value."""
    for _ in range(_MAX_ROUNDS):
        if not _set_once(pid, nice):
            return


def _set_once(pid: int, nice: int) -> bool:
    """Whether any thread had another value. A thread or process that has ended needs none."""
    changed = False
    try:
        threads = [int(each.name) for each in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return False
    for thread in threads:
        try:
            if os.getpriority(os.PRIO_PROCESS, thread) != nice:
                os.setpriority(os.PRIO_PROCESS, thread, nice)
                changed = True
        except ProcessLookupError:
            continue
        except PermissionError as error:
            logger.warning("the priority of process %d stays as it is: %s", pid, error)
            return False
    return changed
