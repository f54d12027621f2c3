"""Prometheus: decisions and each label's scores by bin, beside what the training record says; without it nothing is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from moderation_client import MissingDependencyError, ModelSpec, ModerationClient
from moderation_client.contract import SCORE_EDGES, ImageSpec
from moderation_client.testing import Fail, FakeServer
from tests.client_shells import Kind, plain

COUNTS = (5, 0, 3, 2, 1, 1, 1, 1, 1, 1, 1, 3)
Samples = dict[str, float]


def samples(name: str, **labels: str) -> Samples:
    """Values of a series now, by the labels that are not given."""
    found: Samples = {}
    for family in text_string_to_metric_families(generate_latest(REGISTRY).decode()):
        for each in family.samples:
            if each.name == name and labels.items() <= each.labels.items():
                rest = ",".join(str(value) for key, value in each.labels.items() if key not in labels)
                found[rest] = found.get(rest, 0.0) + each.value
    return found


def added(before: Samples, after: Samples) -> Samples:
    """What was counted in between."""
    return {key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key, 0)}


def test_decisions_and_scores_are_counted(kind: Kind, server: FakeServer) -> None:
    """Two pictures and a failure: counts by decision, each label's score in its bin, requests with their time."""
    decided = samples("moderation_verdicts_total")
    counted = samples("moderation_scores_total", label="red", model_version="1")
    requests = samples("moderation_request_duration_seconds_count")
    with kind.connect(server, metrics=True) as client:
        client.moderate([plain(red=255), plain(red=3)])
        server.always(Fail("INVALID_ARGUMENT"))
        client.moderate(plain(), on_error="verdict")
    assert sorted(added(decided, samples("moderation_verdicts_total")).values()) == [1, 1, 1]
    assert {"allow", "block", "review"} <= {key.split(",")[0] for key in samples("moderation_verdicts_total")}
    scores = added(counted, samples("moderation_scores_total", label="red", model_version="1"))
    assert scores == {"1": 1, "0.02": 1}  # 255 / 255 and 3 / 255
    assert added(requests, samples("moderation_request_duration_seconds_count"))[""] >= 1


def test_training_record_stands_beside_the_scores() -> None:
    """The counts that travel with the model are shown under its version, and a bin without a score is there as 0."""
    spec = ModelSpec(
        labels=("red", "green", "blue"),
        image=ImageSpec(height=32, width=32),
        version=41,
        score_counts={"red": COUNTS},
    )
    assert ModelSpec.from_json(spec.to_json()) == spec
    with ModerationClient("localhost:1", spec=spec, metrics=True):
        shown = samples("moderation_reference_scores", model_version="41", label="red")
    assert shown == {f"{edge:g}": float(count) for edge, count in zip(SCORE_EDGES, COUNTS, strict=True)}
    assert set(samples("moderation_scores_total", model_version="41", label="red").values()) == {0.0}


def test_nothing_is_loaded_unless_asked_for() -> None:
    """A client without `metrics` does not load prometheus_client."""
    code = (
        "import sys\nfrom moderation_client import ModerationClient\nModerationClient('localhost:1').close()\n"
        "print('prometheus_client' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "False"


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra the error has the pip line."""
    from moderation_client import _prometheus

    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.setattr(_prometheus, "process_meters", _prometheus.process_meters.__wrapped__)
    with pytest.raises(MissingDependencyError, match=r"moderation-client\[prometheus\]"):
        ModerationClient("localhost:1", metrics=True)
