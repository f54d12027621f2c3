"""What a running server does for whoever has the token, over HTTP: load, unload and reload models, count answers, say more in its log."""

from __future__ import annotations

import json
from collections.abc import Mapping

from moderation_client.contract import MODEL_NAME
from serve.errors import AdminError, AdminSilentError
from serve.local_http import NoAnswerError, Reply, SilentError, ask

_GONE = {"UNAVAILABLE", ""}
"""States of versions that are not there."""


class Admin:
    """Calls of Triton's extensions for model repositories, statistics and logging."""

    def __init__(self, http_url: str, headers: Mapping[str, str], *, timeout_s: float = 60.0) -> None:
        """`headers` are `TritonServer.admin_headers`."""
        self._address = http_url
        self._headers = headers
        self._timeout_s = timeout_s

    def loaded(self) -> list[str]:
        """Names of the models of which any version is there, be it on its way in or out; those that others call last. Raises AdminError."""
        index = self._post("/v2/repository/index").json()
        names = {each["name"] for each in index if each.get("state", "") not in _GONE}
        return sorted(names, key=lambda name: (name == MODEL_NAME, name))

    def num_loaded(self, model: str) -> int:
        """Versions of a model that are there, be they on their way in or out. Raises AdminError."""
        return sum(state not in _GONE for state in self.states(model).values())

    def has_batcher(self, model: str) -> bool:
        """Whether a model batches dynamically; False when it cannot be asked, since it is on its way out."""
        try:
            config = self._ask("GET", f"/v2/models/{model}/config").json()
        except AdminSilentError:
            raise
        except AdminError:
            return False
        return "dynamic_batching" in config

    def states(self, model: str) -> dict[str, str]:
        """Version -> READY, LOADING, UNLOADING, UNAVAILABLE. Raises AdminError."""
        index = self._post("/v2/repository/index").json()
        return {each.get("version", ""): each.get("state", "") for each in index if each["name"] == model}

    def num_answered(self, model: str) -> int:
        """Requests that all versions of a model have answered since they were loaded. Raises AdminError."""
        statistics = self._ask("GET", f"/v2/models/{model}/stats").json()["model_stats"]
        return sum(int(each["inference_stats"]["success"]["count"]) for each in statistics)

    def load(self, model: str) -> None:
        """Load a model, or load it again when its files changed. Raises AdminError with the server's reason."""
        self._post(f"/v2/repository/models/{model}/load")

    def unload(self, model: str) -> None:
        """Take no new requests for a model; those that run are not waited for. Raises AdminError."""
        self._post(f"/v2/repository/models/{model}/unload")

    def verbosity(self) -> int:
        """Level of the server's log. Raises AdminError."""
        return int(self._ask("GET", "/v2/logging").json()["log_verbose_level"])

    def set_verbosity(self, level: int) -> None:
        """Set the level of the server's log. Raises AdminError."""
        self._ask("POST", "/v2/logging", {"log_verbose_level": level})

    def reload(self, model: str) -> None:
        """Replace every instance of a model by a new one. Raises AdminError with the server's reason.

        `load` alone does nothing when no file has changed. Unloading is not waited for: an instance that died with a
        request in its hands never finishes it.
        """
        self.unload(model)
        self.load(model)

    def _post(self, path: str) -> Reply:
        return self._ask("POST", path)

    def _ask(self, method: str, path: str, content: Mapping[str, int] | None = None) -> Reply:
        body = None if content is None else json.dumps(content).encode()
        try:
            reply = ask(
                self._address, method, path, timeout_s=self._timeout_s, body=body, headers=self._headers
            )
        except SilentError as error:
            raise AdminSilentError(f"{path}: no answer in time") from error
        except NoAnswerError as error:
            raise AdminError(f"{path}: {error}") from error
        if not reply.ok:
            raise AdminError(f"{path}: {reply.text or reply.status}")
        return reply
