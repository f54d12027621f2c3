"""Lint rules about files: version folders that Triton ignores or half has, checksums, links, and what the repository shows."""

from __future__ import annotations

import json
import re
from pathlib import Path

from export.findings import Findings
from export.version import MANIFEST, verify_version

VERSION = re.compile(r"[1-9]\d*|0")
OTHER_FOLDERS = {"configs", "warmup", "initial_state", "deployment"}
"""Folders beside the versions that mean something to Triton."""
PARTIAL_SUFFIXES = (".part", ".partial", ".tmp", ".crdownload", ".swp", "~")


def check_versions(model: Path, findings: Findings) -> None:
    """Look at every folder of a model, and at the files in those that are versions."""
    folders = [each for each in sorted(model.iterdir()) if each.is_dir()]
    versions = [each for each in folders if VERSION.fullmatch(each.name)]
    if not versions:
        findings.error(
            model, "", "it has no version folder, so nothing can be loaded", "put the model into `1/`"
        )
    for each in folders:
        if each not in versions and each.name not in OTHER_FOLDERS:
            why = "starts with 0" if each.name.isdecimal() else "is not a number"
            findings.warning(
                each, "", f"Triton ignores this folder: its name {why}", "rename it or remove it"
            )
    for each in versions:
        _check_version(each, findings)


def _check_version(version: Path, findings: Findings) -> None:
    files = [each for each in sorted(version.rglob("*")) if each.is_file()]
    for each in files:
        if each.name.endswith(PARTIAL_SUFFIXES):
            findings.error(each, "", "looks like a copy that was cut short", "copy it again or remove it")
        elif each.stat().st_size == 0 and each.name != ".gitkeep":
            findings.error(each, "", "is empty", "copy it again or remove it")
    if (version / MANIFEST).is_file():
        for problem in verify_version(version):
            findings.error(version, "", problem, "publish the version again, or remove its folder")
    if (version / "model.onnx").is_dir() and not (version / "model.onnx" / "model.onnx").exists():
        findings.error(
            version / "model.onnx", "", "is a folder without model.onnx in it", "put the file there"
        )


def check_exposure(model: Path, findings: Findings) -> None:
    """Say what leaves the folder, or shows to whoever may read it."""
    for each in sorted(model.rglob("*")):
        if each.is_symlink():
            findings.warning(
                each, "", "is a link: what is served can change without a publish", "copy the file"
            )
    for manifest in sorted(model.glob(f"*/{MANIFEST}")):
        try:
            golden = json.loads(manifest.read_bytes())["record"]["golden"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a manifest of another kind, or one that check_versions has named already
        if golden == "real":
            findings.note(
                manifest.with_name("golden.npy"),
                "",
                "holds real held-out images for self-tests",
                "publish with --golden synthetic where they must not be kept",
            )
