"""`decode="server"`: files go out as they are, verdicts come back, and a suspicious answer is never believed."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from moderation_client import ContractError, Decision, ModerationClient, ModerationError, OverloadedError
from moderation_client._encoded import read_file, read_record
from moderation_client._fake_encoded import judge_file
from moderation_client._jobs import Job
from moderation_client.images import ImageLimits
from moderation_client.testing import Fail, FakeServer
from tests.client_shells import Kind, plain


def png(pixels: Any) -> bytes:
    """The picture as a file."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_server_decides_about_files(kind: Kind, server: FakeServer) -> None:
    """Files, arrays and broken files, in order and under the caller's ids; the same answers as decoding here."""
    images = [png(plain(200)), plain(20), b"broken", png(plain(0, 255))]
    with kind.connect(server, decode="server") as client:
        verdicts = client.moderate(images, ids=["a", "b", "c", "d"])
    with kind.connect(server) as client:
        here = client.moderate(images, ids=["a", "b", "c", "d"])
    assert [verdict.id for verdict in verdicts] == ["a", "b", "c", "d"]
    assert [verdict.decision for verdict in verdicts] == [verdict.decision for verdict in here]
    assert [verdict.scores for verdict in verdicts] == [verdict.scores for verdict in here]
    assert verdicts[2].error is not None
    assert verdicts[2].error.code == "unsupported_format"
    assert {request.model for request in server.requests} == {"moderation_encoded", "moderation"}


def test_local_trouble_and_server_trouble(kind: Kind, server: FakeServer) -> None:
    """What cannot be read here never leaves; a full queue is the same error as for pixels."""
    with kind.connect(server, decode="server") as client:
        (verdict,) = client.moderate("/no/such/file")
        assert verdict.error is not None
        assert verdict.error.code == "unreadable"
        assert server.requests == []
        server.script(Fail("UNAVAILABLE", "Exceeds maximum queue size"))
        with pytest.raises(OverloadedError):
            client.moderate(png(plain()))


def test_policy_belongs_to_the_server(kind: Kind, server: FakeServer) -> None:
    """A policy that would have no effect is refused rather than ignored."""
    with kind.connect(server, decode="server") as client, pytest.raises(ValueError, match="server's policy"):
        client.moderate(png(plain()), policy="kids")


def record(**changes: Any) -> bytes:
    """A server's verdict that allows, with changes."""
    base = {
        "schema_version": 1,
        "id": 0,
        "decision": "allow",
        "label": "red",
        "score": 0.1,
        "threshold": 0.5,
        "scores": {"red": 0.1},
        "reason": None,
        "error": None,
        "model_name": "moderation",
        "model_version": "1",
        "policy_name": "p",
        "policy_version": "0",
        "image": None,
        "views": {"total": 1, "looked_at": 1},
    }
    return json.dumps(base | changes).encode()


BROKEN = {"code": "corrupt", "message": "no", "kind": "CorruptImageError"}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        record(schema_version=2),
        record(decision="fine"),
        record(score=0.7),
        record(score=float("nan")),
        record(scores={}),
        record(score=None),
        record(threshold=None),
        record(scores={"red": "high"}),
        record(error={"code": "x"}),
        record(image={"what": 1}),
        record(score="0.1"),
        record(threshold="0.5"),
        record(threshold=float("nan")),
        record(threshold=7.0),
        record(score=-0.1, scores={"red": -0.1}),
        record(scores={"red": 0.9}),
        record(scores={"red": 0.1, "green": 1.5}),
        record(label="blue"),
        record(label=["red"]),
        record(model_version=1),
        record(reason="half of it was not looked at"),
        record(views=None),
        record(views={"total": 1, "looked_at": 0}),
        record(views={"total": 1, "looked_at": "1"}),
        b"[" * 100_000,
    ],
)
def test_unusable_records_are_contract_errors(text: bytes) -> None:
    """An answer that is incomplete, of another schema, or allows against its own threshold is not believed."""
    job = Job(index=0, id="x", source=None, deadline=0.0, started=0.0)
    with pytest.raises(ContractError):
        read_record(text, job, Decision.REVIEW)


def test_a_usable_record_is_the_verdict() -> None:
    """And fields that a newer server adds do no harm."""
    job = Job(index=0, id="x", source=None, deadline=0.0, started=0.0)
    verdict = read_record(record(views={"total": 1, "looked_at": 1, "new": 1}), job, Decision.REVIEW)
    assert not isinstance(verdict, ModerationError)
    assert verdict.decision is Decision.ALLOW


def test_records_with_errors_never_allow() -> None:
    """An error in the server's verdict is at least the client's decision for errors; server-side trouble is an error."""
    job = Job(index=0, id="x", source=None, deadline=0.0, started=0.0)
    broken = read_record(record(error=BROKEN), job, Decision.BLOCK)
    assert not isinstance(broken, ModerationError)
    assert broken.decision is Decision.BLOCK
    overloaded = {"code": "overloaded", "message": "full", "kind": "OverloadedError"}
    assert isinstance(read_record(record(error=overloaded), job, Decision.REVIEW), OverloadedError)
    strange = {"code": "?", "message": "?", "kind": "KeyboardInterrupt"}
    assert isinstance(read_record(record(error=strange), job, Decision.REVIEW), ContractError)


def test_arrays_that_are_no_pictures_are_refused(kind: Kind, server: FakeServer) -> None:
    """The same ones that decoding here refuses."""
    with kind.connect(server, decode="server") as client:
        verdicts = client.moderate(
            [np.zeros((4, 4, 5), np.uint8), np.zeros((4, 4), bool), np.full((4, 4), 2.0)]
        )
    assert [verdict.error and verdict.error.code for verdict in verdicts] == ["bad_array"] * 3


def decoded_sources() -> list[Any]:
    """Pixels in every form that decoding here takes."""
    red = plain(255)
    turned = Image.fromarray(red)
    turned.info["exif"] = exif_turn(6)
    return [
        red,
        red[:, :, :1],
        red[:, :, 0].astype(np.uint16) * 257,
        red.astype(np.uint16) * 257,
        red / 255.0,
        turned,
        Image.fromarray(red).convert("CMYK"),
        Image.fromarray(red[:, :, 0].astype(np.float32)),
    ]


def exif_turn(orientation: int) -> bytes:
    """An EXIF block that turns the picture."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def test_decoded_sources_show_the_server_what_they_show_here(server: FakeServer) -> None:
    """Whatever `decode` takes, the server judges alike."""
    with ModerationClient(server.url, decode="server") as client:
        there = client.moderate(decoded_sources())
    with ModerationClient(server.url) as client:
        here = client.moderate(decoded_sources())
    assert [verdict.error for verdict in there] == [None] * 8
    assert [verdict.scores for verdict in there] == [verdict.scores for verdict in here]


def test_a_turned_picture_travels_upright() -> None:
    """The turn is in the pixels: the PNG carries no metadata."""
    image = Image.new("L", (20, 10))
    image.info["exif"] = exif_turn(6)
    content, left_out = read_file(image, ImageLimits())
    sent = Image.open(BytesIO(content))
    assert (sent.size, sent.info, left_out) == ((10, 20), {}, None)


def test_a_loaded_animation_is_not_whole_for_the_server(kind: Kind, server: FakeServer) -> None:
    """Only one of its frames goes out: a person must look."""
    file = BytesIO()
    Image.fromarray(plain()).save(
        file, "WEBP", save_all=True, append_images=[Image.fromarray(plain(9))], lossless=True
    )
    image = Image.open(file)
    image.load()
    file.close()
    with kind.connect(server, decode="server") as client:
        (verdict,) = client.moderate(image)
    assert verdict.decision is Decision.REVIEW
    assert verdict.reason == "1 of 2 frames were not looked at"


def test_a_malformed_record_is_its_own_images_alone(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The neighbours keep their verdicts."""
    made = iter([{"schema_version": 1}])

    def judge(*arguments: Any) -> Any:
        good = judge_file(*arguments)
        return next(made, good[0]), good[1]

    monkeypatch.setattr("moderation_client._fake_encoded.judge_file", judge)
    with ModerationClient(server.url, decode="server") as client:
        verdicts = client.moderate([png(plain()), png(plain(9)), png(plain(8))], on_error="verdict")
    assert sorted(verdict.error.kind for verdict in verdicts if verdict.error) == ["ContractError"]
    assert [verdict.decision for verdict in verdicts].count(Decision.ALLOW) == 2
