"""A moderation server in your own process, for tests of your own code: no Triton, no model, no network.

    with FakeServer() as server, ModerationClient(server.url) as client:
        server.script(Fail("UNAVAILABLE", "Exceeds maximum queue size"), Delay(0.2))
        ...

It speaks gRPC and HTTP as Triton does. Without a script it answers every request with `scores(pixels)`; the default gives
label i the mean of colour channel i, so plain-coloured images have known scores. `assert_never_fails_open` (and its
`_async` twin) checks that your client, however it is set up and wrapped, never allows what was not judged.
"""

from __future__ import annotations

from moderation_client._fake_checks import assert_never_fails_open, assert_never_fails_open_async
from moderation_client._fake_model import Break, Delay, Fail, FakeRequest, Say, channel_means
from moderation_client._fake_server import FakeServer

__all__ = [
    "Break",
    "Delay",
    "Fail",
    "FakeRequest",
    "FakeServer",
    "Say",
    "assert_never_fails_open",
    "assert_never_fails_open_async",
    "channel_means",
]
