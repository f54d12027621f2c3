"""Ask a moderation service for decisions: `ModerationClient(url).moderate(images)`."""

from __future__ import annotations

from moderation_client._async_client import AsyncModerationClient
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
