"""Fixtures of the client's tests: each combination of client and transport, a fake server, and the one talking to the other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from moderation_client.testing import FakeServer
from tests.client_shells import KINDS, Kind, Shell


@pytest.fixture(name="kind", params=KINDS, ids=lambda kind: kind.name)
def client_kind(request: pytest.FixtureRequest) -> Kind:
    """Each combination of client and transport."""
    chosen: Kind = request.param
    return chosen


@pytest.fixture(name="server")
def fake_server() -> Iterator[FakeServer]:
    """A fake server of this test's own."""
    with FakeServer() as running:
        yield running


@pytest.fixture(name="client")
def connected_client(kind: Kind, server: FakeServer) -> Iterator[Shell]:
    """A client of `server`."""
    with kind.connect(server) as connected:
        yield connected
