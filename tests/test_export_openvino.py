"""Publishing for Intel's OpenVINO: measured with it, served with it, and never mistaken for ONNX Runtime's own arithmetic."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import onnxruntime as ort
import pytest

from export.config_pbtxt import read_config
from export.errors import GraphError, RepositoryError
from export.gates import Gates, Limits
from export.golden import TOLERANCE, check_golden
from export.lint import lint
from export.openvino import add_openvino, devices
from export.operations import configure
from export.publish import PublishConfig, publish
from export.repository import ModelFolder
from export.serving import Serving
from export.variants import VariantConfig
from export.version import Version, read_version
from serve.config import ServerConfig
from serve.server import TritonServer
from tests.small_export import quick_config, small_source

pytest.importorskip(
    "onnxruntime_ep_openvino", reason="needs the package onnxruntime-ep-openvino (Linux x86-64)"
)
if not devices():
    pytest.skip("OpenVINO's plugin supports Intel CPUs only", allow_module_level=True)
ANYTHING = Limits(max_score_shift=1.0, min_agreement=0.0, max_ap_drop=1.0)
OPENVINO = VariantConfig(gates=Gates(int8=ANYTHING), max_batch_size=8, cpu_accelerator="openvino")


def active(repository: Path) -> Version:
    """Version that answers."""
    folder = ModelFolder(repository)
    assert folder.state is not None
    return folder.get(folder.state.active)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Repository with a version that the real server proved on OpenVINO."""
    folder = tmp_path_factory.mktemp("openvino")
    publish(small_source(folder), quick_config(folder / "repository", variants=OPENVINO, probe="server"))
    return folder / "repository"


def test_version_says_what_runs_it_and_the_gpu_is_left_alone(published: Path) -> None:
    """The accelerator stands in the manifest and in the CPU's configuration, and lint has nothing against it."""
    assert active(published).cpu_accelerator == "openvino"
    accelerators = {
        name: [
            each.name
            for each in read_config(
                published / "moderation" / name
            ).optimization.execution_accelerators.cpu_execution_accelerator
        ]
        for name in ("config.pbtxt", "configs/cpu.pbtxt", "configs/gpu.pbtxt")
    }
    assert accelerators == {
        "config.pbtxt": ["openvino"],
        "configs/cpu.pbtxt": ["openvino"],
        "configs/gpu.pbtxt": [],
    }
    assert [each for each in lint(published) if each.severity == "error"] == []


def test_server_runs_it_on_openvino_and_gives_its_golden_scores(published: Path) -> None:
    """The process that runs the model has OpenVINO's library for CPUs in it."""
    config = ServerConfig(
        repository=published, load_models=("moderation",), http_port=0, grpc_port=0, metrics_port=0
    )
    with TritonServer(config) as server:
        assert check_golden(server.grpc_url, active(published)) <= TOLERANCE
        maps = [Path(f"/proc/{pid}/maps").read_text() for pid in server.pids()[1:]]
    assert maps
    assert all("libopenvino_intel_cpu_plugin" in each for each in maps)


def test_whole_graph_runs_on_openvino(published: Path) -> None:
    """Nothing is left to ONNX Runtime's own code: the session may not fall back on it."""
    for name in ("model.onnx", "model_int8.onnx"):
        options = ort.SessionOptions()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        add_openvino(options)
        ort.InferenceSession(str(active(published).path / name), options)


def test_server_and_export_ask_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What measures a version and what serves it are two programs, with one set of options."""

    class Options:
        intra_op_num_threads = 3

        def add_provider_for_devices(self, _devices: object, settings: dict[str, str]) -> None:
            asked.append(settings)

    asked: list[dict[str, str]] = []
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "serve" / "backends" / "onnxruntime")
    for add in (add_openvino, importlib.import_module("ort_openvino").add_openvino):
        add(Options())
    assert asked[0] == asked[1]
    assert "3" in asked[0]["load_config"]


def test_another_makers_cpu_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin finds no device there; nothing is published."""
    monkeypatch.setattr("export.openvino.devices", list)
    with pytest.raises(GraphError, match=r"Intel's.*--cpu-accelerator none"):
        publish(small_source(tmp_path / "s"), quick_config(tmp_path / "repository", variants=OPENVINO))


def test_manifest_of_an_earlier_release_has_none(published: Path, tmp_path: Path) -> None:
    """And a word that is no accelerator is refused, instead of being measured with one thing and served with another."""
    folder = Path(shutil.copytree(active(published).path, tmp_path / "1"))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "cpu_accelerator": "fast"}))
    with pytest.raises(RepositoryError, match="fast"):
        read_version(folder)
    del manifest["cpu_accelerator"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert read_version(folder).cpu_accelerator == "none"


def test_settings_keep_the_accelerator(published: Path, tmp_path: Path) -> None:
    """`configure` leaves it as it was measured; a version beside it must have the same."""
    repository = tmp_path / "repository"
    shutil.copytree(published, repository)
    configure(repository, Serving(max_queue_delay_us=100))
    config = read_config(repository / "moderation" / "config.pbtxt")
    assert len(config.optimization.execution_accelerators.cpu_execution_accelerator) == 1
    configure(repository, Serving(also_load=(1,)))
    with pytest.raises(RepositoryError, match="CPU accelerator"):
        publish(
            small_source(tmp_path / "s", seed=5),
            PublishConfig(
                repository=repository,
                probe="in_process",
                report=tmp_path / "report",
                variants=VariantConfig(gates=Gates(int8=ANYTHING), max_batch_size=8),
            ),
        )


def test_without_the_package_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is published."""
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_openvino", None)
    repository = tmp_path / "repository"
    with pytest.raises(GraphError, match=r"onnxruntime-ep-openvino.*--cpu-accelerator none"):
        publish(small_source(tmp_path / "s"), quick_config(repository, variants=OPENVINO))
    assert not (repository / "moderation").exists()


def test_lint_knows_which_accelerators_there_are(published: Path, tmp_path: Path) -> None:
    """Another name is an error: the server would refuse the model."""
    repository = tmp_path / "repository"
    shutil.copytree(published, repository)
    path = repository / "moderation" / "configs" / "cpu.pbtxt"
    path.write_text(path.read_text().replace('"openvino"', '"openvin"'))
    assert any("use openvino" in str(each) for each in lint(repository))
