"""Start a program so that it ends when we end, however we end: a killed `serve` leaves no tritonserver behind.

The kernel sends the signal when the *thread* that started the program ends, so all programs are started from one thread
that lives as long as this process.
"""

from __future__ import annotations

import functools
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

# Runs between fork and exec in a fresh, single-threaded interpreter: `preexec_fn` is not safe in a program with threads.
_SHIM = f"""
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, {int(signal.SIGKILL)})
if os.getppid() != int(sys.argv[1]):
    sys.exit("parent ended")
os.execv(sys.argv[2], sys.argv[2:])
"""


def start(command: Sequence[str], environment: Mapping[str, str], parent_pid: int) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own (Ctrl-C reaches us, not it), output and errors in one pipe."""
    arguments = [sys.executable, "-I", "-S", "-c", _SHIM, str(parent_pid), *command]
    return _starter().submit(_popen, arguments, environment).result()


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
