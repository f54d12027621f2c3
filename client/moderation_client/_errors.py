"""The errors a user of the client can meet, as one tree; nothing of grpc, PIL or tritonclient gets out.

ModerationError
  ContractError            server, spec or policy does not speak our wire; names what differs
  PolicyError              a policy is malformed or does not fit the model's labels
  InvalidImageError        this image cannot be judged (it never fails its neighbours)
    EmptyImageError          no bytes
    UnsupportedFormatError   not an image, or a format that is not allowed
    TruncatedImageError      the file ends before the picture does
    CorruptImageError        the decoder refuses the content
    ImageTooLargeError       more bytes, pixels or a longer side ratio than the limit
    TooManyFramesError       an animation with more frames than the limit
    BadArrayError            an array of a shape or dtype that is not a picture
    ImageReadError           the path or file object could not be read
  ServiceError             the server's side; carries the verdicts reached so far
    DeadlineExceededError    the deadline passed while the server was working
    OverloadedError          the server's queue is full or the request expired in it
    ModelNotReadyError       the server is up, the model is not
    ServerUnavailableError   nobody answers at the address
    ServerFailedError        the server answered with an internal error
    AuthenticationError      token or certificate was refused
  MissingDependencyError   an optional package is needed; names the pip line
  ClientClosedError        the client was used after close()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moderation_client.results import Verdict


class ModerationError(Exception):
    """Root of every error this package raises.

    Raised by a call, it carries in `verdicts` what that call had reached, None where nothing was.
    """

    verdicts: tuple[Verdict | None, ...] = ()


class ContractError(ModerationError):
    """The server's model, a spec or a file does not match the contract; the message names what differs."""


class PolicyError(ModerationError):
    """A policy is malformed, or it does not fit the labels of the model that answered."""


class InvalidImageError(ModerationError):
    """One image cannot be judged.

    `index` is its place in the call, `source` the path or kind of object, `value` and `limit` the number that
    broke a limit, where one did.
    """

    code = "invalid_image"

    def __init__(
        self,
        message: str,
        *,
        index: int | None = None,
        source: str | None = None,
        value: float | None = None,
        limit: float | None = None,
    ) -> None:
        """Keep the facts beside the message, so that callers need not parse it."""
        super().__init__(message)
        self.message = message
        self.index = index
        self.source = source
        self.value = value
        self.limit = limit

    def __str__(self) -> str:
        """Message with the place in front, when known."""
        place = [f"image {self.index}"] if self.index is not None else []
        place += [self.source] if self.source else []
        return f"{' '.join(place)}: {self.message}" if place else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with the keyword-only facts, so that process pools can carry the error."""
        return _rebuild, (type(self), self.message, self.index, self.source, self.value, self.limit)


def _rebuild(
    kind: type[InvalidImageError],
    message: str,
    index: int | None,
    source: str | None,
    value: float | None,
    limit: float | None,
) -> InvalidImageError:
    return kind(message, index=index, source=source, value=value, limit=limit)


class EmptyImageError(InvalidImageError):
    """There are no bytes."""

    code = "empty"


class UnsupportedFormatError(InvalidImageError):
    """The bytes are not a picture, or one of a format that is not allowed or needs an extra."""

    code = "unsupported_format"


class TruncatedImageError(InvalidImageError):
    """The file ends before the picture does."""

    code = "truncated"


class CorruptImageError(InvalidImageError):
    """The decoder refuses the content."""

    code = "corrupt"


class ImageTooLargeError(InvalidImageError):
    """More bytes, more pixels or a longer side ratio than the limit allows; seen before pixels are decoded."""

    code = "too_large"


class TooManyFramesError(InvalidImageError):
    """The animation has more frames than the limit allows."""

    code = "too_many_frames"


class BadArrayError(InvalidImageError):
    """The array's shape, dtype or range is not a picture; the message says what was expected."""

    code = "bad_array"


class ImageReadError(InvalidImageError):
    """The path or file object could not be read."""

    code = "unreadable"


class ServiceError(ModerationError):
    """The server's side failed. `verdicts` holds what was reached before, None where nothing was."""

    code = "service"

    def __init__(self, message: str, *, verdicts: tuple[Verdict | None, ...] = ()) -> None:
        """Keep the verdicts reached so far."""
        super().__init__(message)
        self.verdicts = verdicts


class DeadlineExceededError(ServiceError):
    """The deadline passed while the server was working."""

    code = "deadline_exceeded"


class OverloadedError(ServiceError):
    """The server's queue is full, or the request expired in it; the message has the server's words."""

    code = "overloaded"


class ModelNotReadyError(ServiceError):
    """The server is up, the model is not loaded."""

    code = "model_not_ready"


class ServerUnavailableError(ServiceError):
    """Nobody answers at the address."""

    code = "server_unavailable"


class ServerFailedError(ServiceError):
    """The server answered with an internal error."""

    code = "server_failed"


class AuthenticationError(ServiceError):
    """The token or the certificate was refused."""

    code = "authentication"


class MissingDependencyError(ModerationError):
    """An optional package is needed; the message has the pip line."""


class ClientClosedError(ModerationError):
    """The client was used after `close()`."""
