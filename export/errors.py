"""What can go wrong between a checkpoint and a published version, as one tree; each message names the value and the way out.

ExportError
  RunError          the run directory or its images cannot be used
  GraphError        an ONNX graph does not speak the contract
  TargetError       the graph or a config field is newer than the target Triton release
  GateError         a variant is not close enough to its reference; nothing is published
  RepositoryError   the repository, a version or a config in it is not usable
    LockedError       another publisher holds the repository
  ProbeError        the private server did not answer the golden images as it should
  ServerError       a running server refused the new state; the repository was rolled back
  ForeignSpecError  the description of a foreign model does not fit it
  TransferError     push or pull did not arrive whole
"""

from __future__ import annotations

from moderation_client import ModerationError


class ExportError(ModerationError):
    """Root of what `python -m export` reports; the command prints it without a traceback."""


class RunError(ExportError):
    """The run directory, or the images its record points to, cannot be used."""


class GraphError(ExportError):
    """An ONNX graph's inputs, outputs or batch dimension are not the contract's."""


class TargetError(ExportError):
    """Opset, IR version or a config field is newer than the target Triton release reads."""


class GateError(ExportError):
    """A variant failed its gate. `failures` holds one sentence for each figure that missed its limit."""

    def __init__(self, variant: str, failures: tuple[str, ...]) -> None:
        """Name the variant and every figure that failed."""
        super().__init__(f"variant {variant} failed its gate and is not published: {'; '.join(failures)}")
        self.variant = variant
        self.failures = failures


class RepositoryError(ExportError):
    """The repository, a version in it or a config file is not usable as it is."""


class LockedError(RepositoryError):
    """Another publisher holds the repository's lock."""


class ProbeError(ExportError):
    """The private server could not load the candidate, or answered the golden images differently."""


class ServerError(ExportError):
    """The running server did not take the published state; the repository is back at the state before."""


class ForeignSpecError(ExportError):
    """The description of a foreign model is malformed or does not fit its graph."""


class TransferError(ExportError):
    """A push or pull did not arrive whole, or what arrived has another checksum."""
