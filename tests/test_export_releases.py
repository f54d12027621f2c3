"""Which ONNX and which config fields may go to which Triton release."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2 as pb

from export.config_pbtxt import check_target
from export.errors import GraphError, TargetError
from export.graph import check_contract, default_opset, fit_to_release
from export.releases import first_release_reading, release_of
from moderation_client.contract import ImageSpec, ModelSpec
from tests.small_export import LABELS, SIZE, small_graph

SPEC = ModelSpec(labels=LABELS, image=ImageSpec(height=SIZE, width=SIZE))


def test_releases_between_rows_belong_to_the_row_before() -> None:
    """24.11 carries what 24.09 brought; the newest row holds for later releases."""
    assert release_of("24.11").onnxruntime == "1.19.2"
    assert release_of("26.12").max_ir == release_of("26.07").max_ir


@pytest.mark.parametrize("name", ["24.13", "2410", "24", "22.12"])
def test_unknown_releases_are_refused_by_name(name: str) -> None:
    """A release that is malformed or older than the table is refused with its name."""
    with pytest.raises(TargetError, match=name):
        release_of(name)


def test_too_new_ir_is_lowered_when_nothing_in_the_graph_needs_it() -> None:
    """A graph stamped IR 14 by a new ONNX loads on 24.10 after fitting, with its scores unchanged in structure."""
    model = small_graph()
    model.ir_version = 14
    fitted = fit_to_release(model, release_of("24.10"))
    assert fitted.ir_version == 10
    onnx.checker.check_model(fitted)


def test_opset_is_converted_down_or_refused_by_name() -> None:
    """Opset 18 goes down to 17-reading releases only where ONNX can; otherwise both versions are named."""
    node = helper.make_node("Gelu", ["x"], ["y"])
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy"]
    model = helper.make_model(
        helper.make_graph([node], "gelu", value[:1], value[1:]), opset_imports=[helper.make_opsetid("", 20)]
    )
    with pytest.raises(TargetError, match=r"opset 20.*Triton 23\.06.*24\.03"):
        fit_to_release(model, release_of("23.06"))
    assert default_opset(fit_to_release(small_graph(), release_of("23.03"))) == 18


def test_weight_type_that_the_target_lacks_is_refused_with_the_first_that_has_it() -> None:
    """An int4 weight needs IR 10: 24.03 is refused and 24.05 is named."""
    model = small_graph()
    model.ir_version = 10
    model.graph.initializer.add(name="tiny", data_type=TensorProto.INT4, dims=[2], raw_data=b"\x21")
    with pytest.raises(TargetError, match=r"IR 10.*24\.03.*24\.05"):
        fit_to_release(model, release_of("24.03"))
    assert first_release_reading(ir=14, opset=18) is None


def test_field_newer_than_the_target_is_refused_with_the_release_that_knows_it() -> None:
    """`model_metrics` needs 24.12."""
    config = pb.ModelConfig(name="moderation")
    config.model_metrics.metric_control.add()
    with pytest.raises(TargetError, match=r"model_metrics \(since 24\.12\)"):
        check_target(config, "24.10")
    check_target(config, "24.12")


def test_traces_of_the_exporting_machine_are_dropped() -> None:
    """Node metadata, where exporters write stack traces with paths, does not survive."""
    model = small_graph()
    model.graph.node[0].metadata_props.add(key="stack", value="/home/somebody/secret.py")
    model.graph.node[0].doc_string = "/home/somebody"
    assert b"/home/somebody" not in fit_to_release(model, release_of("24.10")).SerializeToString()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda graph: setattr(graph.input[0], "name", "pixels"), "named 'image'"),
        (lambda graph: setattr(graph.input[0].type.tensor_type, "elem_type", TensorProto.FLOAT), "UINT8"),
        (
            lambda graph: graph.output[0].type.tensor_type.shape.dim[0].__setattr__("dim_value", 1),
            "any batch",
        ),
        (lambda graph: graph.output[0].type.tensor_type.shape.dim[1].__setattr__("dim_value", 7), "scores"),
    ],
)
def test_graph_that_does_not_speak_the_contract_is_refused(change, words: str) -> None:  # type: ignore[no-untyped-def]
    """Name, type, fixed batch and number of labels are each told."""
    model = small_graph()
    change(model.graph)
    with pytest.raises(GraphError, match=words):
        check_contract(model, SPEC)
