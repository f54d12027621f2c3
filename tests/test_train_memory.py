"""Freed memory is kept: the kernel need not clear the same pages again for every large tensor."""

from __future__ import annotations

import subprocess
import sys

import pytest

LARGE_TENSORS = """
import ctypes, resource, torch
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: with huge pages there are few faults in any case
from train.memory import keep_freed_memory
kept = {asked} and keep_freed_memory()
def fill():
    torch.ones(64 * 2**20 // 4)
for _ in range(10):
    fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    fill()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(asked: bool) -> tuple[str, int]:
    """Whether malloc was told, and page faults of twenty large tensors after ten others."""
    done = subprocess.run(
        [sys.executable, "-c", LARGE_TENSORS.format(asked=asked)], capture_output=True, text=True, check=True
    )
    kept, count = done.stdout.split()
    return kept, int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_large_tensors_come_from_kept_memory() -> None:
    """Nearly no page is cleared for a tensor that a freed one made room for; without it, most are."""
    kept, few = faults(asked=True)
    if kept != "True":
        pytest.skip("this C library has no mallopt")
    _, many = faults(asked=False)
    pages = 20 * 64 * 2**20 // 4096
    assert few < pages / 100 < pages / 10 < many, "without it most pages are cleared anew"
