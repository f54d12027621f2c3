"""What decoding alone costs in CPU time: for a worker, which can only run functions that it can import."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from moderation_client.contract import ImageSpec
from moderation_client.images import decode


def decode_cpu_s(stop: threading.Event, files: list[bytes], spec: ImageSpec, num_threads: int) -> float:
    """CPU seconds of decoding and resizing a file alone, on as many threads as there are cores, as `moderate()` does it.

    Two at once take more CPU than one after the other: they share memory, caches and Python's lock.
    """
    started = time.process_time()
    with ThreadPoolExecutor(num_threads) as pool:
        done = pool.map(lambda file: None if stop.is_set() else decode(file, spec), files)
        num_decoded = sum(each is not None for each in done)
    return (time.process_time() - started) / max(num_decoded, 1)
