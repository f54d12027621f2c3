"""Ask a moderation service for decisions: `ModerationClient(url).moderate(images)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moderation_client._client import ModerationClient
from moderation_client._errors import (
    AuthenticationError,
    BadArrayError,
    ClientClosedError,
    ContractError,
    CorruptImageError,
    DeadlineExceededError,
    EmptyImageError,
    ImageReadError,
    ImageTooLargeError,
    InvalidImageError,
    MissingDependencyError,
    ModelNotReadyError,
    ModerationError,
    OverloadedError,
    PolicyError,
    ServerFailedError,
    ServerUnavailableError,
    ServiceError,
    TooManyFramesError,
    TruncatedImageError,
    UnsupportedFormatError,
)
from moderation_client._stats import ClientStats, ReplicaStats
from moderation_client.contract import ImageSpec, ModelSpec
from moderation_client.policy import Decision, Outcome, Policy, Threshold
from moderation_client.results import ImageInfo, Timing, Verdict, VerdictError, Views

if TYPE_CHECKING:
    from moderation_client._async_client import AsyncModerationClient

__version__ = "0.1.0"

__all__ = [
    "AsyncModerationClient",
    "AuthenticationError",
    "BadArrayError",
    "ClientClosedError",
    "ClientStats",
    "ContractError",
    "CorruptImageError",
    "DeadlineExceededError",
    "Decision",
    "EmptyImageError",
    "ImageInfo",
    "ImageReadError",
    "ImageSpec",
    "ImageTooLargeError",
    "InvalidImageError",
    "MissingDependencyError",
    "ModelNotReadyError",
    "ModelSpec",
    "ModerationClient",
    "ModerationError",
    "Outcome",
    "OverloadedError",
    "Policy",
    "PolicyError",
    "ReplicaStats",
    "ServerFailedError",
    "ServerUnavailableError",
    "ServiceError",
    "Threshold",
    "Timing",
    "TooManyFramesError",
    "TruncatedImageError",
    "UnsupportedFormatError",
    "Verdict",
    "VerdictError",
    "Views",
]


def __getattr__(name: str) -> Any:
    """Load the asyncio client when it is asked for: asyncio is half of what importing everything would cost."""
    if name != "AsyncModerationClient":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from moderation_client._async_client import AsyncModerationClient  # noqa: PLC0415  see above

    return AsyncModerationClient
