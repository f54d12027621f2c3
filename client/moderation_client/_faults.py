"""What a failed request means: status and message -> which error the caller sees, and whether another try may help.

Triton says UNAVAILABLE for a full queue, an expired queue time, a missing token and a model that is not ready alike, so
the message is looked at before the status. HTTP answers are translated to the gRPC status first: one table for both.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from moderation_client._errors import (
    AuthenticationError,
    ContractError,
    DeadlineExceededError,
    ModelNotReadyError,
    ModerationError,
    OverloadedError,
    ServerFailedError,
    ServerUnavailableError,
)


class Retry(enum.Enum):
    """Whether, and how long, another try may help."""

    NEVER = "never"
    """The same request will meet the same answer, or would make an overload worse."""
    FEW = "few"
    """Perhaps this replica, perhaps this request: a few tries, another replica first."""
    UNTIL_DEADLINE = "until deadline"
    """The replica is gone or starting: try others, and this one again, as long as there is time."""


@dataclass(frozen=True)
class Meaning:
    """What one failure is to the caller and to the replica."""

    error: type[ModerationError]
    retry: Retry
    ejects: bool = False
    """Whether the replica should get no more requests until it has been probed."""
    counts: bool = False
    """Whether several in a row do the same. A full queue, a slow answer or a wrong name are not the replica's fault."""


class Fault(Exception):  # noqa: N818  not an error for users: transports raise it, the flow turns it into one
    """A request that failed, in words that are the same for every transport."""

    def __init__(self, status: str, message: str) -> None:
        """`status` is the name of a gRPC status code."""
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


OVERLOADED = Meaning(OverloadedError, Retry.NEVER)
REFUSED = Meaning(AuthenticationError, Retry.NEVER)
MISMATCH = Meaning(ContractError, Retry.NEVER)
NOT_READY = Meaning(ModelNotReadyError, Retry.UNTIL_DEADLINE, counts=True)
UNKNOWN_MODEL = Meaning(ModelNotReadyError, Retry.FEW)
GONE = Meaning(ServerUnavailableError, Retry.UNTIL_DEADLINE, ejects=True)
FAILED = Meaning(ServerFailedError, Retry.FEW, counts=True)
DEAD_BACKEND = Meaning(ServerFailedError, Retry.FEW, ejects=True)
TOO_SLOW = Meaning(DeadlineExceededError, Retry.UNTIL_DEADLINE)

HUNG = "HUNG"
"""Status of our own: the replica took a request and then answered nothing, not even a health check."""

WRONG_SHAPE = "unexpected shape for input"
"""Triton's words, in small letters, for pictures of another size than its model takes."""

BY_MESSAGE: tuple[tuple[str, Meaning], ...] = (
    ("exceeds maximum queue size", OVERLOADED),
    ("request timeout expired", OVERLOADED),
    ("is restricted, expecting header", REFUSED),
    ("certificate_verify_failed", REFUSED),
    ("certificate verify failed", REFUSED),
    ("certificate_required", REFUSED),
    ("certificate required", REFUSED),
    ("unknown_ca", REFUSED),
    ("bad_certificate", REFUSED),
    ("certificate_expired", REFUSED),
    ("is not in peer certificate", REFUSED),
    ("hostname mismatch", REFUSED),
    ("hostname verification", REFUSED),
    ("wrong_version_number", REFUSED),
    ("message larger than max", MISMATCH),
    ("inference request batch-size must be", MISMATCH),
    ("has no available versions", NOT_READY),
    ("is not at ready state", NOT_READY),
    ("is not ready", NOT_READY),
    ("server not ready", NOT_READY),
    ("has stopped accepting new inference requests", NOT_READY),
    ("server is stopping", NOT_READY),
    ("server exiting", NOT_READY),
    ("unknown model", UNKNOWN_MODEL),
    ("stub process", DEAD_BACKEND),
    ("unexpected inference", MISMATCH),
)
"""Lower-case pieces of Triton's, gRPC's and OpenSSL's own messages; the first that occurs decides."""

BY_STATUS: dict[str, Meaning] = {
    "OK": FAILED,
    "CANCELLED": Meaning(ServerUnavailableError, Retry.UNTIL_DEADLINE, counts=True),
    "UNKNOWN": FAILED,
    "INVALID_ARGUMENT": MISMATCH,
    "DEADLINE_EXCEEDED": TOO_SLOW,
    "NOT_FOUND": UNKNOWN_MODEL,
    "ALREADY_EXISTS": FAILED,
    "PERMISSION_DENIED": REFUSED,
    "RESOURCE_EXHAUSTED": OVERLOADED,
    "FAILED_PRECONDITION": FAILED,
    "ABORTED": FAILED,
    "OUT_OF_RANGE": MISMATCH,
    "UNIMPLEMENTED": MISMATCH,
    "INTERNAL": FAILED,
    "UNAVAILABLE": GONE,
    "DATA_LOSS": FAILED,
    "UNAUTHENTICATED": REFUSED,
    HUNG: GONE,
}
"""What remains when the message says nothing known; every gRPC status has its line (a test checks that)."""

HTTP_STATUS: dict[int, str] = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    413: "OUT_OF_RANGE",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "UNAVAILABLE",
}


def status_of_http(code: int) -> str:
    """Name of the gRPC status that an HTTP status stands for."""
    return HTTP_STATUS.get(code) or ("INTERNAL" if code >= 500 else "INVALID_ARGUMENT")


def is_wrong_shape(fault: BaseException | None) -> bool:
    """Whether the server's model takes pictures of another size."""
    return isinstance(fault, Fault) and WRONG_SHAPE in fault.message.lower()


def meaning_of(fault: Fault) -> Meaning:
    """Look up a fault: message first, then status."""
    message = fault.message.lower()
    for piece, meaning in BY_MESSAGE:
        if piece in message:
            return meaning
    return BY_STATUS.get(fault.status, FAILED)
