"""The spec travels as JSON and refuses what it cannot be used with."""

from __future__ import annotations

import dataclasses
import json
import pickle

import pytest

from moderation_client import ContractError, ImageSpec, ImageTooLargeError, ModelSpec

SPEC = ModelSpec(
    labels=("weapon", "substance"),
    image=ImageSpec(height=192, width=224, fit="letterbox", background=(1, 2, 3)),
    version=7,
    files={"model.onnx": "ab"},
    training_record="demo/1234",
    description="für Sticker",
)


def test_spec_survives_json() -> None:
    """What is written is what is read."""
    assert ModelSpec.from_json(SPEC.to_json()) == SPEC


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 2}, "schema_version 2"),
        ({"labels": []}, "at least one label"),
        ({"labels": ["a", "a"]}, "unique"),
        ({"task": "regression"}, "task 'regression'"),
        ({"image": {"fit": "stretch"}}, "fit 'stretch'"),
        ({"image": {"height": 0}}, "0x224"),
        ({"image": {"background": [0, 0, 256]}}, "256"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_spec_refuses_and_names_the_value(change: dict[str, object], words: str) -> None:
    """A spec that cannot be used says which value is wrong."""
    payload = {**json.loads(SPEC.to_json()), **change}
    with pytest.raises(ContractError, match=words):
        ModelSpec.from_json(json.dumps(payload))


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"'])
def test_spec_refuses_what_is_no_object(text: str) -> None:
    """Rubbish is a ContractError, not a ValueError."""
    with pytest.raises(ContractError):
        ModelSpec.from_json(text)


def test_label_hash_depends_on_order() -> None:
    """Two models with the same labels in another order are not interchangeable."""
    turned = dataclasses.replace(SPEC, labels=("substance", "weapon"))
    assert turned.labels_sha256 != SPEC.labels_sha256


def test_image_errors_survive_pickling() -> None:
    """A process pool can carry an image's error with its facts."""
    error = pickle.loads(pickle.dumps(ImageTooLargeError("big", index=3, source="a.png", value=9, limit=5)))
    assert (str(error), error.value, error.limit) == ("image 3 a.png: big", 9, 5)
