"""Puts the staged folders of one change in their places, so that what lies there can be served at every moment, and takes them back.

The model that takes encoded files calls the other one: it goes before that one changes when it is to be gone, and comes after it
when it is to be there. In between the repository holds one whole model, with or without the other beside it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from export.commit import Staging
from export.encoded import serves
from moderation_client.contract import ENCODED_MODEL_NAME


@dataclass(kw_only=True)
class Swap:
    """One change of a repository."""

    staging: Staging
    done: list[tuple[str, Path | None]] = field(default_factory=list)
    """Model folders that were put in place or removed, in this order, and where what was there before lies now."""

    def apply(self, stage: Path, model: str) -> None:
        """Put `<stage>/<model>` in its place, and the model that takes encoded files, or remove that where none is staged."""
        encoded = stage / ENCODED_MODEL_NAME
        staging = self.staging
        if not encoded.is_dir() and serves(staging.repository / ENCODED_MODEL_NAME, model):
            self.done.append((ENCODED_MODEL_NAME, staging.remove(ENCODED_MODEL_NAME)))
        self.done.append((model, staging.commit(stage / model)))
        if encoded.is_dir():
            self.done.append((ENCODED_MODEL_NAME, staging.commit(encoded)))

    def take_back(self) -> None:
        """Bring the repository back to what it was before `apply`, or as far as that came."""
        for name, before in reversed(self.done):
            if before is None:
                self.staging.remove(name)
            else:
                os.utime(before / "config.pbtxt")  # Triton reloads only what is newer than what it has
                self.staging.commit(before)

    def added(self) -> set[str]:
        """Models that were not there before."""
        return {name for name, before in self.done if before is None}

    def removed(self) -> set[str]:
        """Models that are not there any more."""
        return {name for name, _ in self.done if not (self.staging.repository / name).exists()}
