"""A process of a platform's: it moderates pictures all the time and shows its metrics. `python -m tests.moderating_process URL PORT`.

What it moderates comes on standard input, a line at a time: JSON, name of a picture -> share; with `burst`, many at once.
"""

from __future__ import annotations

import json
import random
import sys
import threading
from typing import Any

from prometheus_client import start_http_server

from moderation_client import ModerationClient
from tests.failing_model import failing_picture
from tests.serving import coloured

NUM_A_CALL, PAUSE_S = 8, 0.006
"""One request at a time: when several full batches of a model that needs no time come at once, Triton 24.10 now and then forgets one
for the half second after which its batcher looks again (`default_wait_microseconds`)."""
NUM_IN_BURST = 400
PICTURES = {"black": (0, 0, 0), "grey": (110, 110, 110), "pink": (140, 60, 60), "red": (250, 0, 0)}
"""The small model scores them 0.02, 0.37, 0.6 and 0.98 for `weapon`."""
BROKEN = b"not an image"


def main() -> None:
    """Moderate until standard input ends."""
    url, port = sys.argv[1], int(sys.argv[2])
    start_http_server(port, "127.0.0.1")
    mixture: dict[str, float] = {}
    ended = threading.Event()

    def listen() -> None:
        for line in sys.stdin:
            mixture.clear()
            mixture.update(json.loads(line))
        ended.set()

    threading.Thread(target=listen, daemon=True).start()
    images: dict[str, Any] = {name: coloured(colour)[0] for name, colour in PICTURES.items()}
    images |= {"broken": BROKEN, "failing": failing_picture()[0]}
    rng = random.Random(0)
    with ModerationClient(url, metrics=True, timeout_s=1.0, attempt_timeout_s=0.5, keepalive_s=5.0) as client:
        while not ended.wait(PAUSE_S):
            shares = dict(mixture)
            number = NUM_IN_BURST if shares.pop("burst", False) else NUM_A_CALL
            if shares:
                names = rng.choices(list(shares), list(shares.values()), k=number)
                client.moderate([images[name] for name in names], on_error="verdict")


if __name__ == "__main__":
    main()
