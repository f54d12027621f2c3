"""A run of ours, from the checkpoint to the repository by the command that people type."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export.command import main
from export.listing import rows
from export.publish import publish
from tests.small_export import quick_config, small_source
from tests.small_run import small_run


def test_run_is_published_by_the_short_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """PyTorch's exporter, parity at batch 1, 2 and the largest, INT8 beside FP32, report in the run's folder."""
    run = small_run(tmp_path / "run", image_size=32)
    repository = tmp_path / "repository"
    words = [str(run), "--repository", str(repository), "--probe", "in_process", "--max-batch-size", "4"]
    assert main([*words, "--gates.int8.min-agreement", "0", "--gates.int8.max-score-shift", "1"]) == 0
    parity = json.loads((run / "export" / "parity.json").read_text())
    fp32 = parity["variants"]["fp32"]
    assert set(fp32["batch_shift"]) == {"1", "2", "4"}
    assert max(fp32["batch_shift"].values()) <= 1e-3
    assert fp32["shift"]["max"] <= 1e-3
    assert parity["variants"]["int8"]["notes"]["trials"]
    assert [row.version for row in rows(repository)] == [1]
    assert b"/site-packages/" not in (repository / "moderation" / "1" / "model.onnx").read_bytes()
    assert main(["list", str(repository)]) == 0
    assert main(["verify", str(repository)]) == 0
    assert main(["rollback", str(repository)]) == 1
    assert "no version was active before" in capsys.readouterr().err


def test_what_is_no_run_is_an_error_that_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder without a training record, and a record whose manifest is gone."""
    assert main([str(tmp_path)]) == 1
    assert "python -m train" in capsys.readouterr().err
    run = small_run(tmp_path / "run", image_size=32)
    (tmp_path / "run" / "data" / "manifest.csv").unlink()
    assert main([str(run)]) == 1
    assert "manifest" in capsys.readouterr().err


def test_list_says_what_runs_a_version_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The accelerator stands beside the file that it runs; without one, the file alone."""
    publish(small_source(tmp_path / "s"), quick_config(tmp_path / "r"))
    assert main(["list", str(tmp_path / "r")]) == 0
    assert "(openvino)" not in capsys.readouterr().out
    manifest = tmp_path / "r" / "moderation" / "1" / "manifest.json"
    record = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(record | {"cpu_accelerator": "openvino"}))
    assert main(["list", str(tmp_path / "r")]) == 0
    assert f"{record['cpu_file']} (openvino)" in capsys.readouterr().out
