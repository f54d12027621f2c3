"""Names of servers: looked up again and again, outside every lock, and still the server's name to TLS and HTTP."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import Any

import pytest

from moderation_client import AsyncModerationClient, _names
from moderation_client._http import _arguments
from moderation_client._protocol import HealthRequest
from moderation_client._transports import Connection
from moderation_client._urls import Url
from moderation_client.testing import FakeServer
from tests.client_shells import Kind, plain, reds


class Resolver:
    """Answers look-ups with the addresses that a test wants, or not at all."""

    def __init__(self) -> None:
        self.addresses: list[str] | None = None
        self.asked_in: list[str] = []

    def __call__(self, host: str, port: int, **_: Any) -> list[Any]:
        """Look up."""
        self.asked_in.append(threading.current_thread().name)
        if self.addresses is None:
            raise socket.gaierror("scripted")
        return [(None, None, None, "", (address, port)) for address in self.addresses]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    """Stands in for the look-up; a failed one is repeated at once, others ten times a second."""
    fake = Resolver()
    monkeypatch.setattr(_names, "resolve", lambda url: _resolved(fake, url))
    monkeypatch.setattr(_names, "AGAIN_S", 0.0)
    monkeypatch.setattr(_names, "EVERY_S", 0.1)
    return fake


def _resolved(fake: Resolver, url: Url) -> tuple[Url, ...]:
    return tuple(
        Url(url.scheme, entry[4][0], url.port, url.path, url.host) for entry in fake(url.host, url.port)
    )


def test_names_are_looked_up_again(kind: Kind, server: FakeServer, resolver: Resolver) -> None:
    """A look-up that failed does not stick, and addresses that come and go are followed."""
    url = kind.url(server).replace("127.0.0.1", "localhost")
    shell = kind.shell(url, resolve_names=True)
    try:
        assert reds(shell.moderate(plain(9))) == [9]
        assert ["localhost" in each.url for each in shell.stats().replicas] == [True]
        for addresses in (["127.0.0.1"], ["127.0.0.1", "127.0.0.2"], ["127.0.0.1"]):
            resolver.addresses = addresses
            for _ in range(50):
                assert reds(shell.moderate(plain(9))) == [9]
                if (
                    sorted(each.url.split("//")[1].split(":")[0] for each in shell.stats().replicas)
                    == addresses
                ):
                    break
                time.sleep(0.02)
            else:
                raise AssertionError(f"{addresses} were not found: {shell.stats().replicas}")
    finally:
        shell.close()
    assert not any(name.startswith(("MainThread", "moderation-decode")) for name in resolver.asked_in)


def test_a_slow_look_up_does_not_hold_the_loop_up(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other tasks of the loop go on while a name is being looked up."""

    def slow(url: Url) -> tuple[Url, ...]:
        time.sleep(0.5)
        return (url,)

    monkeypatch.setattr(_names, "resolve", slow)

    async def both() -> float:
        async with AsyncModerationClient(server.url, resolve_names=True) as client:
            call = asyncio.ensure_future(client.moderate(plain()))
            longest = 0.0
            while not call.done():
                before = time.monotonic()
                await asyncio.sleep(0.01)
                longest = max(longest, time.monotonic() - before)
            await call
            return longest

    assert asyncio.run(both()) < 0.4


def test_https_by_address_keeps_the_name() -> None:
    """The certificate and the virtual host are the name's, not the address's."""
    url = Url("https", "10.0.0.7", 8443, "", "models.example.org")
    arguments = _arguments(url, Connection(), HealthRequest(model=""), 1.0)
    assert arguments["headers"]["host"] == "models.example.org:8443"
    assert arguments["extensions"] == {"sni_hostname": "models.example.org"}
