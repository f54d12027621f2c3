"""What a pushed model may consist of: what `publish` writes, and what a platform may add to it.

A server runs more than it is told to (a library beside a model, a script in a version folder), so nothing else is sent or taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from export.config_pbtxt import read_config
from export.errors import RepositoryError, TransferError
from export.repository import ModelFolder
from export.version import GOLDEN, MANIFEST, POLICY, RESERVED_NAMES, SPEC, verify_version
from moderation_client.contract import ENCODED_MODEL_NAME

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
DIGEST = re.compile(r"[0-9a-f]{64}")
_IN_VERSION = "|".join([*map(re.escape, (MANIFEST, SPEC, POLICY, GOLDEN)), r"\w+\.onnx"])
MODEL_FILE = re.compile(
    rf"state\.json|config\.pbtxt|configs/(cpu|gpu)\.pbtxt|warmup/golden_\d+|[1-9]\d*/({_IN_VERSION})"
)
ENCODED_FILE = re.compile(r"config\.pbtxt|1/README|([\w-]+/)*[\w-]+\.json")
"""A platform's own policy is JSON and may lie in a folder of its own."""


def check_index(payload: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """Model name, and path -> sha256. Raises TransferError for an index that names anything else."""
    model, files = payload.get("model"), payload.get("files")
    if not isinstance(model, str) or not NAME.fullmatch(model) or model in RESERVED_NAMES:
        raise TransferError(f"the index names the model {model!r}, which is no name of a published model")
    if not isinstance(files, dict) or not all(map(_is_digest, files.values())):
        raise TransferError('the index is not usable: "files" must give the sha256 of each file by its path')
    refuse(files, model)
    return model, files


def refuse(paths: Iterable[str], model: str) -> None:
    """Raise TransferError for the first path that is no file of a published model."""
    for path in paths:
        first, _, rest = path.partition("/")
        rule = {model: MODEL_FILE, ENCODED_MODEL_NAME: ENCODED_FILE}.get(first)
        if rule is None or not rule.fullmatch(rest):
            leads_out = " (it leads out of the repository)" if ".." in Path(path).parts else ""
            raise TransferError(
                f"{path} is no file of a published model{leads_out}: a server could load it; remove it"
            )


def check_model(repository: Path, model: str) -> None:
    """Check versions against their manifests, and configurations for what they have a server run. Raises RepositoryError."""
    problems = [
        problem
        for each in ModelFolder(repository, model).versions.values()
        for problem in verify_version(each.path)
    ]
    if problems:
        raise RepositoryError("; ".join(problems))
    for name, backend in ((model, "onnxruntime"), (ENCODED_MODEL_NAME, ENCODED_MODEL_NAME)):
        for path in [repository / name / "config.pbtxt", *(repository / name).glob("configs/*.pbtxt")]:
            if path.is_file():
                _check_config(path, backend)


def _check_config(path: Path, backend: str) -> None:
    config = read_config(path)
    others = [name for name in ("platform", "runtime", "model_repository_agents") if _given(config, name)]
    if config.backend != backend or others:
        what = others[0] if others else "backend"
        raise RepositoryError(
            f"{path} sets {what} to what export does not write: expected backend {backend!r} alone"
        )


def _given(config: Any, name: str) -> bool:
    return any(field.name == name for field, _ in config.ListFields())


def _is_digest(text: object) -> bool:
    return isinstance(text, str) and DIGEST.fullmatch(text) is not None
