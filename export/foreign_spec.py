"""How a foreign model is described: a TOML file that says what its input and output mean, so that nobody has to guess.

[model]   labels, task, description, name
[image]   height, width, fit, resampling: what callers send (an ImageSpec)
[input]   name, layout NHWC|NCHW, channels RGB|BGR, crop, scale, mean, std: (pixel * scale - mean) / std inside the graph
[output]  name, meaning probabilities|logits|softmax, columns: which of its numbers are the labels, in their order
[policy.<label>]  review, block, evidence: thresholds that travel with it
[package] requirement, wheel_sha256, member, sha256: where the file comes from, for presets
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import tomllib

from export.errors import ForeignSpecError
from moderation_client import ContractError, ImageSpec, ModelSpec, Policy, PolicyError, Threshold

Layout = Literal["NHWC", "NCHW"]
Channels = Literal["RGB", "BGR"]
Meaning = Literal["probabilities", "logits", "softmax"]
PRESETS = Path(__file__).parent / "presets"


@dataclass(frozen=True, kw_only=True)
class ForeignInput:
    """What the graph does to 0..255 RGB pixels before the foreign network sees them."""

    layout: Layout = "NCHW"
    channels: Channels = "RGB"
    crop: tuple[int, int] | None = None
    """Rows and columns that are cut from the middle, after the caller's resize."""
    jpeg_quality: int | None = None
    """Quality of a JPEG round trip after the crop, for networks fitted to pictures with its traces; None for none."""
    scale: float = 1.0
    """Pixels are multiplied by this first."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Then this is subtracted, in the model's channel order."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Then it is divided by this, in the model's channel order."""
    name: str | None = None
    """Tensor of the foreign graph; needed only where it has several inputs."""

    def __post_init__(self) -> None:
        """Check the values. Raises ForeignSpecError."""
        _choice("input.layout", self.layout, get_args(Layout))
        _choice("input.channels", self.channels, get_args(Channels))
        for name in ("mean", "std"):
            if len(getattr(self, name)) != 3:
                raise ForeignSpecError(f"input.{name} must have three values, got {getattr(self, name)}")
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 100:
            raise ForeignSpecError(f"input.jpeg_quality must be 1..100, got {self.jpeg_quality}")
        if 0.0 in self.std or self.scale == 0.0:
            raise ForeignSpecError(
                f"input.std and input.scale must not be 0, got {self.std} and {self.scale}"
            )


@dataclass(frozen=True, kw_only=True)
class ForeignOutput:
    """What the foreign network's numbers mean."""

    meaning: Meaning
    """`probabilities` as they are, `logits` of independent labels (sigmoid), `softmax` over logits of exclusive classes."""
    columns: tuple[int, ...]
    """Which of them are the labels, in the labels' order."""
    name: str | None = None
    """Tensor of the foreign graph; needed only where it has several outputs."""

    def __post_init__(self) -> None:
        """Check the values. Raises ForeignSpecError."""
        _choice("output.meaning", self.meaning, get_args(Meaning))
        if not self.columns or min(self.columns) < 0 or len(set(self.columns)) < len(self.columns):
            raise ForeignSpecError(
                f"output.columns must be different numbers from 0 on, got {list(self.columns)}"
            )


@dataclass(frozen=True, kw_only=True)
class Package:
    """A pinned pip package that holds the ONNX file."""

    requirement: str
    wheel_sha256: str
    member: str
    """Path of the file in the wheel."""
    sha256: str
    """Of that file."""


@dataclass(frozen=True, kw_only=True)
class ForeignSpec:
    """The whole description."""

    spec: ModelSpec
    input: ForeignInput
    output: ForeignOutput
    policy: Policy | None = None
    package: Package | None = None
    source: str = ""
    """Where the description was read from."""

    def __post_init__(self) -> None:
        """Check that columns and labels fit. Raises ForeignSpecError."""
        if len(self.output.columns) != len(self.spec.labels):
            raise ForeignSpecError(
                f"output.columns names {len(self.output.columns)} numbers, model.labels {len(self.spec.labels)} labels"
            )


_SECTIONS = {"model", "image", "input", "output", "policy", "package"}


def read_foreign_spec(path: Path) -> ForeignSpec:
    """Read a description. Raises ForeignSpecError that names the file and the key."""
    try:
        payload = tomllib.loads(path.read_text(encoding="utf-8"))
        unknown = sorted(set(payload) - _SECTIONS)
        if unknown:
            raise ForeignSpecError(
                f"section [{unknown[0]}] is unknown; there are {', '.join(sorted(_SECTIONS))}"
            )
        return _parse(payload, path.name)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ForeignSpecError(f"description {path} cannot be read: {error}") from error
    except (ForeignSpecError, ContractError, PolicyError, TypeError, KeyError) as error:
        said = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ForeignSpecError(f"description {path}: {said}") from error


def preset(name: str) -> ForeignSpec:
    """Read a built-in description. Raises ForeignSpecError that lists what there is."""
    path = PRESETS / f"{name}.toml"
    if not path.is_file():
        there = ", ".join(sorted(each.stem for each in PRESETS.glob("*.toml")))
        raise ForeignSpecError(f"there is no preset {name!r}; there are: {there}")
    return read_foreign_spec(path)


def _parse(payload: Mapping[str, Any], source: str) -> ForeignSpec:
    model = dict(payload["model"])
    labels = tuple(model.pop("labels"))
    spec = ModelSpec(labels=labels, image=ImageSpec(**payload.get("image", {})), **model)
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in payload["input"].items()
    }
    output = dict(payload["output"])
    columns = tuple(output.pop("columns", range(len(labels))))
    thresholds = {label: Threshold(**each) for label, each in payload.get("policy", {}).items()}
    return ForeignSpec(
        spec=spec,
        input=ForeignInput(**given),
        output=ForeignOutput(columns=columns, **output),
        policy=Policy(labels=labels, thresholds=thresholds) if thresholds else None,
        package=Package(**payload["package"]) if "package" in payload else None,
        source=source,
    )


def _choice(field_name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ForeignSpecError(f"{field_name} {value!r} is not one of {', '.join(allowed)}")
