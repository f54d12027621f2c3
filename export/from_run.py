"""A run directory as a `Source`: the PyTorch model is the reference, its manifest gives the images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch

from export.errors import RunError
from export.source import Images, Pixels, Scores, Source, Split
from moderation_client import ImageSpec, InvalidImageError
from moderation_client.contract import IMAGE_INPUT, SCORES_OUTPUT
from moderation_client.images import decode
from train.data import Example, read_manifest, targets
from train.errors import DataError
from train.memory import keep_freed_memory
from train.model import LoadedRun, load_run

OPSET = 18
"""Every Triton release since 23.03 reads it, and the exporter writes nothing older."""
REFERENCE_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    """Which of the run's images export looks at."""

    num_calibration: int = 200
    """Training images that INT8 ranges are taken from."""
    num_selection: int = 400
    """Held-out images (splits calibration and policy) by which INT8 settings are chosen."""
    num_test: int = 2000
    """Images of the test split that parity is measured on, at most."""
    seed: int = 0
    """Which ones, where there are more."""


def source_of_run(run: Path, images: ImagesConfig) -> Source:
    """Load a run. Raises RunError when its files or its images cannot be used."""
    keep_freed_memory()
    loaded = load_run(run)
    examples = _examples(loaded)
    return Source(
        name=run.name,
        spec=loaded.spec,
        policy=loaded.policy,
        reference=torch_reference(loaded.model),
        reference_name="PyTorch",
        graph=lambda _folder: torch_graph(loaded.model, loaded.spec.image),
        images=_images(examples, loaded, images),
        record={"run": run.name, "backbone": loaded.record.get("backbone")},
    )


def torch_reference(model: torch.nn.Module) -> Callable[[Pixels], Scores]:
    """Scores by PyTorch in float32 on the CPU, in batches that fit any machine."""

    def score(pixels: Pixels) -> Scores:
        with torch.inference_mode():
            parts = [
                model(torch.from_numpy(np.array(pixels[start : start + REFERENCE_BATCH]))).numpy()
                for start in range(0, len(pixels), REFERENCE_BATCH)
            ]
        return np.asarray(np.concatenate(parts), np.float32)

    return score


def torch_graph(model: torch.nn.Module, image: ImageSpec) -> onnx.ModelProto:
    """Trace with `torch.export` and translate to ONNX: any batch, names from the contract."""
    example = torch.zeros(2, image.height, image.width, 3, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=4096)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch's exporter warns of its own internals
        warnings.simplefilter("ignore", FutureWarning)
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[IMAGE_INPUT],
            output_names=[SCORES_OUTPUT],
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
    assert program is not None
    graph: onnx.ModelProto = program.model_proto
    return graph


def _examples(loaded: LoadedRun) -> list[Example]:
    manifest = loaded.record.get("data", {}).get("manifest")
    if manifest is None:
        raise RunError(
            f"run {loaded.path} names no manifest in training.json: export has no images to compare on"
        )
    try:
        return read_manifest(Path(manifest))
    except DataError as error:
        raise RunError(f"run {loaded.path}: {error}") from error


def _images(examples: Sequence[Example], loaded: LoadedRun, config: ImagesConfig) -> Images:
    spec, labels = loaded.spec.image, loaded.spec.labels
    rng = np.random.default_rng(config.seed)

    def draw(splits: tuple[str, ...], num: int) -> list[Example]:
        pool = [example for example in examples if example.split in splits]
        if not pool:
            raise RunError(
                f"the manifest of run {loaded.path} has no image in the split {' or '.join(splits)}"
            )
        chosen = np.sort(rng.permutation(len(pool))[:num])
        return [pool[index] for index in chosen]

    training = load_split(draw(("train",), config.num_calibration), spec, labels)
    return Images(
        calibration=training.pixels,
        selection=load_split(draw(("calibration", "policy"), config.num_selection), spec, labels),
        test=load_split(draw(("test",), config.num_test), spec, labels),
    )


def load_split(examples: Sequence[Example], spec: ImageSpec, labels: Sequence[str]) -> Split:
    """Decode as the client does, every view. Raises RunError that names an image which cannot be decoded."""
    pixels: list[Pixels] = []
    for example in examples:
        try:
            pixels.append(decode(example.image, spec).pixels)
        except InvalidImageError as error:
            raise RunError(f"{example.path}: {error}") from error
    num_views = [len(views) for views in pixels]
    return Split(
        pixels=np.concatenate(pixels),
        owners=np.repeat(np.arange(len(examples)), num_views),
        names=tuple(str(example.path.name) for example in examples),
        targets=targets(examples, labels).astype(bool),
    )
