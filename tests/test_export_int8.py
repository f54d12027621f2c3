"""INT8: what stays in float, what is taken out of the error, and that the graph is what a CPU runs fast."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

from export import graph, session
from export.bias_correction import correct_biases, mean_shifts, rounded_layers
from export.gates import Limits
from export.int8 import Int8Settings, Quantizer, always_float, blocks
from export.int8_search import Found, SearchConfig, search_int8
from export.releases import release_of
from export.source import Source
from export.weight_rounding import round_rows
from moderation_client.policy import Policy, Threshold
from tests.small_export import pictures, small_graph, small_source


@pytest.fixture(scope="module")
def quantizer(tmp_path_factory: pytest.TempPathFactory) -> Quantizer:
    """Prepare the small network."""
    folder = tmp_path_factory.mktemp("int8")
    source = small_source(folder / "s")
    graph.save(source.graph(folder), folder / "fp32.onnx", source.spec, release_of("24.10"))
    return Quantizer(folder / "fp32.onnx", pictures(40, seed=1), folder)


def test_normalisation_and_head_stay_in_float(quantizer: Quantizer) -> None:
    """Only what lies between the first layer and the last one is quantized."""
    model = onnx.load(quantizer.prepared)
    kept = {node.op_type for node in model.graph.node if node.name in always_float(model)}
    assert {"Sub", "Div", "Cast", "Transpose", "Gemm", "Sigmoid"} <= kept
    assert "Conv" not in kept


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_every_calibration_method_gives_a_graph_close_to_fp32(
    quantizer: Quantizer, tmp_path: Path, method: str
) -> None:
    """QDQ around every convolution, per-channel weights, scores near FP32's."""
    quantizer.write(tmp_path / "int8.onnx", Int8Settings(method=method))  # type: ignore[arg-type]
    model = onnx.load(tmp_path / "int8.onnx")
    assert len(rounded_layers(model)) == 2
    scales = {each.name: each for each in model.graph.initializer if each.name.endswith("_scale")}
    assert any(list(each.dims) == [8] for each in scales.values()), "weights are not quantized per channel"
    images = pictures(16, seed=7)
    ours, theirs = (
        session.run(session.open_session(path), images, batch=16)
        for path in (tmp_path / "int8.onnx", quantizer.prepared)
    )
    assert np.abs(ours - theirs).max() < 0.15


def test_segments_in_float_are_neither_quantized_nor_rounded(quantizer: Quantizer, tmp_path: Path) -> None:
    """A sensitive layer stays as it is: its weights, and what follows it up to the next layer."""
    first, second = quantizer.segments
    assert first[0] in quantizer.layers, "a segment begins with its layer"
    quantizer.write(tmp_path / "int8.onnx", Int8Settings(float_nodes=first))
    model = onnx.load(tmp_path / "int8.onnx")
    assert set(rounded_layers(model)) == {second[0]}
    rounded_outputs = {node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    inside = {name for node in model.graph.node if node.name in first[:-1] for name in node.output}
    assert not rounded_outputs & inside
    weights, original = (
        next(
            onnx.numpy_helper.to_array(values[node.input[1]])
            for node in each.graph.node
            if node.name == first[0]
        )
        for each in (model, onnx.load(quantizer.prepared))
        for values in [{tensor.name: tensor for tensor in each.graph.initializer}]
    )
    np.testing.assert_array_equal(weights, original)


def test_everything_in_float_is_fp32(quantizer: Quantizer, tmp_path: Path) -> None:
    """The more segments stay in float the closer the scores: with all of them nothing is left of the error."""
    every = tuple(name for part in quantizer.segments for name in part)
    images = pictures(16, seed=7)
    reference = session.run(session.open_session(quantizer.prepared), images, batch=16)
    quantizer.write(tmp_path / "int8.onnx", Int8Settings(float_nodes=every))
    scores = session.run(session.open_session(tmp_path / "int8.onnx"), images, batch=16)
    np.testing.assert_allclose(scores, reference, atol=1e-5)


def test_bias_correction_removes_the_mean_shift(quantizer: Quantizer, tmp_path: Path) -> None:
    """After correction the rounded layers' mean outputs are FP32's, channel by channel."""
    images = pictures(32, seed=3)
    quantizer.write(tmp_path / "plain.onnx", Int8Settings(corrected=False))
    correct_biases(
        quantizer.prepared,
        tmp_path / "plain.onnx",
        tmp_path / "c.onnx",
        images,
        weights_of=quantizer.prepared,
    )
    rounded = rounded_layers(onnx.load(tmp_path / "plain.onnx"))
    before = mean_shifts(onnx.load(quantizer.prepared), rounded, images, tmp_path / "scratch.onnx")
    weights = [onnx.load(path).graph.initializer for path in (tmp_path / "c.onnx", quantizer.prepared)]
    new, old = ({each.name: onnx.numpy_helper.to_array(each) for each in values} for values in weights)
    for node in onnx.load(quantizer.prepared).graph.node:
        if node.name in before:
            moved = old[node.input[2]] - new[f"{node.name}/bias"]
            np.testing.assert_allclose(moved, before[node.name], atol=1e-5)


def test_rounding_for_the_output_beats_nearest_rounding_on_correlated_inputs() -> None:
    """Inputs that move together: the sum of a filter's rounding errors matters, not each error."""
    rng = np.random.default_rng(0)
    inputs = rng.random((2000, 1)) + 0.05 * rng.standard_normal((2000, 9))
    moments = (inputs.T @ inputs / len(inputs))[None]
    weights = rng.standard_normal((1, 16, 9))
    scale = np.abs(weights).max(axis=-1, keepdims=True) / 127
    nearest = np.round(weights / scale) * scale
    found = round_rows(weights, moments)
    np.testing.assert_allclose(found / scale, np.round(found / scale), atol=1e-6)

    def error(rounded: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
        return float(np.square((rounded - weights)[0] @ inputs.T).mean())

    assert error(found) < 0.4 * error(nearest)


def test_search_puts_layers_back_to_float_until_decisions_agree(tmp_path: Path) -> None:
    """Below its target the search goes on, step by step; the trials are recorded and the best is written."""
    source = _undecided(tmp_path / "s")
    graph.save(source.graph(tmp_path), tmp_path / "fp32.onnx", source.spec, release_of("24.10"))

    def search(source: Source, min_agreement: float) -> Found:
        config = SearchConfig(methods=("minmax",), num_blocks=2, float_steps=(1, 2))
        limits = Limits(max_score_shift=1.0, min_agreement=min_agreement, max_ap_drop=1.0)
        return search_int8(source, tmp_path / "fp32.onnx", tmp_path / "int8.onnx", limits, config)

    first = search(source, 0.0)
    assert len(first.trials) == 1
    assert first.float_layers == ()
    found = search(_disagreed_about(source, tmp_path / "int8.onnx"), 1.0)
    assert found.trials[0].agreement < 1.0
    assert found.chosen.agreement == 1.0
    assert found.float_layers
    assert found.chosen.rank == max(trial.rank for trial in found.trials)
    assert not set(found.float_layers) & set(rounded_layers(onnx.load(tmp_path / "int8.onnx")))
    assert found.to_dict()["trials"][0]["settings"]["method"] == "minmax"


def _undecided(folder: Path) -> Source:
    """The small network with weights in its head that leave scores between 0 and 1."""
    model = small_graph()
    for tensor in model.graph.initializer:
        if tensor.name == "w3":
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) / 40, "w3"))
    source = small_source(folder)
    onnx.save(model, folder / "undecided.onnx")
    opened = session.open_session(folder / "undecided.onnx")
    return dataclasses.replace(
        source, reference=lambda pixels: session.run(opened, pixels, batch=16), graph=lambda _folder: model
    )


def _disagreed_about(source: Source, int8: Path) -> Source:
    """The same with a threshold between the scores of an image that FP32 and INT8 score differently."""
    split = source.images.selection
    views = np.flatnonzero(np.bincount(split.owners)[split.owners] == 1)
    scores = [
        source.reference(split.pixels[views]),
        session.run(session.open_session(int8), split.pixels[views], batch=16),
    ]
    view, column = np.unravel_index(np.abs(scores[0] - scores[1]).argmax(), scores[0].shape)
    middle = float(np.mean([each[view, column] for each in scores]))
    thresholds = {
        label: Threshold(review=middle if index == column else 1.0)
        for index, label in enumerate(source.spec.labels)
    }
    return dataclasses.replace(source, policy=Policy(labels=source.spec.labels, thresholds=thresholds))


def test_blocks_are_runs_of_segments() -> None:
    """In graph order, of about equal length."""
    assert blocks([("a", "a2"), ("b",), ("c",)], 2) == [("a", "a2", "b"), ("c",)]
