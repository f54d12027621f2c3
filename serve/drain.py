"""The end of a server's requests: new ones are refused, those that run are answered, and nobody waits for the models to be taken apart.

The server's own way of ending would first wait for every idle HTTP connection to be closed by its caller, up to its whole time,
and then drop the requests that run. Therefore the models are unloaded first. Triton lets go of one when its last request is
answered, and says so in its log, at verbosity 1; what its API tells, the model's state, changes only when every instance is gone,
for each of which the Python backend sleeps a second.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from serve.admin import Admin
from serve.errors import AdminError
from serve.log import LogReader

logger = logging.getLogger("serve")

_LET_GO = "Stopping dynamic-batcher thread for "
_POLL_S = 0.02


def finish_requests(
    http_url: str, headers: Mapping[str, str], reader: LogReader, *, verbosity: int, timeout_s: float
) -> None:
    """Unload every model, and wait up to `timeout_s` until its requests are answered; what does not work is logged.

    `verbosity` is the server's own, which it has again afterwards.
    """
    deadline = time.monotonic() + timeout_s
    try:
        admin = Admin(http_url, headers, timeout_s=timeout_s)
        with reader.listen(_LET_GO, quietly=verbosity == 0) as said:
            admin.set_verbosity(max(1, verbosity))
            for model in admin.loaded():
                if not _finish(admin, model, said, deadline):
                    logger.warning("model %s still had requests after %.0f s", model, timeout_s)
            admin.set_verbosity(verbosity)
    except AdminError as error:
        logger.warning("the models were not unloaded before the end: %s", error)


def _finish(admin: Admin, model: str, said: list[str], deadline: float) -> bool:
    """Whether no request of a model runs any more. One without dynamic batching is waited for until it is gone."""
    num_versions = list(admin.states(model).values()).count("READY")
    admin.begin_unload(model)
    while said.count(f"{_LET_GO}{model}...") < num_versions and admin.is_loaded(model):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True
