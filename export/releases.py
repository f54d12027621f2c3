"""Which ONNX and which config fields a Triton release reads: decides what may be published for `--target-triton`."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomllib

from export.errors import TargetError

DEFAULT_TARGET = "24.10"
"""The release embedded in the pip-installable server; what it loads, everything since loads."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """What one Triton release reads."""

    name: str
    """Container version, `YY.MM`."""
    onnxruntime: str
    """ONNX Runtime inside its backend."""
    max_ir: int
    """Newest ONNX IR version."""
    max_opset: int
    """Newest opset of the default domain."""


@functools.cache
def _table() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "triton_releases.toml").read_text())


def release_of(name: str) -> Release:
    """Look a container version (`YY.MM`) up. Raises TargetError when it is malformed or older than the table."""
    if not re.fullmatch(r"\d\d\.(0[1-9]|1[0-2])", name):
        raise TargetError(f"target Triton release {name!r} is not of the form YY.MM, 24.10 for example")
    rows = [row for row in _table()["release"] if row["first"] <= name]
    if not rows:
        oldest = _table()["release"][0]["first"]
        raise TargetError(f"Triton {name} is older than the release table, which begins at {oldest}")
    row = rows[-1]
    return Release(
        name=name, onnxruntime=row["onnxruntime"], max_ir=row["max_ir"], max_opset=row["max_opset"]
    )


def first_release_reading(*, ir: int, opset: int) -> str | None:
    """First release that reads this IR version and opset; None when none in the table does."""
    rows = (row for row in _table()["release"] if row["max_ir"] >= ir and row["max_opset"] >= opset)
    return next((row["first"] for row in rows), None)


def fields_unknown_to(name: str) -> dict[str, str]:
    """Config fields (paths of names) that release `name` cannot parse -> the first release that can."""
    release_of(name)
    return {field: since for field, since in _table()["fields"].items() if since > name}
