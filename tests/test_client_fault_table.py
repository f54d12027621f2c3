"""The table from status and message to error: complete, and right about the words that Triton really uses."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from moderation_client import (
    AuthenticationError,
    ContractError,
    DeadlineExceededError,
    ModelNotReadyError,
    OverloadedError,
    ServerFailedError,
    ServerUnavailableError,
)
from moderation_client._faults import BY_MESSAGE, BY_STATUS, Fault, Retry, meaning_of, status_of_http

TRITON_SAYS = (
    ("UNAVAILABLE", "[request id: 1] Exceeds maximum queue size", OverloadedError, Retry.NEVER),
    ("UNAVAILABLE", "Request timeout expired", OverloadedError, Retry.NEVER),
    (
        "UNAVAILABLE",
        "This protocol is restricted, expecting header 'triton-grpc-protocol-token'",
        AuthenticationError,
        Retry.NEVER,
    ),
    (
        "UNAVAILABLE",
        "Request for unknown model: 'moderation' has no available versions",
        ModelNotReadyError,
        Retry.UNTIL_DEADLINE,
    ),
    ("NOT_FOUND", "Request for unknown model: 'nsfw' is not found", ModelNotReadyError, Retry.FEW),
    (
        "UNAVAILABLE",
        "Server is stopping, scheduler for model has stopped accepting new inference requests",
        ModelNotReadyError,
        Retry.UNTIL_DEADLINE,
    ),
    (
        "UNAVAILABLE",
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Connection refused",
        ServerUnavailableError,
        Retry.UNTIL_DEADLINE,
    ),
    ("UNAVAILABLE", "Socket closed", ServerUnavailableError, Retry.UNTIL_DEADLINE),
    (
        "UNAVAILABLE",
        "Ssl handshake failed: SSL_ERROR_SSL: error:1000007d:CERTIFICATE_VERIFY_FAILED",
        AuthenticationError,
        Retry.NEVER,
    ),
    (
        "INVALID_ARGUMENT",
        "inference request batch-size must be <= 8 for 'moderation'",
        ContractError,
        Retry.NEVER,
    ),
    (
        "INVALID_ARGUMENT",
        "unexpected shape for input 'image' for model 'moderation'. Expected [-1,32,32,3], got [1,8,8,3]",
        ContractError,
        Retry.NEVER,
    ),
    (
        "INTERNAL",
        "Failed to process the request(s) for model instance 'm_0', message: Stub process 'm_0' is not healthy.",
        ServerFailedError,
        Retry.FEW,
    ),
    (
        "RESOURCE_EXHAUSTED",
        "CLIENT: Received message larger than max (700 vs. 600)",
        ContractError,
        Retry.NEVER,
    ),
    ("RESOURCE_EXHAUSTED", "too many streams", OverloadedError, Retry.NEVER),
    ("CANCELLED", "", ServerUnavailableError, Retry.UNTIL_DEADLINE),
    ("DEADLINE_EXCEEDED", "Deadline Exceeded", DeadlineExceededError, Retry.UNTIL_DEADLINE),
)


def test_every_grpc_status_has_its_line() -> None:
    """The table is complete: a status that gRPC adds must be thought about."""
    assert {code.name for code in grpc.StatusCode} <= set(BY_STATUS)


@pytest.mark.parametrize(("status", "message", "error", "retry"), TRITON_SAYS)
def test_known_messages_have_their_meaning(status: str, message: str, error: Any, retry: Retry) -> None:
    """Triton says UNAVAILABLE for four different things; the message decides."""
    meaning = meaning_of(Fault(status, message))
    assert meaning.error is error
    assert meaning.retry is retry


def test_message_table_is_lower_case_and_used() -> None:
    """An entry that could never match would be a silent hole."""
    assert all(piece == piece.lower() for piece, _ in BY_MESSAGE)


@pytest.mark.parametrize("code", [300, *range(400, 432), 451, 499, *range(500, 512)])
def test_every_http_status_means_something(code: int) -> None:
    """No HTTP status falls through."""
    assert status_of_http(code) in BY_STATUS
