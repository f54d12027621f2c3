"""What can stop a backfill, as one tree; each message names the value and the way out. A bad image stops nothing.

BulkError
  SourceError      the source cannot be listed or read
  PlanError        the result folder belongs to another backfill, or its plan is damaged
  TroubleError     the service could not be reached, or refused, for longer than the patience
  ClusterError     Ray is not installed, not reachable, or lost the run
  ShadowError      the two versions cannot be compared
"""

from __future__ import annotations

from moderation_client import ModerationError


class BulkError(ModerationError):
    """Root of what `python -m bulk` reports; the command prints it without a traceback."""


class SourceError(BulkError):
    """The source cannot be listed or read."""


class PlanError(BulkError):
    """The result folder belongs to another backfill, or its plan is damaged."""


class TroubleError(BulkError):
    """The service did not answer, or refused, for longer than the patience."""


class ClusterError(BulkError):
    """Ray is not installed, not reachable, or lost the run."""


class ShadowError(BulkError):
    """The two versions cannot be compared."""
