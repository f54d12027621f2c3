"""Everything that two processes must agree on: tensor names, image size, labels, and where the spec travels.

Training writes a `ModelSpec`, export puts it into the Triton model configuration (`parameters["spec.<version>"]`), the client reads
it back from the server. Nothing else in the product states a wire name, a size or a label list a second time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from moderation_client._errors import ContractError

SCHEMA_VERSION = 1
"""Version of the JSON that `ModelSpec` is written as."""

MODEL_NAME = "moderation"
"""Triton model that takes pixels: `image` UINT8 [H, W, 3] RGB in, `scores` FP32 [num_labels] out (batch dimension first)."""
IMAGE_INPUT = "image"
SCORES_OUTPUT = "scores"

ENCODED_MODEL_NAME = "moderation_encoded"
"""Triton model that takes a file as it is: `encoded` BYTES [1] in, `scores` and `verdict` (BYTES [1], JSON) out."""
ENCODED_INPUT = "encoded"
VERDICT_OUTPUT = "verdict"

SCORE_EDGES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0)
"""Upper edges, inclusive, of the bins in which scores are counted, at training time and in service: drift is their difference."""

Fit = Literal["squash", "letterbox", "center_crop"]
Resampling = Literal["bilinear", "bicubic", "lanczos", "box"]
Task = Literal["multilabel", "multiclass"]


def spec_parameter(version: int | str) -> str:
    """Key under which version `version`'s spec stands in the Triton model configuration's `parameters`."""
    return f"spec.{version}"


def policy_parameter(version: int | str) -> str:
    """Key under which version `version`'s recommended policy stands, when the owner lets it travel."""
    return f"policy.{version}"


def labels_sha256(labels: tuple[str, ...]) -> str:
    """Hash of a label list, order included: what a policy is bound to."""
    return hashlib.sha256(json.dumps(list(labels)).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """How a picture becomes the model's input, short of arithmetic: size, fit, resampling, background.

    Scaling, mean and standard deviation are inside the ONNX graph; the wire carries plain RGB bytes.
    """

    height: int = 224
    """Rows of the model's input."""
    width: int = 224
    """Columns of the model's input."""
    fit: Fit = "squash"
    """`squash` shows the whole frame (default: a centre crop lets harm sit at the edge unseen), `letterbox` pads, `center_crop` cuts."""
    resampling: Resampling = "bilinear"
    """Filter of the resize; always antialiased."""
    background: tuple[int, int, int] = (255, 255, 255)
    """RGB under transparent pixels. The opposite is looked at as well when alpha matters."""

    def __post_init__(self) -> None:
        """Check the values. Raises ContractError that names the field."""
        if not (1 <= self.height <= 4096 and 1 <= self.width <= 4096):
            raise ContractError(f"image size must be 1..4096, got {self.height}x{self.width}")
        for name, value, allowed in (
            ("fit", self.fit, get_args(Fit)),
            ("resampling", self.resampling, get_args(Resampling)),
        ):
            if value not in allowed:
                raise ContractError(f"image {name} {value!r} is not one of {', '.join(allowed)}")
        if len(self.background) != 3 or not all(0 <= channel <= 255 for channel in self.background):
            raise ContractError(f"image background must be three values 0..255, got {self.background!r}")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What a caller must know of one version of a model to use it correctly.

    `version` and `files` are empty until export publishes the model.
    """

    labels: tuple[str, ...]
    """Names of the scores, in output order."""
    task: Task = "multilabel"
    """`multilabel`: independent probabilities; `multiclass`: they sum to one."""
    image: ImageSpec = field(default_factory=ImageSpec)
    """How pictures are prepared."""
    name: str = MODEL_NAME
    """Triton model name."""
    version: int | None = None
    """Triton model version, set when it is published."""
    files: Mapping[str, str] = field(default_factory=dict)
    """File name of each published variant -> sha256 of that ONNX file."""
    training_record: str | None = None
    """Reference (run name and hash) to the training record, which stays with the run."""
    description: str = ""
    """What the model is for and not for, in one line."""
    score_counts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Label -> how many scores of held-out images fell into each bin of `SCORE_EDGES`: what drift is measured against."""

    def __post_init__(self) -> None:
        """Check the values. Raises ContractError that names the field."""
        if not self.labels:
            raise ContractError("a model needs at least one label, got none")
        duplicates = sorted({label for label in self.labels if self.labels.count(label) > 1})
        if duplicates:
            raise ContractError(f"labels must be unique, {', '.join(duplicates)} occur more than once")
        if self.task not in get_args(Task):
            raise ContractError(f"task {self.task!r} is not one of {', '.join(get_args(Task))}")
        for label, counts in self.score_counts.items():
            if label not in self.labels or len(counts) != len(SCORE_EDGES):
                raise ContractError(f"score_counts of {label!r} must be {len(SCORE_EDGES)} counts of a label")

    @property
    def labels_sha256(self) -> str:
        """Hash of the label list; a policy carries the same one."""
        return labels_sha256(self.labels)

    def to_json(self) -> str:
        """Serialise as one line of JSON with `schema_version`."""
        return json.dumps({"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> ModelSpec:
        """Read what `to_json` wrote. Raises ContractError that names what is wrong."""
        payload = _json_object(text, "model spec")
        image = payload.pop("image", {})
        try:
            image["background"] = tuple(image.get("background", ImageSpec.background))
            payload["labels"] = tuple(payload["labels"])
            counts = payload.pop("score_counts", {})
            payload["score_counts"] = {label: tuple(each) for label, each in counts.items()}
            return cls(image=ImageSpec(**image), **payload)
        except (KeyError, TypeError, AttributeError) as error:
            raise ContractError(f"model spec is not usable: {error}") from error


def _json_object(text: str | bytes, what: str) -> dict[str, Any]:
    """Parse a JSON object of the known schema version and drop that field."""
    try:
        payload = json.loads(text)
    except ValueError as error:
        raise ContractError(f"{what} is not JSON: {error}") from error
    if not isinstance(payload, dict):
        raise ContractError(f"{what} must be a JSON object, got {type(payload).__name__}")
    found = payload.pop("schema_version", None)
    if found != SCHEMA_VERSION:
        raise ContractError(
            f"{what} has schema_version {found!r}, this client reads {SCHEMA_VERSION}; upgrade moderation-client"
        )
    return payload
