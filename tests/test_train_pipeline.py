"""Whole training runs on drawn shapes: files, determinism, kill and resume, and errors in plain words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from moderation_client.policy import Policy
from tests.small_run import small_manifest
from train.__main__ import main
from train.loop import Classifier
from train.model import load_run
from train.record import load_scores

ROOT = Path(__file__).parent.parent
SMALL = (
    "--image-size",
    "32",
    "--epochs",
    "3",
    "--precision",
    "float32",
    "--ema-decay",
    "0.9",
    "--accelerator",
    "cpu",
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred drawn shapes."""
    return small_manifest(tmp_path_factory.mktemp("shapes"), num_groups=100, side=32)


@pytest.fixture(scope="module")
def runs(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run, `first`."""
    folder = tmp_path_factory.mktemp("runs")
    assert train(folder, manifest, "first") == 0
    return folder


def train(runs: Path, manifest: Path, name: str, *more: str) -> int:
    """Train in this process; the command line's exit status."""
    return main(["--name", name, "--runs", str(runs), "--data", str(manifest), *SMALL, *more])


def results(run: Path) -> dict[str, Any]:
    """metrics.json without what a clock decides."""
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    found.pop("seconds")
    return found


def test_run_has_everything_and_learns(runs: Path) -> None:
    """All files are there, shapes are told apart, every figure has an interval, the page needs no network."""
    run = runs / "first"
    loaded = load_run(run)
    assert loaded.record["data"]["sha256"]
    assert loaded.spec.training_record is not None
    found = results(run)
    assert {sum(each) for each in loaded.spec.score_counts.values()} == {
        found["splits"]["test"]["num_images"]
    }
    for split in ("test", "unseen"):
        area = found["splits"][split]["auroc"]
        assert area["value"] > 0.9
        assert area["low"] <= area["value"] <= area["high"]
    assert set(found["frozen_features"]) == {"test", "unseen"}
    page = (run / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    assert 'src="http' not in page
    assert page.count("<svg") >= 4
    assert {path.name for path in (run / "logs").iterdir()} == {"csv", "tensorboard"}


def test_scores_file_is_what_the_model_says(runs: Path, manifest: Path) -> None:
    """scores.csv holds the loaded model's scores of the decoded views, the worst one of each image."""
    from train.data import in_split, read_manifest
    from train.scoring import image_logits, probabilities

    loaded = load_run(runs / "first")
    examples = in_split(read_manifest(manifest), "test")
    scores = probabilities(loaded.model, image_logits(loaded.model, examples, loaded.spec.image))
    kept = load_scores(runs / "first")["test"].scored.scores
    assert abs(kept - scores).max() < 1e-4


def test_too_few_examples_are_not_decided(runs: Path) -> None:
    """Twenty images prove nothing at the default targets: everything is reviewed, and the evidence says what is needed."""
    policy = Policy.load(runs / "first" / "policy.json")
    for threshold in policy.thresholds.values():
        assert (threshold.review, threshold.block) == (0.0, None)
        assert threshold.evidence["missed"]["num_needed_without_error"] == 59


def test_same_seed_gives_the_same_metrics(runs: Path, manifest: Path) -> None:
    """Twice the same seed: the same figures to the last digit; another seed: others."""
    assert train(runs, manifest, "again") == 0
    assert results(runs / "again") == results(runs / "first")
    assert train(runs, manifest, "other", "--seed", "1") == 0
    assert results(runs / "other") != results(runs / "first")


def test_killed_run_resumes_to_the_same_metrics(runs: Path, manifest: Path) -> None:
    """SIGKILL after the first epoch, --resume, and the figures are those of the unbroken run."""
    command = [
        sys.executable,
        "-m",
        "train",
        "--name",
        "killed",
        "--runs",
        str(runs),
        "--data",
        str(manifest),
        *SMALL,
    ]
    # Slow enough to be killed between two epochs: one image a step changes nothing that is compared.
    with (runs / "killed.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, **_threads()}
        )
        checkpoints = runs / "killed" / "checkpoints"
        deadline = time.monotonic() + 120.0
        while not list(checkpoints.glob("epoch-*.ckpt")) and process.poll() is None:
            assert time.monotonic() < deadline, (runs / "killed.log").read_text()
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    assert list(checkpoints.glob("epoch-*.ckpt"))
    (runs / "killed" / "metrics.json").unlink(missing_ok=True)
    assert train(runs, manifest, "killed", "--resume") == 0
    assert results(runs / "killed") == results(runs / "first")


def _threads() -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(torch.get_num_threads())}


def test_corrupt_checkpoint_is_explained(
    runs: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two checkpoints the broken one is passed over; when none can be read the error says to delete them."""
    assert train(runs, manifest, "broken") == 0
    folder = runs / "broken" / "checkpoints"
    *_, kept = sorted(folder.glob("epoch-*.ckpt"))
    (folder / "epoch-999.ckpt").write_bytes(kept.read_bytes()[:1000])
    assert train(runs, manifest, "broken", "--resume") == 0
    assert "trying the one before" in capsys.readouterr().out
    assert results(runs / "broken") == results(runs / "first")
    for path in folder.glob("epoch-*.ckpt"):
        path.write_bytes(b"broken")
    assert train(runs, manifest, "broken", "--resume") == 1
    assert "no checkpoint in" in capsys.readouterr().err


def test_loss_that_is_no_number_stops_training(
    runs: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A learning rate beyond all bounds ends with a sentence, not with a model of NaN."""
    status = train(
        runs, manifest, "diverged", "--learning-rate", "1e30", "--clip-norm", "0", "--ema-decay", "0"
    )
    assert status == 1
    assert "the loss became" in capsys.readouterr().err


def test_interrupt_gives_the_way_on(
    runs: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C within the training ends with the hint and the shell's status for it."""

    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Classifier, "training_step", pressed)
    handler = signal.getsignal(signal.SIGINT)
    try:
        assert train(runs, manifest, "interrupted", "--no-check", "--probe-epochs", "0") == 130
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning turns it off
    assert "go on with --resume" in capsys.readouterr().err


def test_best_epoch_is_kept_and_a_stopped_run_does_not_train_on(
    runs: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With patience the best epoch's weights are taken, by the run itself and by one that was killed before judging."""
    monkeypatch.setattr(Classifier, "training_step", worse_and_worse(Classifier.training_step))
    options = ("--patience", "1", "--ema-decay", "0", "--no-check", "--epochs", "9", "--freeze-norm")
    assert train(runs, manifest, "stopped", *options) == 0
    folder = runs / "stopped" / "checkpoints"
    (best,) = (folder / "best").glob("*.ckpt")
    assert len(list(folder.glob("epoch-*.ckpt"))) == 2
    assert max(folder.glob("epoch-*.ckpt")).name > best.name
    kept = torch.load(best, weights_only=True)["state_dict"]["model.head.bias"]
    assert torch.equal(load_run(runs / "stopped").model.head.bias, kept)
    first = results(runs / "stopped")
    assert train(runs, manifest, "stopped", *options, "--resume") == 0
    assert results(runs / "stopped") == first
    assert train(runs, manifest, "stopped", *options, "--resume", "--learning-rate", "1e-4") == 1


def worse_and_worse(step: Any) -> Any:
    """A training step that, from the second epoch on, turns the head around."""

    def turned(self: Classifier, batch: Any, batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = step(self, batch, batch_idx)
        return loss if self.current_epoch == 0 else -3.0 * loss

    return turned


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--epochs", "-1"), "epochs must be 0 or more, got -1"),
        (("--backbone", "resnet"), "backbone 'resnet' is not known"),
        (("--weights", "none.pth"), "none.pth cannot be read"),
        (("--data", "nowhere.csv"), "nowhere.csv does not exist"),
        (("--name", "a/b"), "must be a folder name"),
        (("--targets", "nowhere.toml"), "nowhere.toml cannot be read"),
    ],
)
def test_wrong_options_are_explained(
    runs: Path, manifest: Path, options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 1 and one sentence that names the value."""
    assert train(runs, manifest, "wrong", *options) == 1
    assert message in capsys.readouterr().err


def test_multiclass_run_trains(runs: Path, manifest: Path) -> None:
    """Classes that exclude each other: harmless images become `neutral`, scores sum to one, neutral is not moderated."""
    lines = manifest.read_text().replace("circle;star", "star").splitlines()
    other = manifest.with_name("multiclass.csv")
    other.write_text("\n".join(lines) + "\n")
    assert train(runs, other, "classes", "--task", "multiclass", "--loss", "focal", "--mixup", "0.2") == 0
    loaded = load_run(runs / "classes")
    assert loaded.spec.labels == ("circle", "neutral", "star")
    assert set(loaded.policy.thresholds) == {"circle", "star"}
    scores = load_scores(runs / "classes")["test"].scored.scores
    assert abs(scores.sum(1) - 1.0).max() < 1e-4


def test_side_task_is_learnt_along_and_thrown_away(
    runs: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second head learns a column; the model that is written has no trace of it; an unknown column is named."""
    assert train(runs, manifest, "side", "--side-task", "name") == 0
    assert load_run(runs / "side").spec.labels == ("circle", "star")
    assert results(runs / "side") != results(runs / "first")
    assert train(runs, manifest, "wrong", "--side-task", "kind") == 1
    assert "no column 'kind'" in capsys.readouterr().err


def test_full_disk_is_explained(runs: Path, manifest: Path) -> None:
    """A checkpoint that cannot be written ends with the reason and with where the last good one is."""
    command = [
        sys.executable,
        "-m",
        "train",
        "--name",
        "full",
        "--runs",
        str(runs),
        "--data",
        str(manifest),
        *SMALL,
    ]
    limited = [
        "bash",
        "-c",
        'ulimit -f 30000; exec "$@"',
        "bash",
        *command,
    ]  # 30 MB: the start fits, a checkpoint does not
    done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "error: training stopped: " in done.stderr
    assert "the last good checkpoint is in" in done.stderr
