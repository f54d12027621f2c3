"""What can go wrong when a server is started, as one tree; each message names the fact and the way out.

ServeError
  UnsupportedPlatformError   this machine or this Python cannot run the embedded server
  ServerNotFoundError        no tritonserver: neither on PATH nor the nvidia-pytriton wheel
  RepositoryError            the model repository cannot be served as it is
    EmptyRepositoryError       it holds no model
    UnsafeRepositoryError      a symbolic link, a path trick, or a file whose sha256 is not the published one
  PortInUseError             somebody listens there already
  CertificateError           a TLS file is missing, unreadable, malformed, expired, or does not fit its key
  ResourceError              the machine ran out of something: shared memory, descriptors, disk
  ServerStartError           the server ended, or was not ready in time; carries the end of its log
    ModelLoadError             a model was refused; carries the reasons out of the server's log
    StartStoppedError          it was told to stop before it was ready
  ServerDiedError            the server ended while it was in use
  AdminError                 a repository-control call was refused
    AdminSilentError           it was not answered in time
"""

from __future__ import annotations


class ServeError(Exception):
    """Root of every error that serving raises."""


class UnsupportedPlatformError(ServeError):
    """The embedded server needs Linux x86-64, glibc >= 2.35 and a Python that its wheel has a stub for."""


class ServerNotFoundError(ServeError):
    """There is no tritonserver to run; the message says how to get one."""


class RepositoryError(ServeError):
    """The model repository cannot be served as it is."""


class EmptyRepositoryError(RepositoryError):
    """The model repository does not exist or holds no model."""


class UnsafeRepositoryError(RepositoryError):
    """Something in the repository is not what was published: a link, a path trick, a changed file."""


class PortInUseError(ServeError):
    """Another process listens on the address. `port` is its number, `purpose` is http, grpc, metrics or health."""

    def __init__(self, message: str, *, port: int, purpose: str) -> None:
        """Keep the two facts beside the message."""
        super().__init__(message)
        self.port = port
        self.purpose = purpose


class CertificateError(ServeError):
    """A TLS file cannot be used; the message names the file and what is wrong with it."""


class ResourceError(ServeError):
    """The machine lacks shared memory, file descriptors, disk or a folder; the message says which and how much."""


class ServerStartError(ServeError):
    """The server did not come up. `log_tail` holds the last lines it wrote."""

    def __init__(self, message: str, *, log_tail: tuple[str, ...] = ()) -> None:
        """Keep the end of the log beside the message."""
        super().__init__(message)
        self.log_tail = log_tail


class ModelLoadError(ServerStartError):
    """At least one model was refused. `reasons` maps model name -> the server's words."""

    def __init__(self, reasons: dict[str, str], *, log_tail: tuple[str, ...] = ()) -> None:
        """Build the message from the reasons."""
        lines = [f"model {name!r} did not load: {reason}" for name, reason in reasons.items()]
        super().__init__("\n".join(lines), log_tail=log_tail)
        self.reasons = reasons


class StartStoppedError(ServerStartError):
    """The server was told to stop before it was ready; nothing of it is left."""


class ServerDiedError(ServeError):
    """The server process ended while it was in use. `exit_code` is negative for a signal."""

    def __init__(self, message: str, *, exit_code: int | None) -> None:
        """Keep the exit code beside the message."""
        super().__init__(message)
        self.exit_code = exit_code


class AdminError(ServeError):
    """The running server refused a repository-control call; the message has its words."""


class AdminSilentError(AdminError):
    """A repository-control call was not answered in time: the server hangs, or the model takes longer than it did."""
