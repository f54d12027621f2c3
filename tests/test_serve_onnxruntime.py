"""The stand-in for the C++ ONNX Runtime backend reads a configuration as the original does, and says the same of a wrong one."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from tests.small_model import build_onnx

BACKEND = Path(__file__).parent.parent / "serve" / "backends" / "onnxruntime"
CONFIG: dict[str, Any] = {
    "name": "moderation",
    "max_batch_size": 8,
    "input": [{"name": "image", "data_type": "TYPE_UINT8", "dims": ["32", "32", "3"]}],
    "output": [{"name": "scores", "data_type": "TYPE_FP32", "dims": ["3"]}],
}
"""As Triton gives it to a Python backend: JSON with 64-bit numbers as strings."""


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Import the backend's modules as Triton's stub does: by their folder."""
    import importlib

    monkeypatch.syspath_prepend(BACKEND)
    return importlib.import_module


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> ort.InferenceSession:
    """Session on the small model."""
    path = build_onnx(tmp_path_factory.mktemp("model") / "model.onnx")
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _with_parameters(**parameters: str) -> dict[str, Any]:
    return {**CONFIG, "parameters": {key: {"string_value": value} for key, value in parameters.items()}}


@pytest.mark.parametrize(("text", "threads"), [("2", 2), ("2x", 2), (" 3", 3), ("0", 0), ("-4", 0)])
def test_thread_counts_are_read_like_stoi(backend: Any, text: str, threads: int) -> None:
    """Numbers are read as C++ reads them, and what is not positive leaves ONNX Runtime's default."""
    options = backend("ort_options").session_options(
        _with_parameters(intra_op_thread_count=text, inter_op_thread_count=text)
    )
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (threads, threads)


def test_threads_of_an_idle_instance_do_not_spin(backend: Any) -> None:
    """Two instances with two threads each on two cores halved a lone caller's rate while they did."""
    options = backend("ort_options").session_options(CONFIG)
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


@pytest.mark.parametrize("text", ["two", "", "x2"])
def test_words_are_no_thread_counts(backend: Any, text: str) -> None:
    """A word is refused in the C++ backend's words."""
    options = backend("ort_options")
    with pytest.raises(options.ConfigError, match=f"failed to convert '{text}' to integral number"):
        options.session_options(_with_parameters(intra_op_thread_count=text))


@pytest.mark.parametrize(("text", "on"), [("True", True), ("1", True), ("false", False), ("0", False)])
def test_arena_and_pattern_switches(backend: Any, text: str, on: bool) -> None:
    """Both spellings of a switch work, in any case."""
    options = backend("ort_options").session_options(
        _with_parameters(enable_mem_arena=text, enable_mem_pattern=text)
    )
    assert (options.enable_cpu_mem_arena, options.enable_mem_pattern) == (on, on)


def test_unusable_values_are_refused(backend: Any) -> None:
    """A switch that is neither, an execution mode that does not exist, and an unknown CPU accelerator are errors."""
    options = backend("ort_options")
    with pytest.raises(options.ConfigError, match="failed to convert 'maybe'"):
        options.session_options(_with_parameters(enable_mem_arena="maybe"))
    with pytest.raises(options.ConfigError, match="execution_mode are 0 or 1 but got 2"):
        options.session_options(_with_parameters(execution_mode="2"))
    config = {
        **CONFIG,
        "optimization": {"execution_accelerators": {"cpu_execution_accelerator": [{"name": "fast"}]}},
    }
    with pytest.raises(options.ConfigError, match="unknown Execution Accelerator 'fast' is requested"):
        options.providers(config, "CPU", {}, ort.SessionOptions())


def test_openvino_that_is_not_installed_is_named(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original's words for an accelerator that it was built without, and the package to install here."""
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_openvino", None)
    config = {
        **CONFIG,
        "optimization": {"execution_accelerators": {"cpu_execution_accelerator": [{"name": "openvino"}]}},
    }
    options = backend("ort_options")
    with pytest.raises(options.ConfigError, match="'openvino' is requested: pip install onnxruntime-ep-ope"):
        options.providers(config, "CPU", {}, ort.SessionOptions())


def test_what_the_original_ignores_is_ignored(backend: Any) -> None:
    """Unknown parameters (specs and policies among them), graph level 7 and GPU accelerators on a CPU load."""
    options = backend("ort_options")
    config = _with_parameters(**{"spec.1": "{}", "surprise": "1"})
    config["optimization"] = {
        "graph": {"level": 7},
        "execution_accelerators": {"gpu_execution_accelerator": [{"name": "tensorrt"}]},
    }
    assert (
        options.session_options(config).graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    )
    assert options.providers(config, "CPU", {}, ort.SessionOptions()) == ["CPUExecutionProvider"]


@pytest.mark.parametrize(
    ("level", "name"),
    [(-1, "ORT_ENABLE_BASIC"), (0, "ORT_ENABLE_ALL"), (1, "ORT_ENABLE_EXTENDED"), (2, "ORT_DISABLE_ALL")],
)
def test_graph_levels(backend: Any, level: int, name: str) -> None:
    """Triton's graph levels are ONNX Runtime's as in the original."""
    config = {**CONFIG, "optimization": {"graph": {"level": level}}}
    options = backend("ort_options").session_options(config)
    assert options.graph_optimization_level == getattr(ort.GraphOptimizationLevel, name)


def test_fitting_signature_is_accepted(backend: Any, session: ort.InferenceSession) -> None:
    """The small model fits its configuration, with and without its output named."""
    check = backend("ort_signature").check_signature
    check(session, CONFIG)
    check(session, {**CONFIG, "output": []})


@pytest.mark.parametrize(
    ("place", "change", "words"),
    [
        ("input", {"name": "picture"}, "unexpected inference input 'picture', allowed inputs are: image"),
        (
            "input",
            {"data_type": "TYPE_FP32"},
            "configuration expects datatype TYPE_FP32 for input 'image', model provides TYPE_UINT8",
        ),
        ("input", {"data_type": "TYPE_BF16"}, "unsupported datatype TYPE_BF16 for input 'image'"),
        ("input", {"dims": ["32", "-1", "3"]}, r"complete shape \[-1,32,-1,3\]"),
        ("input", {"optional": True}, "optional and ragged inputs are not served"),
        (
            "output",
            {"name": "probabilities"},
            "unexpected inference output 'probabilities', allowed outputs are: scores",
        ),
        (
            "output",
            {"dims": ["-1"]},
            r"\(shape \[-1,3\]\) but the model configuration specifies 2 dimensions",
        ),
        ("output", {"dims": ["3", "1"]}, "specifies 3 dimensions"),
    ],
)
def test_signatures_that_differ_are_refused(
    backend: Any, session: ort.InferenceSession, place: str, change: dict[str, Any], words: str
) -> None:
    """Names, types and dimensions are checked as the original does."""
    config = copy.deepcopy(CONFIG)
    config[place][0].update(change)
    signature = backend("ort_signature")
    with pytest.raises(signature.ConfigError, match=words):
        signature.check_signature(session, config)


def test_model_without_batch_dimension_cannot_batch(backend: Any, session: ort.InferenceSession) -> None:
    """With `max_batch_size: 0` the dimensions are complete; the model's free first one fits any number but the output's."""
    signature = backend("ort_signature")
    config = copy.deepcopy(CONFIG) | {"max_batch_size": 0}
    config["input"][0]["dims"] = ["4", "32", "32", "3"]
    config["output"][0]["dims"] = ["-1", "3"]
    signature.check_signature(session, config)
    config["output"][0]["dims"] = ["4", "3"]
    with pytest.raises(signature.ConfigError, match=r"specifies 2 dimensions \(shape \[4,3\]\)"):
        signature.check_signature(session, config)
