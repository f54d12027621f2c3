"""What `lint` says of sound and of broken repositories, ours and other people's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2 as pb

from benchmarks.serving import Settings, apply
from export.command import main
from export.config_pbtxt import read_config, to_text
from export.findings import Finding
from export.lint import lint
from export.publish import publish
from tests.small_export import quick_config, small_graph, small_source


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Publish one version; copy before changing."""
    folder = tmp_path_factory.mktemp("sound")
    publish(small_source(folder / "s"), quick_config(folder / "repository"))
    return folder / "repository"


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    """Give a copy that may be broken."""
    return Path(shutil.copytree(sound, tmp_path / "repository"))


def change_config(repository: Path, change: Callable[[pb.ModelConfig], object]) -> None:
    """Edit config.pbtxt of the model and drop the other configurations."""
    path = repository / "moderation" / "config.pbtxt"
    config = read_config(path)
    change(config)
    path.write_text(to_text(config))
    shutil.rmtree(repository / "moderation" / "configs")


def errors(findings: list[Finding]) -> str:
    """Every error on a line."""
    return "\n".join(str(each) for each in findings if each.severity == "error")


def test_what_we_publish_has_no_errors_and_no_warnings(sound: Path) -> None:
    """Only what is exposed is noted: the golden images and the thresholds."""
    found = lint(sound)
    assert {each.severity for each in found} == {"note"}
    assert "golden.npy" in str(found)
    assert "policy.1" in str(found)


BREAKERS: dict[str, tuple[Callable[[pb.ModelConfig], object], str]] = {
    "output dims": (lambda c: c.output[0].dims.__setitem__(0, 7), "output.scores.dims"),
    "input dtype": (lambda c: setattr(c.input[0], "data_type", pb.TYPE_FP32), "write TYPE_UINT8"),
    "wrong name": (lambda c: setattr(c, "name", "other"), "is not the folder's name 'moderation'"),
    "missing version": (
        lambda c: c.version_policy.specific.versions.__setitem__(0, 4),
        "version 4 is not there",
    ),
    "missing variant": (lambda c: setattr(c, "default_model_filename", "model_int4.onnx"), "model_int4.onnx"),
    "thread count": (
        lambda c: setattr(c.parameters["intra_op_thread_count"], "string_value", "two"),
        "'two' is not a number",
    ),
    "warm-up file": (lambda c: setattr(c.model_warmup[0].inputs["image"], "input_data_file", "gone"), "gone"),
    "warm-up batch": (lambda c: setattr(c.model_warmup[0], "batch_size", 99), "99 is above max_batch_size"),
    "preferred batch": (
        lambda c: c.dynamic_batching.preferred_batch_size.append(64),
        "Triton refuses the file",
    ),
    "no tensor of that name": (lambda c: setattr(c.output[0], "name", "probabilities"), "it has scores"),
    "all passive": (lambda c: setattr(c.instance_group[0], "passive", True), "crashes the server"),
    "too new a field": (lambda c: c.model_metrics.metric_control.add(), "model_metrics"),
}


@pytest.mark.parametrize("what", BREAKERS)
def test_broken_configuration_is_an_error_with_its_field(copy: Path, what: str) -> None:
    """Each of a dozen breakages that Triton refuses or answers wrongly for is found before it sees them."""
    change, words = BREAKERS[what]
    change_config(copy, change)
    assert words in errors(lint(copy))


def test_text_that_does_not_parse_is_told_with_line_and_reason(copy: Path) -> None:
    """Triton's index would show such a model without any reason."""
    path = copy / "moderation" / "config.pbtxt"
    path.write_text(path.read_text() + "\nmax_batchsize: 4\n")
    assert "max_batchsize" in errors(lint(copy))


def test_half_copied_version_is_found(copy: Path) -> None:
    """A cut ONNX file and a left-over of a copy are errors; a folder that Triton ignores is a warning."""
    version = copy / "moderation" / "1"
    data = (version / "model.onnx").read_bytes()
    (version / "model.onnx").unlink()
    (version / "model.onnx").write_bytes(data[: len(data) // 2])
    (copy / "moderation" / "2").mkdir()
    (copy / "moderation" / "2" / "model.onnx.part").write_bytes(b"x")
    (copy / "moderation" / "007").mkdir()
    found = lint(copy)
    assert "is not what was published" in errors(found)
    assert "cut short" in errors(found)
    assert any("starts with 0" in each.why for each in found)


def test_labels_that_do_not_fit_the_scores_are_found(copy: Path) -> None:
    """A spec of another version's label list would name scores wrongly."""

    def swap_labels(config: pb.ModelConfig) -> None:
        value = config.parameters["spec.1"]
        value.string_value = value.string_value.replace('["circle", "star"]', '["circle", "star", "weapon"]')

    change_config(copy, swap_labels)
    assert "3 labels, but output dims [2]" in errors(lint(copy))
    assert "policy" in errors(lint(copy))


def foreign(folder: Path, text: str, model: onnx.ModelProto) -> Path:
    """Write a repository as somebody else would."""
    (folder / "densenet" / "1").mkdir(parents=True)
    (folder / "densenet" / "config.pbtxt").write_text(text)
    onnx.save(model, folder / "densenet" / "1" / "model.onnx")
    return folder


def test_repository_of_somebody_else_is_judged_by_the_same_rules(tmp_path: Path) -> None:
    """A fixed batch dimension, oversubscribed threads, keys that nobody reads, endless queues: each with a way out."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "y")]
    model = helper.make_model(
        helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "fixed", values[:1], values[1:]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=14,
    )
    text = """
      name: "densenet" platform: "onnxruntime_onnx" max_batch_size: 8
      input { name: "x" data_type: TYPE_FP32 dims: 4 } output { name: "y" data_type: TYPE_FP32 dims: 4 }
      instance_group { kind: KIND_CPU count: 4 } dynamic_batching { }
      parameters { key: "session.intra_op.allow_spinning" value { string_value: "0" } }
      optimization { execution_accelerators { gpu_execution_accelerator {
        name: "cuda" parameters { key: "cudnn_conv_algo_search" value: "HEURISTIC" } } } }
    """
    found = lint(foreign(tmp_path / "r", text, model), cpus=2)
    said = "\n".join(map(str, found))
    for words in (
        "export with a dynamic batch dimension",
        "IR 14",
        "allow_spinning",
        "a thread for every core",
        "max_queue_size",
        "overwrites it with its default",
        "model_warmup",
    ):
        assert words in said
    assert main(["lint", str(tmp_path / "r")]) == 1


def test_missing_configuration_and_folders_that_are_no_models(tmp_path: Path) -> None:
    """Triton takes every folder of a repository for a model."""
    (tmp_path / "r" / ".git").mkdir(parents=True)
    (tmp_path / "r" / "bare" / "1").mkdir(parents=True)
    onnx.save(small_graph(), tmp_path / "r" / "bare" / "1" / "model.onnx")
    said = errors(lint(tmp_path / "r"))
    assert ".git" in said
    assert "bare: config.pbtxt" in said


def test_left_overs_of_a_dead_publisher_are_named(copy: Path) -> None:
    """The finding says what removes them."""
    (copy.parent / ".repository.staging" / "stage-dead").mkdir(parents=True)
    found = [each for each in lint(copy) if each.severity == "warning"]
    assert f"python -m export recover {copy}` removes it" in found[0].fix
    (copy.parent / ".repository.staging" / "journal.json").write_text("{")
    assert f"python -m export recover {copy}` completes it" in errors(lint(copy))
    assert main(["recover", str(copy)]) == 0
    assert errors(lint(copy)) == ""
    assert not any(each.severity == "warning" for each in lint(copy))


def test_manifest_of_somebody_else_is_a_finding(copy: Path) -> None:
    """A list, or hashes that are no text, do not end lint with a traceback."""
    for text in (
        "[]",
        '{"files": {"model.onnx": 5}}',
        '{"files": ["model.onnx"]}',
        "null",
        '{"files": {"a/b": "x"}}',
    ):
        (copy / "moderation" / "1" / "manifest.json").write_text(text)
        assert "manifest.json cannot be read" in errors(lint(copy)) or "a/b is missing" in errors(lint(copy))


def test_parameters_without_a_thread_count_are_not_given_one(copy: Path) -> None:
    """Looking for the key must not put it there: an absent count is a warning, not a wrong number."""
    change_config(copy, lambda config: config.parameters.pop("intra_op_thread_count"))
    found = lint(copy)
    assert errors(found) == ""
    assert any(each.field == "parameters.intra_op_thread_count" for each in found)


def test_command_line_prints_findings_and_fails_on_errors(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 0 with notes, 1 with errors; JSON on demand."""
    assert main(["lint", str(copy)]) == 0
    change_config(copy, lambda config: setattr(config, "name", "other"))
    assert main(["lint", str(copy), "--json"]) == 1
    assert '"severity": "error"' in capsys.readouterr().out
    assert main(["lint", str(copy / "nowhere")]) == 1
    assert "is not a folder" in capsys.readouterr().err


def test_single_instance_with_queue_limits_is_warned_of(copy: Path) -> None:
    """Triton leaves its requests lying; without limits and priorities it does not, and two instances with every CPU each are fine."""
    path = copy / "moderation" / "config.pbtxt"
    config = read_config(path)

    def said() -> str:
        path.write_text(to_text(config))
        return "\n".join(
            str(each) for each in lint(copy, cpus=4) if each.file.endswith("moderation/config.pbtxt")
        )

    config.instance_group[0].count = 1
    assert "half a second" in said()
    apply(config, Settings(queue_limits=False))
    assert "half a second" not in said()
    config.instance_group[0].count = 2
    config.parameters["intra_op_thread_count"].string_value = "4"
    assert "CPUs" not in said()
    config.instance_group[0].count = 3
    assert "3 instances x 4 threads" in said()
