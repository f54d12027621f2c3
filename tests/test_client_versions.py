"""Roll-outs and policies: the labels of the version that answered, and a policy that can change under way but never breaks."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moderation_client import (
    ContractError,
    Decision,
    ImageSpec,
    ModelSpec,
    ModerationClient,
    Policy,
    PolicyError,
    Threshold,
)
from moderation_client._encoded import read_encoded_config
from moderation_client._spec import read_config
from moderation_client.testing import FakeServer
from tests.client_shells import Kind, Shell, plain, reds

LABELS = ("red", "green", "blue")


Hide = Callable[[str], None]


@pytest.fixture
def hide(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> Hide:
    """Leave a parameter out of what the server says of its model."""

    def drop(parameter: str) -> None:
        original = server.model.config

        def config(model: str = "moderation") -> dict[str, Any]:
            made = original(model)
            made["parameters"].pop(parameter, None)
            return made

        monkeypatch.setattr(server.model, "config", config)

    return drop


def policy(review: float, labels: tuple[str, ...] = LABELS, name: str = "p") -> Policy:
    """The same threshold for every label."""
    return Policy(
        labels=labels, thresholds={label: Threshold(review=review, block=1.0) for label in labels}, name=name
    )


def spec(version: int, **changes: Any) -> ModelSpec:
    """The fake server's model as another version."""
    image = ImageSpec(height=32, width=32)
    return dataclasses.replace(ModelSpec(labels=LABELS, image=image, version=version), **changes)


def test_roll_out_and_roll_back_in_mid_stream_are_seen(client: Shell, server: FakeServer) -> None:
    """Each verdict names the version that answered, and has that version's labels and policy."""
    other = ("rot", "gruen", "blau")

    def source() -> Iterator[Any]:
        for index in range(300):
            if index == 100:
                server.publish(spec(2, labels=other), policy(0.01, other))
            if index == 200:
                server.publish(spec(1), policy(0.5))
            yield plain(index % 200 + 20)

    verdicts = list(client.stream(source()))
    assert [verdict.id for verdict in verdicts] == list(range(300))
    assert {verdict.model_version for verdict in verdicts} == {"1", "2"}
    for verdict in verdicts:
        assert tuple(verdict.scores) == (other if verdict.model_version == "2" else LABELS)
        assert verdict.flagged or verdict.model_version == "1"
    assert verdicts[0].model_version == verdicts[-1].model_version == "1"
    assert server.model.num_config_reads < 40


def test_version_that_wants_other_pictures_gets_them(client: Shell, server: FakeServer) -> None:
    """A new version with another fit makes the client prepare the same images again, not judge them wrongly."""
    half = np.zeros((32, 96, 3), np.uint8)
    half[:, 32:64] = 255  # a centre crop sees white only
    assert not client.moderate(half)[0].flagged
    server.publish(spec(2, image=ImageSpec(height=32, width=32, fit="center_crop")), policy(0.5))
    (verdict,) = client.moderate(half)
    assert verdict.model_version == "2"
    assert verdict.scores["red"] == 1.0


def test_unknown_version_is_never_guessed(client: Shell, server: FakeServer, hide: Hide) -> None:
    """A version whose spec the server does not give cannot be judged, though its labels look alike."""
    client.moderate(plain())
    hide("spec.2")
    server.publish(spec(2), policy(0.5))
    with pytest.raises(ContractError, match="version 2 answered"):
        client.moderate(plain())


def test_version_without_policy_asks_for_one(client: Shell, server: FakeServer) -> None:
    """An owner who keeps the thresholds to himself leaves the decision to the caller's policy."""
    server.publish(spec(2), None)
    with pytest.raises(PolicyError, match="policy="):
        client.moderate(plain())
    assert client.moderate(plain(), policy=policy(0.5))[0].model_version == "2"


def test_server_replaced_under_the_same_version_is_read_again(client: Shell, server: FakeServer) -> None:
    """After a lost connection the labels are asked for again: version 1 may be another model now."""
    client.moderate(plain())
    server.stop()
    client.moderate(plain(), timeout_s=0.2, on_error="verdict")
    server.publish(spec(1, labels=("a", "b", "c")), policy(0.5, ("a", "b", "c")))
    server.start()
    (verdict,) = client.moderate(plain(255), timeout_s=10)
    assert verdict.label == "a"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_batch_size": 0}, "max_batch_size 0"),
        ({"parameters": {}}, "no spec"),
        ({"input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}]}, "no input 'image'"),
        ({"input": [{"name": "image", "data_type": "TYPE_FP32", "dims": [32, 32, 3]}]}, "TYPE_FP32"),
        ({"input": [{"name": "image", "data_type": "TYPE_UINT8", "dims": [64, 64, 3]}]}, r"\[64, 64, 3\]"),
        ({"output": [{"name": "scores", "data_type": "TYPE_FP32", "dims": [9]}]}, r"\[9\]"),
        ({"parameters": {"spec.1": {"string_value": "{"}}}, "not JSON"),
    ],
)
def test_foreign_models_are_named(
    client: Shell, server: FakeServer, monkeypatch: pytest.MonkeyPatch, change: Any, words: str
) -> None:
    """A model that does not speak the contract is ContractError that says what differs."""
    config = server.model.config() | change
    monkeypatch.setattr(server.model, "config", lambda _model="": config)
    with pytest.raises(ContractError, match=words):
        client.moderate(plain())


def test_local_spec_replaces_the_servers(kind: Kind, server: FakeServer, tmp_path: Path) -> None:
    """With a spec file and a policy the configuration is never read; another version than the spec's is refused."""
    path = tmp_path / "spec.json"
    path.write_text(spec(1, labels=("x", "y", "z")).to_json())
    with kind.connect(server, spec=path, policy=policy(0.5, ("x", "y", "z"))) as client:
        assert client.moderate(plain(200))[0].label == "x"
    assert server.model.num_config_reads == 0
    server.publish(spec(2), policy(0.5))
    with (
        kind.connect(server, spec=path, policy=policy(0.5, ("x", "y", "z"))) as client,
        pytest.raises(ContractError, match="version 2 answered"),
    ):
        client.moderate(plain())


def test_policies_by_name_object_and_file(kind: Kind, server: FakeServer, tmp_path: Path) -> None:
    """Several per client, one chosen per call; a name that is not there is refused with those that are."""
    path = tmp_path / "kids.json"
    path.write_text(policy(0.1, name="kids").to_json())
    with kind.connect(server, policy={"default": policy(0.9), "kids": path}) as client:
        image = plain(120)
        assert client.moderate(image)[0].decision is Decision.ALLOW
        (strict,) = client.moderate(image, policy="kids")
        assert strict.decision is Decision.REVIEW
        assert strict.policy_name == "kids"
        assert client.moderate(image, policy=policy(0.2))[0].flagged
        with pytest.raises(PolicyError, match="kids"):
            client.moderate(image, policy="nobody")
        with pytest.raises(PolicyError, match="labels"):
            client.moderate(image, policy=policy(0.5, ("a", "b", "c")))


def test_changed_policy_takes_effect_and_a_bad_one_does_not(
    kind: Kind, server: FakeServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Within a second of writing the file; broken, unfitting or missing files are refused and logged."""
    path = tmp_path / "policy.json"
    path.write_text(policy(0.9).to_json())
    image = plain(120)
    with kind.connect(server, policy=path) as client, caplog.at_level(logging.INFO, "moderation_client"):
        assert not client.moderate(image)[0].flagged
        path.write_text(policy(0.1).to_json())
        time.sleep(0.6)
        assert client.moderate(image)[0].flagged
        for bad in ("{", policy(0.95, ("a", "b")).to_json(), None):
            if bad is None:
                path.unlink()
            else:
                path.write_text(bad)
            time.sleep(0.6)
            (verdict,) = client.moderate(image)
            assert verdict.flagged
            assert verdict.policy_version == policy(0.1).version
    assert "policy refused" in caplog.text


def test_unusable_policy_fails_where_it_is_given(server: FakeServer, tmp_path: Path) -> None:
    """A missing or broken file is PolicyError from the constructor, and a policy the server does not send is asked for."""
    with pytest.raises(PolicyError, match="nothing"):
        ModerationClient(server.url, policy=tmp_path / "nothing.json")
    server.publish(spec(1), None)
    with ModerationClient(server.url) as client, pytest.raises(PolicyError, match="policy="):
        client.moderate(plain())


def test_one_broken_version_does_not_break_its_neighbours(
    client: Shell, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spec that cannot be read is a problem of its own version only."""
    config = server.model.config()
    config["parameters"]["spec.9"] = {"string_value": "broken"}
    monkeypatch.setattr(server.model, "config", lambda _model="": config)
    assert reds(client.moderate([plain(3)])) == [3]


def test_replicas_of_different_versions_in_a_roll_out(kind: Kind) -> None:
    """The replica that answered is asked what its version is, and what the others said stays known."""
    with FakeServer(spec=spec(2)) as new, FakeServer(spec=spec(1)) as old, kind.connect(new, old) as client:
        verdicts = [client.moderate(plain(9))[0] for _ in range(12)]
        assert {verdict.model_version for verdict in verdicts} == {"1", "2"}
        assert new.model.num_config_reads + old.model.num_config_reads <= 3


@pytest.mark.parametrize("change", [{"parameters": None}, {"max_batch_size": "x"}, {"parameters": {"a": 1}}])
def test_a_malformed_configuration_is_a_contract_error(change: dict[str, Any]) -> None:
    """Whatever a server says of its model."""
    with pytest.raises(ContractError, match="configuration"):
        read_config({"name": "moderation", "max_batch_size": 8} | change)
    with pytest.raises(ContractError):
        read_encoded_config({"name": "moderation", "input": 1})
