"""No code out of a model folder: Triton looks for a backend's library in the version folder and in the model's before its own.

A library, script or stub that lies there, or a configuration that asks for another backend, an environment or an operator library,
would run with the server's rights as soon as the model is loaded. What is not published by `python -m export` is refused here; a file
that a version's manifest does not list, too.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from serve.backends.onnxruntime.ort_manifest import MANIFEST
from serve.errors import UnsafeRepositoryError

_CODE = re.compile(r".*\.so(\.\d+)*|.*\.py[cod]?|triton_python_backend_stub.*", re.IGNORECASE)
"""What Triton or its Python backend would run: libraries, scripts, the program that runs scripts."""
_BACKENDS = ("onnxruntime", "moderation_encoded")
_PLATFORM = "onnxruntime_onnx"
"""An old word for the first backend."""
_RUNNING_FIELDS = ("runtime", "model_repository_agents", "ensemble_scheduling")
_ENVIRONMENT = "EXECUTION_ENV_PATH"


def refuse_files(model: Path) -> None:
    """Raise UnsafeRepositoryError for the first file below a model's folder that a server could run."""
    for path in sorted(model.rglob("*")):
        if _CODE.fullmatch(path.name):
            raise UnsafeRepositoryError(
                f"{path} is code, and Triton would run it when the model is loaded: remove it; backends come from the "
                "server's installation"
            )


def refuse_fields(path: Path, config: Any) -> None:
    """Raise UnsafeRepositoryError for a configuration that has something run which the installation does not bring."""
    backend = config.backend or {_PLATFORM: _BACKENDS[0]}.get(config.platform, "")
    if backend not in _BACKENDS:
        named = (
            f"platform {config.platform!r}"
            if config.platform and not config.backend
            else f"{config.backend!r}"
        )
        raise UnsafeRepositoryError(
            f'{path}: backend is {named}, but only {" and ".join(_BACKENDS)} are run: write backend: "onnxruntime" for '
            "an ONNX model, or start tritonserver yourself for a repository that you trust"
        )
    given = {field.name for field, _ in config.ListFields()}
    wrong = [name for name in _RUNNING_FIELDS if name in given]
    wrong += [f"parameters[{key!r}]" for key in config.parameters if key.upper() == _ENVIRONMENT]
    if config.model_operations.op_library_filename:
        wrong.append("model_operations.op_library_filename")
    if wrong:
        raise UnsafeRepositoryError(f"{path}: {wrong[0]} would have the server run other code: remove it")


def refuse_unlisted(version: Path) -> None:
    """Raise UnsafeRepositoryError for a file that is not in the version's manifest, where it has one."""
    manifest = version / MANIFEST
    if not manifest.is_file():
        return
    listed = set(json.loads(manifest.read_text(encoding="utf-8"))["files"])
    for path in sorted(version.rglob("*")):
        name = path.relative_to(version).as_posix()
        if path.is_file() and name != MANIFEST and name not in listed:
            raise UnsafeRepositoryError(
                f"{path} is not in {manifest}: it was not published; remove it, or publish the version again"
            )
