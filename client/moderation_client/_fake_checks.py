"""The check that users should run: nothing that was not judged is ever allowed."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from moderation_client._errors import ModerationError
from moderation_client._fake_model import Break, Fail, Step
from moderation_client._fake_server import RUNNING, FakeServer
from moderation_client.policy import Decision

if TYPE_CHECKING:
    from moderation_client._async_client import AsyncModerationClient
    from moderation_client._client import ModerationClient
    from moderation_client.results import Verdict

BROKEN_IMAGES: tuple[tuple[str, Any], ...] = (
    ("no bytes", b""),
    ("not a picture", b"not a picture at all"),
    ("a JPEG that stops", b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01"),
    ("a PNG that stops", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"),
    ("a missing file", "/does/not/exist.jpg"),
)

BROKEN_ANSWERS: tuple[Step, ...] = (
    *(Break(how) for how in ("nan", "above one", "wrong shape", "missing output")),
    *(Break(how) for how in ("wrong type", "too few bytes", "wrong version")),
    Fail("INTERNAL", "scripted"),
    Fail("UNAVAILABLE", "Exceeds maximum queue size"),
    Fail("UNAUTHENTICATED", "scripted"),
    Fail("NOT_FOUND", "Request for unknown model"),
    Fail("INVALID_ARGUMENT", "scripted"),
)


def assert_never_fails_open(client: ModerationClient, *, timeout_s: float = 2.0) -> None:
    """Check that `client` never allows an image that was not judged.

    Anything with the `moderate` method of a ModerationClient will do, a wrapper of yours included. Broken images are always
    tried; if the client talks to a `FakeServer` of this process, so are broken answers and failures. Raises AssertionError that
    names the case.
    """
    with contextlib.closing(_cases(client)) as cases:
        for case, image in cases:
            try:
                raised = client.moderate([image], timeout_s=timeout_s)
            except ModerationError:
                raised = []
            _check([*raised, *client.moderate([image], timeout_s=timeout_s, on_error="verdict")], case)


async def assert_never_fails_open_async(client: AsyncModerationClient, *, timeout_s: float = 2.0) -> None:
    """Check an AsyncModerationClient, or a wrapper with its `moderate`, as `assert_never_fails_open` does."""
    with contextlib.closing(_cases(client)) as cases:
        for case, image in cases:
            try:
                raised = await client.moderate([image], timeout_s=timeout_s)
            except ModerationError:
                raised = []
            _check([*raised, *await client.moderate([image], timeout_s=timeout_s, on_error="verdict")], case)


def _cases(client: Any) -> Generator[tuple[str, Any], None, None]:
    """Each case by name with its image, while the server behind the client is as the case wants it."""
    import numpy as np  # noqa: PLC0415  keeps imports of the package quick

    yield from BROKEN_IMAGES
    server = _server_behind(client)
    for step in BROKEN_ANSWERS if server is not None else ():
        assert server is not None
        server.always(step)
        try:
            yield str(step), np.zeros((8, 8, 3), np.uint8)
        finally:
            server.always(None)


def _check(verdicts: list[Verdict], case: str) -> None:
    """An image that cannot be judged has an error and is not allowed; no verdict at all is none too many."""
    for verdict in verdicts:
        if verdict.decision is Decision.ALLOW or verdict.error is None:
            raise AssertionError(f"fails open: {case} was answered with {verdict}")


def _server_behind(client: Any) -> FakeServer | None:
    session = getattr(client, "_session", None)
    urls = session.settings.urls if session is not None else ()
    return next((RUNNING[url.address] for url in urls if url.address in RUNNING), None)
