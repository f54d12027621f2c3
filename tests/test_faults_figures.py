"""How the client weighs a slow server, and how the programs that break things count what they saw."""

from __future__ import annotations

import time

import pytest

from benchmarks.fault_load import OK, Call, recovery_s
from benchmarks.faults import bars_of
from benchmarks.overload import OverloadConfig, _figures
from benchmarks.overload_load import UNANSWERED, Sent
from benchmarks.results import Point
from moderation_client._replicas import Replica, Replicas
from moderation_client._urls import parse_url


def _replicas() -> tuple[Replicas, Replica, Replica]:
    first, second = (Replica(parse_url(f"localhost:{port}"), None) for port in (8001, 8011))
    return Replicas([first, second]), first, second


def test_slow_replica_gets_one_request_at_a_time() -> None:
    """What is in flight counts by how slow a replica is; idle ones are asked in turn, so that a slow one is seen to recover."""
    replicas, quick, slow = _replicas()
    quick.latency_s, slow.latency_s = 0.01, 0.5
    chosen = [replicas.choose(set()) for _ in range(12)]
    assert chosen.count(slow) == 1
    for each in chosen:
        replicas.release(each)
    assert {replicas.choose(set()), replicas.choose(set())} == {quick, slow}


def test_replicas_of_nearly_the_same_speed_share_alike() -> None:
    """Batches differ, so a little slower is not slow; nor is one that has not answered yet."""
    for latencies in ((0.01, 0.015), (0.01, 0.0), (0.0, 0.0)):
        replicas, quick, other = _replicas()
        quick.latency_s, other.latency_s = latencies
        chosen = [replicas.choose(set()) for _ in range(12)]
        assert chosen.count(quick) == chosen.count(other) == 6


def test_latency_is_learnt_from_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three requests side by side that each take 0.3 s are a latency of 0.3 s, however fast their answers come."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    replicas, first, _ = _replicas()
    for _ in range(60):
        now[0] += 0.1
        if first.in_flight == 3:
            replicas.answered(first)
            replicas.release(first)
        first.count(1)
    assert first.latency_s == pytest.approx(0.3, abs=0.02)


def test_recovery_ends_with_the_last_bad_second() -> None:
    """A good second between two bad ones is no recovery; a fault that nobody notices took no time."""
    steady = [Call(0, when / 100, when / 100, OK) for when in range(2000)]
    assert recovery_s(steady, 5.0, 80.0, 15.0) == 0.0
    broken = [call for call in steady if not (5.0 <= call.done_s < 5.5 or 8.0 <= call.done_s < 9.0)]
    assert recovery_s(broken, 5.0, 80.0, 15.0) == pytest.approx(4.8, abs=0.11)
    assert recovery_s([], 5.0, 80.0, 15.0) == pytest.approx(10.0)


def test_dead_model_process_that_nobody_sees_is_a_miss() -> None:
    """It counts as unseen for as long as it lasted; a share that never comes back is a miss of its own."""
    values = {"num_lost": 0, "num_wrong": 0, "num_failed": 0, "recovery_s": 1.0, "share_after_2s": 0.7}
    marks = {"begun_s": 4.0, "undone_s": 14.0, "unready_s": None}
    point = Point(settings={"fault": "stub", "num_replicas": 2}, samples={}, values={**values, **marks})
    missed = {bar.name: bar.measured for bar in bars_of([point]) if not bar.met}
    assert missed == {
        "stub, 2 replicas: share of what survives, from 2 s on": 0.7,
        "stub, 2 replicas: s until unready": 10.0,
    }


def test_request_without_an_answer_is_lost_and_other_errors_failed() -> None:
    """A full queue and a wait that was too long are the refusals that an overload may end in."""
    config = OverloadConfig()
    errors = ("queue_full", "queue_expired", UNANSWERED, "unavailable", "")
    sent = [Sent(when / 10, when / 10 + 0.1, "") for when in range(260)]
    sent += [Sent(6.0 + index / 10, 6.2 + index / 10, error) for index, error in enumerate(errors)]
    values = _figures(sent, [1.0] * 30, config)
    assert (values["num_lost"], values["num_failed"], values["num_refused"]) == (1, 1, 4)
