"""What both clients do over both transports, against the fake server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from moderation_client import (
    BadArrayError,
    ClientClosedError,
    DeadlineExceededError,
    Decision,
    ModelNotReadyError,
)
from moderation_client.images import ImageLimits
from moderation_client.testing import Break, Delay, FakeServer, Say
from tests.client_shells import Kind, Shell, plain, reds


def png(pixels: Any) -> bytes:
    """The picture as a file."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_verdicts_come_in_order_with_everything_in_them(client: Shell) -> None:
    """A hundred images in many batches: each has its own verdict, complete enough for an appeal."""
    verdicts = client.moderate([plain(red) for red in range(100)])
    assert reds(verdicts) == list(range(100))
    assert [verdict.id for verdict in verdicts] == list(range(100))
    record = verdicts[7].to_dict()
    assert record["model_name"] == "moderation"
    assert record["model_version"] == "1"
    assert record["policy_version"]
    assert record["timing"]["attempts"] == 1
    assert record["views"] == {"total": 1, "looked_at": 1, "worst": 0}


def test_every_kind_of_source_is_taken(client: Shell, tmp_path: Path) -> None:
    """Path, text path, bytes, file object, PIL image and array of one picture get one answer."""
    path = tmp_path / "a.png"
    path.write_bytes(png(plain(240)))
    with path.open("rb") as file, Image.open(path) as picture:
        sources = [
            path,
            str(path),
            path.read_bytes(),
            bytearray(path.read_bytes()),
            file,
            picture,
            plain(240),
        ]
        assert reds(client.moderate(sources)) == [240] * 7
        for source in sources:
            assert reds(client.moderate(source)) == [240]
    assert client.moderate([plain(240)])[0].decision is Decision.BLOCK


def test_files_that_close_behind_the_generator_are_read(client: Shell, tmp_path: Path) -> None:
    """`with open(...) as f: yield f` works although images are read ahead."""
    path = tmp_path / "a.png"
    path.write_bytes(png(plain(60)))

    def files() -> Iterator[Any]:
        for _ in range(20):
            with path.open("rb") as file:
                yield file
            with Image.open(path) as picture:
                yield picture

    assert reds(client.stream(files())) == [60] * 40


def test_nothing_gives_nothing(client: Shell, server: FakeServer) -> None:
    """An empty input gives an empty list, and asks nobody."""
    assert client.moderate([]) == []
    assert list(client.stream(iter(()))) == []
    assert server.requests == []


def test_ids_come_back(client: Shell) -> None:
    """Ids beside the images or paired with them name the verdicts; a wrong number of them is refused."""
    assert [v.id for v in client.moderate([plain(), plain()], ids=["a", "b"])] == ["a", "b"]
    assert [v.id for v in client.moderate([("x", plain()), (5, plain())])] == ["x", 5]
    with pytest.raises(ValueError, match="only 1 entries"):
        client.moderate([plain(), plain()], ids=["a"])
    with pytest.raises(ValueError, match="more entries"):
        client.moderate([plain()], ids=["a", "b"])
    with pytest.raises(ValueError, match="not both"):
        client.moderate([("x", plain())], ids=["a"])


def test_broken_images_never_fail_their_neighbours(client: Shell) -> None:
    """Each broken image has an error and REVIEW, the others are judged."""
    verdicts = client.moderate(
        [plain(10), b"", b"no picture", "/no/such/file", plain(20), np.zeros((2, 2, 7))]
    )
    assert [v.error.code if v.error else None for v in verdicts] == [
        None,
        "empty",
        "unsupported_format",
        "unreadable",
        None,
        "bad_array",
    ]
    assert [v.decision for v in verdicts if v.error] == [Decision.REVIEW] * 4


def test_error_decision_can_be_block_but_never_allow(kind: Kind, server: FakeServer) -> None:
    """What could not be judged is blocked on request; allowing it is refused."""
    with kind.connect(server, error_decision=Decision.BLOCK) as client:
        assert client.moderate(b"")[0].decision is Decision.BLOCK
    with (
        pytest.raises(ValueError, match="never allowed"),
        kind.connect(server, error_decision=Decision.ALLOW),
    ):
        pass


def test_requests_hold_at_most_the_servers_batch(client: Shell, server: FakeServer) -> None:
    """No request is larger than max_batch_size, and batches are used."""
    client.moderate([plain(red) for red in range(60)])
    sizes = [request.shape[0] for request in server.requests]
    assert max(sizes) <= 8
    assert sum(sizes) == 60
    assert len(sizes) < 60


def test_requests_are_split_by_message_size(kind: Kind, server: FakeServer) -> None:
    """With room for two images in a message, no request holds more."""
    with kind.connect(server, max_message_bytes=2 * 32 * 32 * 3 + 100) as client:
        assert reds(client.moderate([plain(red) for red in range(20)])) == list(range(20))
        assert client.score(np.zeros((7, 32, 32, 3), np.uint8)).shape == (7, 3)
    assert max(request.shape[0] for request in server.requests) == 2


def test_in_flight_requests_are_bounded(kind: Kind) -> None:
    """The server never sees more than `max_in_flight` requests at once."""
    now, peak, lock = [0], [0], threading.Lock()

    def scores(pixels: Any) -> Any:
        with lock:
            now[0] += 1
            peak[0] = max(peak[0], now[0])
        time.sleep(0.01)
        with lock:
            now[0] -= 1
        return (pixels.mean(axis=(1, 2)) / 255).astype(np.float32)

    with FakeServer(scores=scores, max_batch=2) as server, kind.connect(server, max_in_flight=3) as client:
        client.moderate([plain(red) for red in range(60)])
    assert 1 < peak[0] <= 3


def test_views_are_all_judged_and_the_worst_decides(client: Shell, server: FakeServer) -> None:
    """White on transparent is red over a red world only: both backgrounds are looked at, one of them decides."""
    ghost = np.zeros((32, 32, 4), np.uint8)  # black, alpha 0: white over white, black over black
    (verdict,) = client.moderate(ghost)
    assert verdict.views is not None
    assert verdict.views.total == 2
    assert verdict.decision is Decision.BLOCK
    assert verdict.scores["red"] == 1.0
    assert sum(request.shape[0] for request in server.requests) == 2


def test_image_with_more_views_than_a_batch_is_judged_whole(client: Shell, server: FakeServer) -> None:
    """A strip of many tiles goes out in several requests; the one red tile decides."""
    strip = np.zeros((1200, 32, 3), np.uint8)
    strip[1100:1160] = (255, 0, 0)
    (verdict,) = client.moderate(strip)
    assert verdict.views is not None
    assert verdict.views.looked_at > server.model.max_batch
    assert verdict.label == "red"
    assert verdict.flagged
    assert verdict.views.worst is not None
    assert verdict.views.worst > 0


def test_incomplete_look_is_at_least_review(kind: Kind, server: FakeServer) -> None:
    """A strip with more tiles than may be looked at is REVIEW with the reason, though every tile is harmless."""
    with kind.connect(server, limits=ImageLimits(max_views=2)) as client:
        (verdict,) = client.moderate(np.zeros((1200, 32, 3), np.uint8))
    assert verdict.decision is Decision.REVIEW
    assert verdict.reason
    assert verdict.error is None


@pytest.mark.parametrize(
    "how",
    ["nan", "above one", "wrong shape", "missing output", "wrong type", "too few bytes", "wrong version"],
)
def test_wrong_answers_are_contract_errors(client: Shell, server: FakeServer, how: Any) -> None:
    """Whatever a broken server answers, it is an error that names what differs, never a verdict that allows."""
    server.always(Break(how))
    (verdict,) = client.moderate(plain(), on_error="verdict")
    assert verdict.error is not None
    assert verdict.error.kind == "ContractError"
    assert verdict.decision is Decision.REVIEW


def test_deadline_is_kept_and_carried_to_the_queue(client: Shell, server: FakeServer) -> None:
    """A slow server costs no more than the deadline, and was told how long the request may wait."""
    client.moderate(plain())
    server.always(Delay(10))
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError, match=r"0\.3 s"):
        client.moderate([plain(), plain()], timeout_s=0.3)
    assert time.monotonic() - started < 8
    assert 0 < server.requests[-1].parameters["timeout"] <= 300_000


def test_version_can_be_pinned(client: Shell, server: FakeServer) -> None:
    """`model_version=` reaches the server; a version that is not there is ModelNotReadyError."""
    (verdict,) = client.moderate(plain(), model_version=1)
    assert verdict.model_version == "1"
    assert server.requests[-1].version == "1"
    client.moderate(plain())
    with pytest.raises(ModelNotReadyError):
        client.score(np.zeros((1, 32, 32, 3), np.uint8), model_version=7, timeout_s=0.5)


def test_scores_of_prepared_pixels(client: Shell, server: FakeServer) -> None:
    """`score` gives float32 [N, labels] in order, splits to the batch, and refuses anything else."""
    pixels = np.stack([plain(red) for red in range(20)])
    scores = client.score(pixels)
    assert scores.shape == (20, 3)
    assert scores.dtype == np.float32
    assert np.allclose(scores[:, 0], np.arange(20) / 255)
    server.script(Say((0.1, 0.2, 0.3)))
    assert np.allclose(client.score(pixels[:1]), [[0.1, 0.2, 0.3]])
    for wrong in (pixels[0], pixels.astype(np.float32), pixels[:0]):
        with pytest.raises(BadArrayError, match="uint8"):
            client.score(wrong)


def test_spec_readiness_and_counts(client: Shell, server: FakeServer) -> None:
    """The model describes itself, readiness is asked for, and what was done is counted."""
    assert client.spec().labels == ("red", "green", "blue")
    assert client.is_ready()
    server.model.ready = False
    assert not client.is_ready(timeout_s=0.3)
    server.model.ready = True
    client.moderate([plain(), plain(255), b""])
    stats = client.stats()
    assert stats.images == 3
    assert dict(stats.decisions) == {"allow": 1, "block": 1, "review": 1}
    assert dict(stats.errors) == {"empty": 1}
    assert stats.requests == stats.attempts >= 1
    assert [replica.in_flight for replica in stats.replicas] == [0]


def test_closed_client_says_so(kind: Kind, server: FakeServer) -> None:
    """After close every call is ClientClosedError; closing twice is harmless."""
    with kind.connect(server) as client:
        client.moderate(plain())
        client.close_client()
        client.close_client()
        for call in (lambda: client.moderate(plain()), client.spec, lambda: list(client.stream([plain()]))):
            with pytest.raises(ClientClosedError):
                call()


def test_wrong_arguments_are_named(kind: Kind, server: FakeServer) -> None:
    """A parameter that makes no sense is refused at the door, by name."""
    for options, word in (
        ({"timeout_s": 0}, "timeout_s"),
        ({"max_in_flight": 0}, "max_in_flight"),
        ({"decode": "nowhere"}, "decode"),
    ):
        with pytest.raises(ValueError, match=word), kind.connect(server, **options):
            pass
    with kind.connect(server) as client:
        with pytest.raises(ValueError, match="on_error"):
            client.moderate(plain(), on_error="ignore")
        with pytest.raises(ValueError, match="timeout_s"):
            client.moderate(plain(), timeout_s=-1)
        with pytest.raises(TypeError, match="iterable"):
            client.moderate(5)
