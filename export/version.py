"""One published version of a model: a folder that never changes after it was published, and the manifest that proves it.

<version>/model.onnx, model_int8.onnx ...   the variants that passed
<version>/spec.json, policy.json            what callers must know; the policy only when its owner lets it travel
<version>/golden.npy                        uint8 [N, H, W, 3]: images whose scores every load is checked against
<version>/manifest.json                     sha256 of all of these, golden scores, figures, where it came from
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from export.errors import RepositoryError
from export.session import CpuAccelerator
from export.source import Pixels, Scores
from moderation_client import ContractError, ModelSpec, Policy, PolicyError
from moderation_client.contract import ENCODED_MODEL_NAME

MANIFEST, SPEC, POLICY, GOLDEN = "manifest.json", "spec.json", "policy.json", "golden.npy"
MANIFEST_SCHEMA_VERSION = 1
RESERVED_NAMES = {ENCODED_MODEL_NAME}
FP16_FILE = "model_fp16.onnx"


@dataclass(frozen=True, kw_only=True)
class Version:
    """What a version folder holds."""

    path: Path
    spec: ModelSpec
    policy: Policy | None
    cpu_file: str
    """Variant that CPU instances run."""
    gpu_file: str
    """Variant that GPU instances run."""
    cpu_accelerator: CpuAccelerator = "none"
    """What CPU instances run it with: it was measured with that, and its golden scores are of that."""
    target: str
    """Triton release it was made for."""
    golden_scores: Mapping[str, Scores]
    """File name -> float32 [N, num_labels] for the golden images."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """Source, time, gates, figures."""

    @property
    def number(self) -> int:
        """The version."""
        assert self.spec.version is not None
        return self.spec.version

    def golden(self) -> Pixels:
        """Golden images, uint8 [N, H, W, 3]."""
        return np.asarray(np.load(self.path / GOLDEN, allow_pickle=False))


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def accelerator_of(file_name: str, wanted: CpuAccelerator) -> CpuAccelerator:
    """What scores a file here when CPUs are to run with `wanted`: FP16 is for GPUs, and is only compared on a CPU."""
    return "none" if file_name == FP16_FILE else wanted


def cpu_accelerator(folder: Path) -> CpuAccelerator:
    """What CPUs are to run a version with; `none` where somebody else made the folder."""
    try:
        return _known(json.loads((folder / MANIFEST).read_bytes())["cpu_accelerator"])
    except (OSError, ValueError, KeyError, TypeError):
        return "none"


def _known(name: object) -> CpuAccelerator:
    """Raises ValueError for a word that is no accelerator."""
    if name not in get_args(CpuAccelerator):
        raise ValueError(
            f"cpu_accelerator must be one of {', '.join(get_args(CpuAccelerator))}, got {name!r}"
        )
    return cast("CpuAccelerator", name)


def write_version(version: Version, golden: Pixels) -> None:
    """Write everything but the variants, which must lie in `version.path` already; the manifest last."""
    folder = version.path
    (folder / SPEC).write_text(version.spec.to_json() + "\n")
    if version.policy is not None:
        (folder / POLICY).write_text(version.policy.to_json(indent=1) + "\n")
    np.save(folder / GOLDEN, golden)
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)
    manifest = {
        "schema_version": MANIFEST_SCHEMA_VERSION,
        "version": version.number,
        "files": {path.name: sha256_of(path) for path in files},
        "cpu_file": version.cpu_file,
        "gpu_file": version.gpu_file,
        "cpu_accelerator": version.cpu_accelerator,
        "target_triton": version.target,
        "golden_scores": {name: scores.tolist() for name, scores in version.golden_scores.items()},
        "record": version.record,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n")


def read_version(folder: Path) -> Version:
    """Read a version folder. Raises RepositoryError that names the file at fault; hashes are for `verify_version`."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if manifest["schema_version"] != MANIFEST_SCHEMA_VERSION:
            raise RepositoryError(
                f"{folder / MANIFEST} has schema_version {manifest['schema_version']!r}, this program reads "
                f"{MANIFEST_SCHEMA_VERSION}"
            )
        return Version(
            path=folder,
            spec=ModelSpec.from_json((folder / SPEC).read_bytes()),
            policy=Policy.load(folder / POLICY) if POLICY in manifest["files"] else None,
            cpu_file=manifest["cpu_file"],
            gpu_file=manifest["gpu_file"],
            cpu_accelerator=_known(manifest.get("cpu_accelerator", "none")),
            target=manifest["target_triton"],
            golden_scores={k: np.array(v, np.float32) for k, v in manifest["golden_scores"].items()},
            record=manifest["record"],
        )
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, ContractError, PolicyError,
    ) as error:  # fmt: skip
        raise RepositoryError(f"version folder {folder} is not readable as published: {error!r}") from error


def verify_version(folder: Path) -> list[str]:
    """Say what differs from the manifest, one sentence for each file; empty when all is as published."""
    try:
        expected = published_files(folder)
    except RepositoryError as error:
        return [str(error)]
    found = {path.name for path in folder.iterdir() if path.name != MANIFEST}
    problems = [f"{folder / name} is missing" for name in sorted(set(expected) - found)]
    problems += [f"{folder / name} was not published" for name in sorted(found - set(expected))]
    for name in sorted(found & set(expected)):
        if not (folder / name).is_file():
            problems.append(f"{folder / name} is no file")
        elif sha256_of(folder / name) != expected[name]:
            problems.append(f"{folder / name} is not what was published (sha256 differs)")
    return problems


def published_files(folder: Path) -> dict[str, str]:
    """File name -> sha256, as the manifest has it. Raises RepositoryError for one that is not of this program."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise RepositoryError(f"{folder / MANIFEST} cannot be read: {error!r}") from error
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not all(isinstance(each, str) for each in files.values()):
        raise RepositoryError(
            f'{folder / MANIFEST} cannot be read: "files" must give the sha256 of each file by its name, '
            "and serve loads nothing beside a manifest of another kind"
        )
    return files
