"""Which version of the inner model answers, and which spec and policy belong to it: labels never come from another version.

Triton does not say which version answered a call from inside the server, so the newest one that is ready is asked for by
number. Its spec and policy stand in the inner model's configuration, `../<model>/config.pbtxt` as the export published it:
it is read again when a version turns up that is not known yet. Parameters `spec.<version>` and `policy.<version>` of our own
configuration do instead where the repository is not a folder (object stores), and win where both are there. A
`policy_file` wins over every policy; changed content takes effect with the next batch that comes half a second later.
What cannot be read any more is logged, and what was read before stays in force.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from encoded_settings import Settings, VersionGoneError
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from moderation_client import ContractError, ModelSpec, Policy, PolicyError
from moderation_client.contract import policy_parameter, spec_parameter

_LOOK_AGAIN_S = 0.5
_SPEC = re.compile(re.escape(spec_parameter("")) + r"(\d+)")


@dataclass(frozen=True, kw_only=True)
class ServedVersion:
    """One version of the inner model."""

    number: int
    spec: ModelSpec
    policy: Policy

    @property
    def num_labels(self) -> int:
        """Number of scores."""
        return len(self.spec.labels)


class VersionBook:
    """Remembers the newest ready version for half a second."""

    def __init__(
        self, name: str, settings: Settings, *, is_ready: Callable[[int], bool], warn: Callable[[str], None]
    ) -> None:
        """`is_ready` asks the server, `warn` writes its log.

        Raises ContractError or PolicyError when the newest version that is served cannot be judged; of one that is only kept
        nobody asks.
        """
        self._name = name
        self._settings = settings
        self._is_ready = is_ready
        self._warn = warn
        self._known: dict[int, ServedVersion] = {}
        self._policy_file = _policy_path(settings)
        self._served: set[int] = (
            set()
        )  # those that the inner model's configuration loads, where it names them
        self._inner_batch_size = 0
        self._parameters = self._read()
        self._current: ServedVersion | None = None
        self._looked_at = -_LOOK_AGAIN_S
        numbers = self._numbers()
        if not numbers:
            raise ContractError(
                f"model {self._name!r}: neither its parameters nor {self._inner_config} hold a spec.<version>; "
                f"publish {settings.model!r} with the export program"
            )
        first = max(self._served & set(numbers), default=numbers[0])
        self._known[first] = self._version(first)

    @property
    def batch_size(self) -> int:
        """Most views in one request to the inner model: what our configuration says, unless that model takes fewer."""
        ours = int(self._settings.batch_size)
        return min(ours, self._inner_batch_size or ours)

    def current(self) -> ServedVersion:
        """Newest version that is ready. Raises VersionGoneError when there is none."""
        if self._current is None or time.monotonic() - self._looked_at >= _LOOK_AGAIN_S:
            self._current = self._look()
            self._looked_at = time.monotonic()
        return self._current

    def forget(self) -> None:
        """Look again at the next batch."""
        self._current = None

    def _look(self) -> ServedVersion:
        try:
            self._parameters = self._read()
        except ContractError as error:
            self._warn(f"{error}; what was read before stays in force")
        for number in self._numbers():
            if self._is_ready(number):
                return self._refreshed(number)
        raise VersionGoneError(
            f"model {self._settings.model!r} has no ready version with a spec; known: {self._numbers() or 'none'}"
        )

    def _refreshed(self, number: int) -> ServedVersion:
        """Spec and policy as they are now, or as they were when they cannot be read."""
        try:
            self._known[number] = self._version(number)
        except (ContractError, PolicyError) as error:
            if number not in self._known:
                raise VersionGoneError(f"version {number} is ready, but cannot be judged: {error}") from error
            self._warn(f"{error}; what was read before stays in force")
        return self._known[number]

    def _numbers(self) -> list[int]:
        """Versions with a spec, newest first."""
        found = filter(None, map(_SPEC.fullmatch, self._parameters))
        return sorted((int(each[1]) for each in found), reverse=True)

    def _version(self, number: int) -> ServedVersion:
        spec = ModelSpec.from_json(self._parameters[spec_parameter(number)])
        policy = self._policy(number)
        policy.check_labels(spec.labels)
        return ServedVersion(number=number, spec=spec, policy=policy)

    def _policy(self, number: int) -> Policy:
        if self._policy_file is not None:
            return Policy.load(self._policy_file)
        text = self._parameters.get(policy_parameter(number))
        if text is None:
            raise PolicyError(
                f"model {self._name!r}: version {number} of {self._settings.model!r} comes without a policy; "
                "name a file in the parameter policy_file"
            )
        return Policy.from_json(text)

    @property
    def _inner_config(self) -> Path:
        return Path(self._settings.folder).parent / str(self._settings.model) / "config.pbtxt"

    def _read(self) -> dict[str, str]:
        """Parameters of the inner model's configuration file with our own over them; what else matters of it is noted."""
        try:
            text = self._inner_config.read_text(encoding="utf-8")
        except FileNotFoundError:
            return dict(self._settings.parameters)
        try:
            # A field that only a newer server knows is none of our business.
            config = text_format.Parse(text, model_config_pb2.ModelConfig(), allow_unknown_field=True)
        except text_format.ParseError as error:
            raise ContractError(f"{self._inner_config}: {error}") from error
        self._served = set(config.version_policy.specific.versions)
        self._inner_batch_size = int(config.max_batch_size)
        inner = {key: each.string_value for key, each in config.parameters.items()}
        return {**inner, **self._settings.parameters}


def _policy_path(settings: Settings) -> Path | None:
    """The policy file inside the model's folder, if one is named. Raises PolicyError for one outside."""
    name = settings.parameters.get("policy_file")
    if name is None:
        return None
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise PolicyError(f"parameter policy_file {name!r} leads out of the model's folder")
    return Path(settings.folder, name)
