"""What the backend reads from its own configuration, and what the inner model's error messages mean."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moderation_client import (
    ContractError,
    DeadlineExceededError,
    Decision,
    ModelNotReadyError,
    OverloadedError,
    ServerFailedError,
    ServiceError,
)
from moderation_client.contract import MODEL_NAME
from moderation_client.images import ImageLimits

_LIMIT = "limit."


class VersionGoneError(Exception):
    """No version that we know is ready, or the one that was asked is not there any more."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The configuration, understood."""

    model: str
    """Name of the inner model."""
    batch_size: int
    """Most views in one request to it."""
    on_error: Decision
    """Decision for a picture that could not be judged; never ALLOW."""
    limits: ImageLimits
    """What one picture may cost."""
    parameters: dict[str, str]
    """Everything in `parameters`."""
    folder: Path
    """The model's folder in the repository."""

    @classmethod
    def read(cls, config: dict[str, Any], folder: str) -> Settings:
        """Understand Triton's JSON of the configuration. Raises ContractError that names the field."""
        parameters = {key: each.get("string_value", "") for key, each in config.get("parameters", {}).items()}
        batch_size = int(config.get("max_batch_size", 0))
        if batch_size < 1:
            raise ContractError(f"max_batch_size must be at least 1, got {batch_size}")
        on_error = parameters.get("on_error", "review")
        if on_error not in {"review", "block"}:
            raise ContractError(f"parameter on_error must be review or block, got {on_error!r}")
        return cls(
            model=parameters.get("model", MODEL_NAME),
            batch_size=batch_size,
            on_error=Decision.parse(on_error),
            limits=_limits(parameters),
            parameters=parameters,
            folder=Path(folder),
        )

    def meaning(self, message: str) -> ServiceError:
        """Turn the inner model's error message into the client's error for it.

        Raises VersionGoneError when the version that was asked is not there any more.
        """
        said = message.lower()
        if "exceeds maximum queue size" in said or "timeout expired" in said:
            return OverloadedError(f"model {self.model!r}: {message}")
        if "deadline" in said:
            return DeadlineExceededError(f"model {self.model!r}: {message}")
        if any(
            piece in said
            for piece in ("is not at ready state", "unknown model", "no available versions", "not found")
        ):
            raise VersionGoneError(f"model {self.model!r}: {message}")
        if "is not ready" in said or "stopping" in said or "exiting" in said:
            return ModelNotReadyError(f"model {self.model!r}: {message}")
        return ServerFailedError(f"model {self.model!r}: {message}")


def _limits(parameters: dict[str, str]) -> ImageLimits:
    """`limit.max_bytes: "1000000"` and the like over the defaults. Raises ContractError."""
    known = {each.name: each for each in dataclasses.fields(ImageLimits) if each.name != "formats"}
    given: dict[str, Any] = {}
    for key, text in parameters.items():
        if not key.startswith(_LIMIT):
            continue
        name = key.removeprefix(_LIMIT)
        if name not in known:
            raise ContractError(f"parameter {key} is not a limit; there are {', '.join(known)}")
        try:
            given[name] = float(text) if name == "max_side_ratio" else int(text)
        except ValueError as error:
            raise ContractError(f"parameter {key} must be a number, got {text!r}") from error
    return ImageLimits(**given)
