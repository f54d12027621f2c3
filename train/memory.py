"""Freed memory stays with the process: a network's large tensors come and go hundreds of times a second."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Have glibc's malloc neither map large blocks one by one nor give freed ones back; False where there is no mallopt.

    Otherwise the kernel clears every page of every intermediate tensor anew, a third of the time that a network takes on a CPU.
    The process keeps the largest size that it had (mallopt(3); PyTorch's tuning guide has other allocators do the same).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library: macOS, musl, Windows
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))
