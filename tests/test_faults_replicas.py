"""One of two or three real servers is killed, stopped, drained, restarted, cut off or slowed under load: nothing is lost, wrong or failed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fault_kinds import FAULTS, started
from benchmarks.fault_load import Known, Load
from benchmarks.fault_replicas import Namespace, Replica, ReplicaError
from moderation_client import ModerationClient
from tests.serving import eventually
from tests.small_model import SIZE, expected_scores, small_policy

RATE_PER_S = 100.0
NUM_BEFORE, NUM_DURING, NUM_AFTER = 30, 60, 60


def known_images(num_images: int = 64) -> Known:
    """Noise around a level of its own for each colour: every image has scores that no other has."""
    rng = np.random.default_rng(0)
    levels = rng.integers(40, 216, (num_images, 1, 1, 3))
    noise = rng.integers(-40, 40, (num_images, SIZE, SIZE, 3))
    pixels = (levels + noise).astype(np.uint8)
    return Known(pixels=pixels, scores=expected_scores(pixels), policy=small_policy())


@pytest.fixture(scope="module")
def replicas(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Replica]]:
    """Three servers: a plain one, one behind a relay, and where that is allowed one in a network namespace."""
    folder = tmp_path_factory.mktemp("replicas")
    namespace: Namespace | None = None
    if os.getuid() == 0:
        with contextlib.suppress(ReplicaError):
            namespace = Namespace()
    found = {
        "nothing": Replica(repository, folder),
        "relay": Replica(repository, folder, relayed=True),
        "namespace": Replica(repository, folder, namespace=namespace),
    }
    with started(list(found.values())):
        yield found


CASES = [(name, 2) for name in sorted(FAULTS) if name != "restart"] + [
    (name, 3) for name in ("kill", "stop", "partition")
]


@pytest.mark.parametrize(("name", "num_replicas"), CASES)
def test_fault_costs_no_image(replicas: dict[str, Replica], name: str, num_replicas: int) -> None:
    """Every image is answered with its own scores and decision within the default deadline, and the replica is used again."""
    fault = FAULTS[name]
    victim = replicas[fault.needs]
    if fault.needs == "namespace" and victim.namespace is None:
        pytest.skip("needs root, `ip`, and a kernel with network namespaces")
    others = [each for each in replicas.values() if each is not victim][: num_replicas - 1]
    urls = [each.url for each in (victim, *others)]
    with ModerationClient(urls) as client:
        with Load(client, known_images(), num_callers=16, rate_per_s=RATE_PER_S) as load:
            load.wait(num_calls=NUM_BEFORE)
            fault.begin(victim)
            load.wait(seconds=1.0, num_calls=NUM_DURING)
            fault.end(victim)
            load.wait(num_calls=NUM_AFTER)
        assert load.outcomes() == {"ok": load.num_asked}
    with ModerationClient(victim.url) as client:
        eventually(lambda: _answers(client), timeout_s=90, what="an answer of the replica that was hurt")


def test_rolling_restart_costs_no_image(replicas: dict[str, Replica]) -> None:
    """Both servers are ended and started anew, one after the other, under load."""
    both = [replicas["nothing"], replicas["relay"]]
    with ModerationClient([each.url for each in both]) as client:
        with Load(client, known_images(), num_callers=16, rate_per_s=RATE_PER_S) as load:
            for replica in both:
                load.wait(num_calls=NUM_BEFORE)
                FAULTS["restart"].begin(replica)
            load.wait(num_calls=NUM_AFTER)
        assert load.outcomes() == {"ok": load.num_asked}


def _answers(client: ModerationClient) -> bool:
    (verdict,) = client.moderate([known_images().pixels[0]], on_error="verdict")
    return verdict.error is None


def test_wrong_answers_would_be_seen(replicas: dict[str, Replica]) -> None:
    """The check itself works: other known scores are reported as wrong answers, a dead address as failed calls."""
    known = known_images()
    shifted = Known(pixels=known.pixels, scores=known.scores[::-1], policy=known.policy)
    with ModerationClient(replicas["nothing"].url) as client, Load(client, shifted, num_callers=1) as load:
        load.wait(num_calls=4)
    assert set(load.outcomes()) == {"wrong"}
    with ModerationClient("127.0.0.1:9", timeout_s=0.2) as client, Load(client, known, num_callers=1) as load:
        load.wait(num_calls=1)
    assert set(load.outcomes()) == {"server_unavailable"}
