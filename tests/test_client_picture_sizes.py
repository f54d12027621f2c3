"""Roll-outs to another picture size: every image reaches a server that it was prepared for, and no call fails."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from moderation_client import ContractError, ImageSpec
from moderation_client.testing import FakeServer
from tests.client_shells import Kind, Shell, plain
from tests.test_client_versions import policy, spec


def test_version_of_another_picture_size_is_followed(client: Shell, server: FakeServer) -> None:
    """The server refuses what was prepared for the old size; the client asks what it wants, and no call fails."""

    def source() -> Iterator[Any]:
        for index in range(200):
            if index == 100:
                server.publish(spec(2, image=ImageSpec(height=48, width=40)), policy(0.5))
            yield plain(index)

    verdicts = list(client.stream(source()))
    assert [verdict.id for verdict in verdicts] == list(range(200))
    assert verdicts[-1].model_version == "2"
    assert client.moderate(plain(9))[0].model_version == "2"


def test_refused_size_of_a_local_spec_is_the_callers(kind: Kind, server: FakeServer) -> None:
    """Who says himself how pictures are prepared is told that the server takes others."""
    local = spec(1, image=ImageSpec(height=48, width=40))
    with (
        kind.connect(server, spec=local, policy=policy(0.5)) as client,
        pytest.raises(ContractError, match="unexpected shape"),
    ):
        client.moderate(plain())


@pytest.mark.parametrize(
    "image", [ImageSpec(height=48, width=40), ImageSpec(height=32, width=32, fit="center_crop")]
)
def test_roll_out_of_another_picture_size_costs_nothing(kind: Kind, image: ImageSpec) -> None:
    """While some replicas have the old version and some the new one, every image reaches one that it was prepared for."""
    with (
        FakeServer(spec=spec(2, image=image)) as new,
        FakeServer(spec=spec(1)) as old,
        kind.connect(new, old) as client,
    ):
        verdicts = list(client.stream(plain(index % 200) for index in range(400)))
        assert [verdict.id for verdict in verdicts] == list(range(400))
        assert {verdict.model_version for verdict in verdicts} == {"1", "2"}, "one of them got no work"
        for _ in range(20):
            (verdict,) = client.moderate(plain(9))
            assert verdict.error is None
        old.publish(spec(2, image=image), policy(0.5))
        assert {client.moderate(plain(9))[0].model_version for _ in range(20)} == {"2"}


def test_prepared_pixels_go_where_their_size_is_taken(kind: Kind) -> None:
    """Callers that prepare pixels themselves get scores as long as one replica takes their size, then the reason."""
    image = ImageSpec(height=48, width=40)
    with (
        FakeServer(spec=spec(2, image=image)) as new,
        FakeServer(spec=spec(1)) as old,
        kind.connect(new, old) as client,
    ):
        for size in ((32, 32), (48, 40)):
            pixels = np.zeros((3, *size, 3), np.uint8)
            for _ in range(10):
                assert client.score(pixels).shape == (3, 3)
        old.publish(spec(2, image=image), policy(0.5))
        with pytest.raises(ContractError, match="unexpected shape"):
            client.score(np.zeros((1, 32, 32, 3), np.uint8))
        for _ in range(4):
            assert client.score(np.zeros((1, 48, 40, 3), np.uint8)).shape == (1, 3)


def test_roll_out_of_another_picture_size_behind_one_address(
    client: Shell, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy shows old and new servers as one, and each request may meet either: images are prepared again until it fits."""
    rng = random.Random(0)
    versions = [spec(1), spec(2, image=ImageSpec(height=48, width=40))]

    def by_either(answer: Callable[..., Any]) -> Callable[..., Any]:
        def answered(*arguments: Any) -> Any:
            server.publish(rng.choice(versions), policy(0.5))
            return answer(*arguments)

        return answered

    for name in ("infer", "config"):
        monkeypatch.setattr(server.model, name, by_either(getattr(server.model, name)))
    verdicts = [client.moderate(plain(9))[0] for _ in range(60)]
    assert all(verdict.error is None for verdict in verdicts)
    assert {verdict.model_version for verdict in verdicts} == {"1", "2"}
