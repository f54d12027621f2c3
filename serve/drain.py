"""The end of a server's requests: new ones are refused, those that run are answered, and nobody waits for the models to be taken apart.

The server's own way of ending would first wait for every idle HTTP connection to be closed by its caller, up to its whole time,
and then drop the requests that run. Therefore the models are unloaded first. Triton lets go of a version when its last request is
answered, and the first thing to end then is its batcher, as the log says at verbosity 1. What the API tells, the version's state,
changes only when every instance is gone, for each of which the Python backend sleeps a second; it decides where there is no batcher,
or nothing is said. (A version that was loaded anew and still answers in its old form says the line twice: the first one counts.)
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Iterator, Mapping

from serve.admin import Admin
from serve.errors import AdminError
from serve.log import LogReader

logger = logging.getLogger("serve")

_LET_GO = re.compile(r'\.cc:\d+\] "Stopping dynamic-batcher thread for (.+?)\.\.\."')
"""Quotes in a caller's words are escaped by Triton; two threads' lines may stand on one."""
_POLL_S = 0.02
_LOGGING_TIMEOUT_S = 2.0


def finish_requests(
    http_url: str, headers: Mapping[str, str], reader: LogReader, *, timeout_s: float
) -> None:
    """Unload every model, and wait up to `timeout_s` until its requests are answered; what does not work is logged."""
    deadline = time.monotonic() + timeout_s
    admin = Admin(http_url, headers, timeout_s=timeout_s)
    talker = Admin(http_url, headers, timeout_s=min(timeout_s, _LOGGING_TIMEOUT_S))
    try:
        with _talking(talker, reader) as let_go:
            for model in admin.loaded():
                if not _finish(admin, model, let_go, deadline):
                    logger.warning("model %s still had requests after %.0f s", model, timeout_s)
    except AdminError as error:
        logger.warning("the models were not unloaded before the end: %s", error)


@contextlib.contextmanager
def _talking(admin: Admin, reader: LogReader) -> Iterator[list[str]]:
    """Let the server say when it lets go of a model, and collect the models' names, as often as it says them."""
    try:
        before = admin.verbosity()
        admin.set_verbosity(max(1, before))
    except (AdminError, ValueError, KeyError):  # refused, or told in another way
        yield []  # it says nothing, and states decide
        return
    with reader.listen(_LET_GO, quietly=before == 0) as let_go:
        try:
            yield let_go
        finally:
            with contextlib.suppress(AdminError):  # it is about to end
                admin.set_verbosity(before)
            time.sleep(_POLL_S)  # the last of what it said is on its way


def _finish(admin: Admin, model: str, let_go: list[str], deadline: float) -> bool:
    """Whether no request of a model runs any more."""
    num_versions = admin.num_loaded(model) if admin.has_batcher(model) else None
    admin.unload(model)
    while admin.num_loaded(model) and (num_versions is None or let_go.count(model) < num_versions):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True
