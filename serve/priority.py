"""A server that starts does not take the cores from those that answer: it runs at a lower priority until it is ready.

Two things make the priority. A thread's nice value counts among the threads of a control group; it is changed only where it may be raised
again afterwards: as root, with CAP_SYS_NICE, or with a limit on nice that allows it. Where the kernel groups processes by session
(autogroup; not those in a control group of their own, as containers are), nice values count inside a session only, and the session
itself has one, which anybody may change for his own. See sched(7).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

logger = logging.getLogger("serve")

STEP = 7
"""Added to nice: a fifth of the time that others get beside it (each step is a factor of 1.25)."""
LOWEST = 19
_LOOK_S = 0.2
"""Time between two looks; what a process starts inherits its priority."""
_MAX_ROUNDS = 20
_GROUP_AGAIN_S = 0.12
"""Who is not root may change a session's value ten times a second, all sessions together."""


@contextlib.contextmanager
def lowered(pids: Callable[[], Sequence[int]], *, but: Iterable[int] = ()) -> Iterator[None]:
    """Keep a session and its processes at low priority inside the block.

    `pids` names them, also those that come meanwhile, the session's first process first; the threads of `but` keep theirs.
    """
    spared, touched = frozenset(but), set[int]()
    base = os.getpriority(os.PRIO_PROCESS, 0)
    leader = group = 0
    end = threading.Event()

    def look() -> None:
        nonlocal leader, group
        while True:
            found = pids()
            if found and not leader and _is_apart(found[0]):
                leader, group = found[0], _group(found[0])
                _set_group(leader, min(group + STEP, LOWEST))
            for pid in set(found) - spared - touched if may_raise() else ():
                touched.add(pid)
                _set(pid, min(base + STEP, LOWEST))
            if end.wait(_LOOK_S):
                return

    watcher = threading.Thread(target=look, name="priority")
    watcher.start()
    try:
        yield
    finally:
        end.set()
        watcher.join()
        if leader:
            _set_group(leader, group)
        for pid in touched:
            _set(pid, base)


def lower_session() -> Callable[[], None]:
    """Keep our own session at low priority, where it is ours alone, until what this returns is called."""
    pid = os.getpid()
    group = _group(pid)
    if os.getsid(0) != pid or group < 0:  # not everybody may go back below 0
        return lambda: None
    _set_group(pid, min(group + STEP, LOWEST))
    return lambda: _set_group(pid, group)


@functools.cache
def may_raise() -> bool:
    """Whether a nice value may be lowered again; tried on a thread, which has one of its own."""
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


def _is_apart(pid: int) -> bool:
    """Whether a process lives in a session that is not ours."""
    try:
        return os.getsid(pid) != os.getsid(0)
    except OSError:
        return False


def _group(pid: int) -> int:
    """Nice value of a process's session; 0 where sessions have none."""
    try:
        return int(Path(f"/proc/{pid}/autogroup").read_text().split()[-1])  # "/autogroup-17 nice 0"
    except (OSError, IndexError, ValueError):
        return 0


def _set_group(pid: int, nice: int) -> None:
    """Set a session's nice value, where there is such a thing and the process still lives."""
    for _ in range(_MAX_ROUNDS):
        try:
            Path(f"/proc/{pid}/autogroup").write_text(str(nice))
            return
        except OSError as error:
            if error.errno != errno.EAGAIN:
                return
            time.sleep(_GROUP_AGAIN_S)
