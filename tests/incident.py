"""Everything goes wrong once, on real servers: two replicas, a moderating process, and a Prometheus that watches them.

`python -m tests.incident docs/dashboard.png` draws what the dashboard showed. `run` calms down, causes each fault, waits until its alert fires, repairs all of it, and waits until no alert fires any more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
from tritonclient.utils import InferenceServerException

from benchmarks.dashboard import DASHBOARD, draw, read_panels
from moderation_client.contract import MODEL_NAME
from serve.admin import Admin
from serve.errors import AdminError
from serve.server import TritonServer
from tests.prometheus import Prometheus, shortened
from tests.serving import coloured, infer, judge, png
from tests.small_model import (
    add_version,
    small_config,
    write_config,
)
from tests.watched_site import USUAL, Site, free_port

CHANGED = {"black": 0.5, "red": 0.4, "broken": 0.1}
BURST = {"black": 0.95, "failing": 0.05, "burst": 1.0}
CALM_S, BASELINE_S, QUIET_S = 6.0, 14.0, 4.0
"""Time before the first fault, time before what is compared with "yesterday" may change, time without an alert at the end."""


@dataclasses.dataclass
class Story:
    """What was seen."""

    calm: set[str]
    """Alerts before the first fault."""
    fired: dict[str, float]
    """Alert -> seconds after the start."""
    cleared: bool
    """Whether none fired at the end."""
    prometheus: Prometheus
    metrics: dict[str, str]
    """Address -> what it showed while all was well."""
    started: float

    @property
    def back_s(self) -> float:
        """How far back it began."""
        return time.monotonic() - self.started + 5.0


ABOUT_PICTURES = ("ModerationUnjudged", "ModerationDecisionShift", "ModerationScoreDrift")
NUM_ATTEMPTS = 3
"""They need a few hundred pictures in seconds, which a machine that is busy with something else may not give at once."""
SEEN_BY_CLIENTS = '{error=~"OverloadedError|ServerFailedError"}'
"""Failures that Triton 24.10 does not count: a full queue, and errors that a Python-based model answers with."""


@contextlib.contextmanager
def callers(near: str, far: str) -> Iterator[None]:
    """Callers who send single files to both replicas, and six who send pixels to the far one; errors do not stop them."""
    ended = threading.Event()

    def send(ask: Callable[[], object]) -> None:
        while not ended.wait(0.05):
            with contextlib.suppress(InferenceServerException):
                ask()

    asks: list[Callable[[], object]] = [
        functools.partial(judge, url, [png((0, 0, 0))], timeout_s=5.0) for url in (near, far)
    ]
    asks += [functools.partial(infer, far, coloured((0, 0, 0)), timeout_s=2.0)] * 6
    threads = [threading.Thread(target=send, args=(ask,)) for ask in asks]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def wait_for(prometheus: Prometheus, *alerts: str, limit_s: float = 30.0) -> None:
    """Wait until each of these fires or has fired; what did not is for the test to say."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline and not set(alerts) <= set(prometheus.seen):
        prometheus.firing()
        time.sleep(0.25)


def wait_until(holds: Callable[[], bool], limit_s: float = 15.0) -> None:
    """Wait; what did not come about is for the test to say."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline and not holds():
        time.sleep(0.25)


def kill_model_process(server: TritonServer) -> None:
    """Kill the process behind the model; Triton goes on saying that it is ready."""
    for child in psutil.Process(server.pid).children():
        if f"/{MODEL_NAME}/" in " ".join(child.cmdline()):
            child.kill()


def publish_elsewhere(server: TritonServer) -> None:
    """Give one replica a version that the other has not."""
    add_version(server.repository, 2)
    write_config(server.repository, small_config(), versions=(1, 2))
    Admin(server.http_url, server.admin_headers).load(MODEL_NAME)


def withdraw(server: TritonServer) -> None:
    """Take the model away from a replica that goes on running."""
    with contextlib.suppress(AdminError):
        Admin(server.http_url, server.admin_headers).unload(MODEL_NAME)


def run(site: Site, prometheus: Prometheus) -> Story:
    """Tell the whole story; the caller starts and stops what takes part."""
    # What fired because the servers were still starting is not cleared before the rules are evaluated again.
    wait_until(
        lambda: len(prometheus.query("up == 1")) == 3 and not prometheus.query('ALERTS{alertstate="firing"}'),
        limit_s=30.0,
    )
    started = time.monotonic()
    near, far = site.servers
    site.moderate(USUAL)
    calm: set[str] = set()
    while time.monotonic() < started + CALM_S:
        calm |= prometheus.firing()
        time.sleep(0.25)
    addresses = [address for each in site.targets().values() for address in each]
    metrics = {each: httpx.get(f"http://{each}/metrics", trust_env=False).text for each in addresses}
    with callers(near.grpc_url, far.grpc_url):
        publish_elsewhere(far)
        wait_for(prometheus, "ModerationVersionSkew")
        withdraw(far)
        wait_for(prometheus, "ModerationModelMissing", "ModerationRejections", "ModerationQueueTime")
        Admin(far.http_url, far.admin_headers).load(MODEL_NAME)
        kill_model_process(far)
        wait_for(prometheus, "ModerationErrors")
    far.stop(timeout_s=0)
    wait_for(prometheus, "ModerationReplicaDown")
    time.sleep(max(0.0, started + BASELINE_S - time.monotonic()))
    for _ in range(NUM_ATTEMPTS):
        site.moderate(CHANGED)
        wait_for(prometheus, *ABOUT_PICTURES, limit_s=12.0)
        if set(ABOUT_PICTURES) <= set(prometheus.seen):
            break
        site.moderate(USUAL)
        time.sleep(BASELINE_S)
    site.moderate(BURST)
    wait_until(lambda: len(prometheus.query(f"moderation:client_error_ratio{SEEN_BY_CLIENTS} > 0.01")) == 2)
    near.stop(timeout_s=0)
    wait_for(prometheus, "ModerationNoReplica")
    near.start()
    site.moderate(USUAL)
    shutil.rmtree(far.repository / MODEL_NAME / "2")
    write_config(far.repository, small_config())
    far.start()
    cleared = becomes_quiet(prometheus)
    fired = {name: seen - started for name, seen in prometheus.seen.items()}
    return Story(calm, fired, cleared, prometheus, metrics, started)


def becomes_quiet(prometheus: Prometheus, limit_s: float = 40.0) -> bool:
    """Wait until nothing has fired for `QUIET_S`; whether that came about."""
    deadline = time.monotonic() + limit_s
    quiet_since = time.monotonic()
    while time.monotonic() < deadline:
        if prometheus.firing():
            quiet_since = time.monotonic()
        elif time.monotonic() - quiet_since >= QUIET_S:
            return True
        time.sleep(0.25)
    return False


def main(picture: Path) -> None:
    """Tell the story and draw the dashboard's panels as they were at its end."""
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder))
        try:
            site.start()
            with Prometheus(site.targets(), free_port()) as prometheus:
                story = run(site, prometheus)
                back_s = story.back_s
                draw(
                    read_panels(DASHBOARD, "weapon"),
                    lambda expression: prometheus.query_range(shortened(expression), back_s=back_s),
                    picture,
                )
        finally:
            site.stop()
    print(f"{len(story.fired)} alerts fired, {'all cleared' if story.cleared else 'some did not clear'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
