"""The wheel as a stranger has it: in an environment of its own, with nothing but what it asks for, it passes the calls' tests."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = ("client_shells.py", "client_fixtures.py", "test_client_calls.py", "test_client_encoded.py")


def run(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """One command of the stranger's."""
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=folder)


def test_calls_pass_in_a_fresh_environment_without_torch(tmp_path: Path) -> None:
    """No checkout on the path, no torch, the newest NumPy and Pillow: what both clients do is the same."""
    made = run(sys.executable, "-m", "venv", str(tmp_path / "venv"), folder=tmp_path)
    assert made.returncode == 0, made.stderr
    python = str(tmp_path / "venv" / "bin" / "python")
    installed = run(python, "-m", "pip", "install", "-q", f"{ROOT}[http]", "pytest", folder=tmp_path)
    if installed.returncode and "No matching distribution" in installed.stderr:
        pytest.skip("no package index can be reached")
    assert installed.returncode == 0, installed.stderr
    (tmp_path / "tests").mkdir()
    for name in FILES:
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests")
    (tmp_path / "conftest.py").write_text("from tests.client_fixtures import *\n")
    tested = run(
        python, "-m", "pytest", "-q", "-W", "error", "--rootdir", str(tmp_path), "tests", folder=tmp_path
    )
    assert tested.returncode == 0, tested.stdout
    found = run(python, "-c", "import importlib.util as u; print(u.find_spec('torch'))", folder=tmp_path)
    assert found.stdout.strip() == "None"
