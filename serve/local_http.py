"""HTTP to the server on this machine.

With the standard library: httpx takes half as long to load as all that a start needs, and a replica that is restarted would be
back so much later. A connection serves one request: an idle one would hold up the server's exit.
"""

from __future__ import annotations

import http.client
import json
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class NoAnswerError(Exception):
    """The server cannot be reached, or said something that is not HTTP."""


class SilentError(NoAnswerError):
    """The server said nothing in time."""


@dataclass(frozen=True)
class Reply:
    """What the server said."""

    status: int
    body: bytes

    @property
    def ok(self) -> bool:
        """Whether it did what was asked."""
        return self.status == http.HTTPStatus.OK

    @property
    def text(self) -> str:
        """The body as text, without space around it."""
        return self.body.decode("utf-8", "replace").strip()

    def json(self) -> Any:
        """Read the body. Raises ValueError."""
        return json.loads(self.body)


def ask(
    address: str,
    method: str,
    path: str,
    *,
    timeout_s: float,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """Ask `address` ("HOST:PORT"); `timeout_s` bounds every wait for the next piece. Raises NoAnswerError, SilentError."""
    connection = http.client.HTTPConnection(address, timeout=timeout_s)
    try:
        connection.request(method, urllib.parse.quote(path), body=body, headers=headers or {})
        response = connection.getresponse()
        return Reply(response.status, response.read())
    except TimeoutError as error:
        raise SilentError(f"no answer within {timeout_s:g} s") from error
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswerError(str(error) or repr(error)) from error
    finally:
        connection.close()
