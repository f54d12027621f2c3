"""The targets file: what thresholds must keep, per label, as a TOML or JSON table a policy lead can write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import tomllib

from train.errors import TrainError

Independent = Literal["group", "source"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """What one label's thresholds must keep."""

    missed: float = 0.1
    """Largest share of the images that truly show it which may be allowed automatically."""
    false_block: float = 0.02
    """Largest share of the harmless images which may be blocked automatically."""
    confidence: float = 0.9
    """How sure each of the two must be."""

    def __post_init__(self) -> None:
        """Check the values. Raises TrainError."""
        for each in fields(self):
            value = getattr(self, each.name)
            if not isinstance(value, float | int) or not 0.0 < value < 1.0:
                raise TrainError(f"target {each.name} must be between 0 and 1, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Targets of all labels, and the world they are for."""

    default: Target = Target()
    labels: Mapping[str, Target] = field(default_factory=dict)
    prevalence: float = 0.01
    """Share of uploads that truly show any of the labels."""
    independent: Independent = "group"
    """What counts as one piece of evidence: a `group`, or each `source` (artist) within a group."""
    words: tuple[str, str] = ("images", "groups")
    """What images and groups are called, in the plural, when the evidence is put into sentences."""

    def of(self, label: str) -> Target:
        """Target of one label."""
        return self.labels.get(label, self.default)


def read_targets(path: Path, labels: tuple[str, ...]) -> Targets:
    """Read a .toml or .json table. Raises TrainError that names the key."""
    try:
        text = path.read_text(encoding="utf-8")
        table: dict[str, Any] = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise TrainError(f"targets {path} cannot be read: {error}") from error
    default = _target(table.pop("default", {}), Target(), path, "default")
    world = table.pop("world", {})
    prevalence = world.get("prevalence", Targets.prevalence)
    if not isinstance(prevalence, float) or not 0.0 < prevalence < 1.0:
        raise TrainError(f"targets {path}: world.prevalence must be between 0 and 1, got {prevalence!r}")
    independent = world.get("independent", Targets.independent)
    if independent not in get_args(Independent):
        raise TrainError(f"targets {path}: world.independent must be group or source, got {independent!r}")
    unknown = sorted(set(table) - set(labels))
    if unknown:
        raise TrainError(f"targets {path} name {', '.join(unknown)}; the labels are {', '.join(labels)}")
    chosen = {label: _target(entry, default, path, label) for label, entry in table.items()}
    return Targets(
        default=default,
        labels=chosen,
        prevalence=prevalence,
        independent=independent,
        words=_words(world.get("words", list(Targets.words)), path),
    )


def _words(words: Any, path: Path) -> tuple[str, str]:
    if not isinstance(words, list) or [type(word) for word in words] != [str, str]:
        raise TrainError(
            f"targets {path}: world.words must be two words, for images and groups, got {words!r}"
        )
    return words[0], words[1]


def _target(entry: Any, default: Target, path: Path, name: str) -> Target:
    known = {each.name for each in fields(Target)}
    if not isinstance(entry, dict) or set(entry) - known:
        raise TrainError(f"targets {path}: [{name}] may hold {', '.join(sorted(known))}, got {entry!r}")
    values = {each: getattr(default, each) for each in known} | entry
    try:
        return Target(**values)
    except TrainError as error:
        raise TrainError(f"targets {path}: [{name}]: {error}") from error
