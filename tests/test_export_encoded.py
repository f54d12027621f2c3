"""The folder of the model that takes encoded files: there when it can decide, gone when it cannot, and a platform's settings stay."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from export import operations
from export.config_pbtxt import read_config, to_text
from export.errors import ProbeError
from export.publish import publish
from export.serving import Serving
from moderation_client.policy import Policy, Threshold
from tests.conftest import StartServer
from tests.serving import judge, png
from tests.small_export import LABELS, quick_config, small_source

ENCODED = "moderation_encoded"


def house_policy(*, review: float, labels: tuple[str, ...] = LABELS) -> Policy:
    """Make a policy of the platform's own."""
    return Policy(labels=labels, thresholds=dict.fromkeys(labels, Threshold(review=review)), name="house")


def set_by_hand(repository: Path, policy: Policy) -> None:
    """Write what the documentation tells a platform to write."""
    folder = repository / ENCODED
    config = read_config(folder / "config.pbtxt")
    for key, value in {
        "policy_file": "rules/policy.json",
        "on_error": "block",
        "limit.max_bytes": "5000",
    }.items():
        config.parameters[key].string_value = value
    (folder / "config.pbtxt").write_text(to_text(config))
    (folder / "rules").mkdir()
    (folder / "rules" / "policy.json").write_text(policy.to_json())


def test_folder_is_there_only_with_a_policy_that_it_can_decide_by(tmp_path: Path) -> None:
    """Without one it would keep a server that loads everything from starting; `--no-encoded` removes it as well."""
    repository, source = tmp_path / "r", small_source(tmp_path / "s")
    folder = repository / ENCODED
    publish(source, quick_config(repository, carry_policy=False))
    assert not folder.exists()
    publish(source, quick_config(repository))
    assert folder.is_dir()
    publish(dataclasses.replace(source, policy=None), quick_config(repository))
    assert not folder.exists()
    operations.rollback(repository)
    assert folder.is_dir(), "version 2 has a policy"
    publish(source, quick_config(repository, encoded=False))
    assert not folder.exists()


def test_folder_that_calls_another_model_is_left_alone(tmp_path: Path) -> None:
    """A second model of the repository is published without it."""
    repository, source = tmp_path / "r", small_source(tmp_path / "s")
    publish(source, quick_config(repository))
    other = dataclasses.replace(source, spec=dataclasses.replace(source.spec, name="other"))
    publish(other, quick_config(repository, encoded=False))
    config = read_config(repository / ENCODED / "config.pbtxt")
    assert config.parameters["model"].string_value == "moderation"


def test_what_a_platform_set_by_hand_outlives_every_change(tmp_path: Path) -> None:
    """A stricter policy, what a broken picture becomes, limits: none of them goes back to the default by itself."""
    repository, source = tmp_path / "r", small_source(tmp_path / "s")
    publish(source, quick_config(repository))
    policy = house_policy(review=0.01)
    set_by_hand(repository, policy)
    publish(source, quick_config(repository, carry_policy=False))
    operations.configure(repository, Serving(max_queue_size=17))
    operations.rollback(repository)
    config = read_config(repository / ENCODED / "config.pbtxt")
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 17
    assert {key: each.string_value for key, each in config.parameters.items()} == {
        "model": "moderation",
        "policy_file": "rules/policy.json",
        "on_error": "block",
        "limit.max_bytes": "5000",
    }
    assert Policy.load(repository / ENCODED / "rules" / "policy.json") == policy


def test_policy_of_the_house_that_does_not_fit_the_new_labels_stops_the_publisher(tmp_path: Path) -> None:
    """The private server loads both models, so that what would not start is not published."""
    repository = tmp_path / "r"
    publish(small_source(tmp_path / "s"), quick_config(repository))
    set_by_hand(repository, house_policy(review=0.5))
    other = small_source(tmp_path / "s", seed=5, labels=("circle", "square", "heart"))
    with pytest.raises(ProbeError, match="PolicyError"):
        publish(other, quick_config(repository, probe="server"))
    published = publish(small_source(tmp_path / "s", seed=5), quick_config(repository, probe="server"))
    assert published.version.number == 2


def test_server_loads_both_models_whatever_versions_are_kept(
    tmp_path: Path, start_triton: StartServer
) -> None:
    """A newer version without a policy is only kept; the one that is served has its own, and another number of labels."""
    repository = tmp_path / "r"
    labels = ("circle", "square", "heart")
    publish(small_source(tmp_path / "s"), quick_config(repository))
    publish(small_source(tmp_path / "s", seed=5, labels=labels), quick_config(repository, carry_policy=False))
    operations.rollback(repository)
    server = start_triton(repository)
    assert set(server.models) == {"moderation", ENCODED}
    scores, (verdict,) = judge(server.grpc_url, [png((255, 0, 0))])
    assert scores.shape == (1, 2)
    assert np.isfinite(scores).all()
    assert (verdict["error"], verdict["model_version"]) == (None, "1")
