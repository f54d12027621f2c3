"""Mixed traffic for a long time: files decoded here and files decoded by the server, one in twenty broken, every verdict looked at."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from moderation_client import Decision, ModerationClient, ModerationError

BAD_EVERY = 20


@dataclass(frozen=True, kw_only=True)
class TrafficJob:
    """What to send, and how fast."""

    url: str
    files: Sequence[bytes]
    rate_per_s: float
    """Calls a second, both kinds together."""
    num_images: int
    """In each call."""
    duration_s: float


def broken(file: bytes, number: int) -> bytes:
    """Nothing, a cut file, no image, or a header that promises billions of pixels."""
    bomb = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    return (b"", file[: len(file) // 2], b"no image at all", bomb)[number % 4]


def run_traffic(stop: threading.Event, job: TrafficJob) -> dict[str, int]:
    """Send until the time is over; to be called through a `Worker`. How many images ended how."""
    outcomes: Counter[str] = Counter()
    lock, numbers, began = threading.Lock(), itertools.count(), time.monotonic()

    def send(client: ModerationClient) -> None:
        while not stop.is_set():
            with lock:
                number = next(numbers)
            due_s = number / job.rate_per_s
            if due_s >= job.duration_s:
                return
            time.sleep(max(0.0, began + due_s - time.monotonic()))
            found = _call(client, job, number)
            with lock:
                outcomes.update(found)

    with (
        ModerationClient(job.url) as here,
        ModerationClient(job.url, decode="server") as there,
    ):
        threads = [threading.Thread(target=send, args=(client,)) for client in (here, there, here, there)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return dict(outcomes)


def _call(client: ModerationClient, job: TrafficJob, number: int) -> list[str]:
    """Ask about one batch; one word for each image."""
    images, bad = [], []
    for place in range(job.num_images):
        count = number * job.num_images + place
        file = job.files[count % len(job.files)]
        bad.append(count % BAD_EVERY == 0)
        images.append(broken(file, count // BAD_EVERY) if bad[-1] else file)
    try:
        verdicts = client.moderate(images)
    except ModerationError as error:
        return [f"failed: {type(error).__name__}"] * len(images)
    return [
        ("refused" if is_bad else "judged")
        if (verdict.error is not None) == is_bad and not (is_bad and verdict.decision is Decision.ALLOW)
        else f"wrong: {verdict.error.code if verdict.error else 'a broken image was judged'}"
        for verdict, is_bad in zip(verdicts, bad, strict=True)
    ]
