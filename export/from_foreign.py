"""A foreign ONNX file as a `Source`: the file as it is, fed by plain numpy, is the reference for the wrapped graph."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.errors import ForeignSpecError, GraphError, RunError
from export.foreign_graph import load_foreign, wrap
from export.foreign_spec import ForeignSpec
from export.from_run import load_split
from export.session import open_session
from export.source import Images, Pixels, Scores, Source
from export.version import sha256_of
from moderation_client import ImageSpec
from train.data import Example, read_manifest
from train.errors import DataError

ROUNDING = 1e-4
"""How far outside 0..1 a probability may lie before it is none."""
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


@dataclass(frozen=True, kw_only=True)
class ForeignReference:
    """The foreign model run by ONNX Runtime as its makers meant it, without the wrapping."""

    path: Path
    description: ForeignSpec

    def prepare(self, pixels: Pixels) -> NDArray[np.float32]:
        """Do in numpy what the wrapped graph does: crop, channel order, arithmetic, layout."""
        given, image = self.description.input, self.description.spec.image
        rows, columns = given.crop or (image.height, image.width)
        top, left = (image.height - rows) // 2, (image.width - columns) // 2
        values = pixels[:, top : top + rows, left : left + columns].astype(np.float32)
        if given.jpeg_quality is not None:
            values = np.stack([_jpeg_round_trip(each, given.jpeg_quality) for each in values])
        values = values if given.channels == "RGB" else values[..., ::-1]
        mean, std = (np.array(each, np.float32) for each in (given.mean, given.std))
        values = (values * np.float32(given.scale) - mean) / std
        values = values if given.layout == "NHWC" else values.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(values, np.float32)

    def __call__(self, pixels: Pixels) -> Scores:
        """Score one image at a time, as a fixed batch dimension would want it. Raises ForeignSpecError or GraphError."""
        session = open_session(self.path)
        names = [each.name for each in session.get_inputs()]
        source = self.description.input.name or names[0]
        target = self.description.output.name or session.get_outputs()[0].name
        rows = []
        try:
            for index in range(len(pixels)):
                rows.append(session.run([target], {source: self.prepare(pixels[index : index + 1])})[0])
        except Exception as error:
            raise GraphError(
                f"{self.path.name} does not run on what the description gives it: {error}"
            ) from error
        return self._scores(np.concatenate(rows))

    def _scores(self, raw: NDArray[Any]) -> Scores:
        meaning, columns = self.description.output.meaning, list(self.description.output.columns)
        if raw.ndim != 2 or max(columns) >= raw.shape[1]:
            raise ForeignSpecError(
                f"output.columns {columns} do not fit the output's shape {list(raw.shape)}"
            )
        values = raw.astype(np.float64)
        if meaning == "logits":
            values = 1.0 / (1.0 + np.exp(-values))
        elif meaning == "softmax":
            values = np.exp(values - values.max(axis=1, keepdims=True))
            values /= values.sum(axis=1, keepdims=True)
        elif values.min() < -ROUNDING or values.max() > 1.0 + ROUNDING:
            raise ForeignSpecError(
                f"output.meaning is probabilities, but the model gives {values.min():.3g} to {values.max():.3g}; "
                "is it logits, or softmax over logits?"
            )
        return np.clip(values[:, columns], 0.0, 1.0).astype(np.float32)


def _jpeg_round_trip(values: NDArray[np.float32], quality: int) -> NDArray[np.float32]:
    """Write and read by Pillow."""
    stream = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(stream, "JPEG", quality=quality)
    with Image.open(stream) as reread:
        return np.asarray(reread, np.float32)


def source_of_foreign(path: Path, description: ForeignSpec, examples: Sequence[Example]) -> Source:
    """Describe a foreign file for publishing. Raises GraphError, ForeignSpecError or RunError."""
    foreign = load_foreign(path)
    spec = description.spec
    wrapped = wrap(foreign, description)
    return Source(
        name=path.stem,
        spec=spec,
        policy=description.policy,
        reference=ForeignReference(path=path, description=description),
        reference_name="the file as its makers run it",
        graph=lambda _folder: wrapped,
        images=_images(examples, spec.image, spec.labels),
        record={"foreign": path.name, "foreign_sha256": sha256_of(path), "description": description.source},
    )


def read_images(path: Path) -> list[Example]:
    """Read a manifest, or every image below a folder (without labels). Raises RunError."""
    if path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.suffix.lower() in IMAGE_SUFFIXES)
        found = [Example(path=each, split=("train", "test")[index % 2]) for index, each in enumerate(files)]
    else:
        try:
            found = read_manifest(path)
        except DataError as error:
            raise RunError(str(error)) from error
    if len(found) < 4:
        raise RunError(
            f"{path} holds {len(found)} images; a model is compared on at least 4, better on hundreds"
        )
    return found


def _images(examples: Sequence[Example], image: ImageSpec, labels: tuple[str, ...]) -> Images:
    """Calibrate and choose on the training split, judge on the test split; without splits on every second image."""
    training = [example for example in examples if example.split == "train"] or list(examples[0::2])
    test = [example for example in examples if example.split == "test"] or list(examples[1::2])
    known = load_split(training[:400], image, labels)
    return Images(
        calibration=known.pixels[:200], selection=known, test=load_split(test[:2000], image, labels)
    )
