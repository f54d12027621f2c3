"""A repository that holds anything but what was published into it is refused before anything of it is loaded."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf import text_format

from serve.admin import Admin
from serve.config import ServerConfig
from serve.errors import AdminError, UnsafeRepositoryError
from serve.repository import models
from serve.server import TritonServer
from tests.conftest import StartServer
from tests.small_model import add_version, small_config

MakeRepository = Callable[..., Path]


def test_changed_model_file_is_refused(repository_factory: MakeRepository, start_triton: StartServer) -> None:
    """A model file whose sha256 is not the published one is refused at start, and also when it is loaded later."""
    repository = repository_factory()
    server = start_triton(repository, load_models=("moderation",))
    model = add_version(repository, 2) / "model.onnx"
    model.write_bytes(model.read_bytes() + b"\0")
    with pytest.raises(UnsafeRepositoryError, match=r"2/model.onnx has sha256 .* was published"):
        TritonServer(ServerConfig(repository=repository)).start()
    with pytest.raises(AdminError, match="has sha256"):
        Admin(server.http_url, server.admin_headers).load("moderation")
    assert server.process.poll() is None


@pytest.mark.parametrize("kind", ["link", "file name", "missing", "unlisted", "model name"])
def test_repository_tricks_are_refused(repository_factory: MakeRepository, tmp_path: Path, kind: str) -> None:
    """Links, file names that lead out of the model's folder, files that were not published and odd names are refused."""
    config = small_config()
    if kind == "file name":
        config.default_model_filename = "../../../etc/model.onnx"
    repository = repository_factory(config=config)
    version = repository / "moderation" / "1"
    if kind == "link":
        outside = tmp_path / "outside.onnx"
        shutil.move(version / "model.onnx", outside)
        (version / "model.onnx").symlink_to(outside)
    elif kind == "unlisted":
        shutil.copy(version / "model.onnx", version / "other.onnx")
    elif kind == "missing":
        (version / "manifest.json").write_text(json.dumps({"files": {"other.onnx": "0" * 64}}))
    elif kind == "model name":
        shutil.copytree(repository / "moderation", repository / "bad name")
    with pytest.raises(UnsafeRepositoryError):
        TritonServer(ServerConfig(repository=repository)).start()


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        "libtriton_onnxruntime.so",
        "1/libtriton_onnxruntime.so.1",
        "1/model.py",
        "1/triton_python_backend_stub",
    ],
)
def test_code_beside_a_model_is_refused(repository_factory: MakeRepository, name: str, listed: bool) -> None:
    """Triton would load a library or a script out of the model's folder before the one of its installation."""
    model = repository_factory() / "moderation"
    (model / name).write_bytes(b"anything")
    manifest = model / "1" / "manifest.json"
    if listed:
        files = json.loads(manifest.read_text())["files"]
        files[Path(name).name] = hashlib.sha256(b"anything").hexdigest()
        manifest.write_text(json.dumps({"files": files}))
    else:
        manifest.unlink()
    with pytest.raises(UnsafeRepositoryError, match=f"{name} is code"):
        models(model.parent)


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ('backend: "python"', "backend is 'python'"),
        ('backend: "../moderation/1"', "backend is "),
        ('backend: ""', "backend is ''"),
        ('backend: "" platform: "pytorch_libtorch"', "platform 'pytorch_libtorch'"),
        ('runtime: "libother.so"', "runtime"),
        ('parameters { key: "EXECUTION_ENV_PATH" value { string_value: "/tmp/x.tar.gz" } }', "EXECUTION_ENV"),
        ('model_operations { op_library_filename: "operators" }', "op_library_filename"),
        ('model_repository_agents { agents { name: "relocation" } }', "model_repository_agents"),
    ],
)
def test_configuration_that_runs_other_code_is_refused(
    repository_factory: MakeRepository, line: str, field: str
) -> None:
    """A configuration may name our two backends and nothing else that is run; the error names file and field."""
    repository = repository_factory()
    config = small_config()
    config.ClearField("backend")
    text = text_format.MessageToString(config)
    backend = "" if line.startswith("backend") else 'backend: "onnxruntime"'
    (repository / "moderation" / "config.pbtxt").write_text(f"{text}\n{backend}\n{line}\n")
    with pytest.raises(UnsafeRepositoryError, match=rf"config\.pbtxt: .*{field}"):
        models(repository)


def test_old_word_for_the_backend_is_no_other_code(repository_factory: MakeRepository) -> None:
    """`platform: "onnxruntime_onnx"` means the same backend."""
    config = small_config()
    config.ClearField("backend")
    config.platform = "onnxruntime_onnx"
    assert models(repository_factory(config=config)) == ("moderation", "moderation_encoded")
