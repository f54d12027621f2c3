"""Start a program so that it ends when we end, however we end: a killed `serve` leaves no tritonserver behind.

The kernel sends the signal when the *thread* that started the program ends, so all programs are started from one thread
that lives as long as this process.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import psutil

# Runs between fork and exec in a fresh, single-threaded interpreter: `preexec_fn` is not safe in a program with threads.
_SHIM = f"""
import ctypes, os, resource, sys
ctypes.CDLL(None).prctl(1, {int(signal.SIGKILL)})
if os.getppid() != int(sys.argv[1]):
    sys.exit("parent ended")
if sys.argv[2]:
    os.sched_setaffinity(0, map(int, sys.argv[2].split(",")))
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a connection is a descriptor
os.execv(sys.argv[3], sys.argv[3:])
"""


def start(
    command: Sequence[str], environment: Mapping[str, str], cpu_cores: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own (Ctrl-C reaches us, not it), output and errors in one pipe."""
    cores = ",".join(map(str, cpu_cores))
    arguments = [sys.executable, "-I", "-S", "-c", _SHIM, str(os.getpid()), cores, *command]
    return _starter().submit(_popen, arguments, environment).result()


def end(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """SIGTERM, then, when that does not help in time, SIGKILL; then its children, of no use without it."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    if timeout_s > 0:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s)
    process.kill()
    process.wait()
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def _popen(arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        arguments,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


@functools.cache
def _starter() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="starter")
