"""`decode="server"`: files go out as they are, verdicts come back, and a suspicious answer is never believed."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from moderation_client import ContractError, Decision, ModerationError, OverloadedError
from moderation_client._encoded import read_record
from moderation_client._jobs import Job
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
        "views": None,
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
    ],
)
def test_unusable_records_are_contract_errors(text: bytes) -> None:
    """An answer that is incomplete, of another schema, or allows against its own threshold is not believed."""
    job = Job(index=0, id="x", source=None, deadline=0.0, started=0.0)
    with pytest.raises(ContractError):
        read_record(text, job, Decision.REVIEW)


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
    """What PNG cannot hold is BadArrayError with the way out."""
    with kind.connect(server, decode="server") as client:
        (verdict,) = client.moderate(np.zeros((4, 4, 3), np.float64))
    assert verdict.error is not None
    assert verdict.error.code == "bad_array"
