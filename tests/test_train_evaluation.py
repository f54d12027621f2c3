"""`python -m train evaluate`: any split, any data, any policy, with leaks and slices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.small_run import small_manifest, small_run
from train.__main__ import main
from train.evaluation import _notes
from train.model import load_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of random weights with its data."""
    return small_run(tmp_path_factory.mktemp("runs") / "run", image_size=32)


def test_own_split_is_judged(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run's own manifest, its test split, sliced by source: figures, slices and no leak."""
    assert main(["evaluate", str(run), "--split", "unseen", "--prevalence", "0.001"]) == 0
    found = json.loads((run / "evaluation.json").read_text())
    assert found["num_images"] == 8
    assert found["decisions"]["in_the_world"]["prevalence"] == 0.001
    assert set(found["labels"]) == {"circle", "star"}
    assert {"recall_at_1_percent_fpr", "calibration", "at_review", "at_block"} <= set(found["labels"]["star"])
    assert "reviews per million" in capsys.readouterr().out


def test_other_data_and_leaks(run: Path, tmp_path: Path) -> None:
    """The training images themselves are reported as leaks; other drawings are judged in whole."""
    assert main(["evaluate", str(run), "--split", "train", "--out", str(tmp_path / "a.json")]) == 0
    leaks = json.loads((tmp_path / "a.json").read_text())["leaks"]
    assert any("is the same file as" in leak for leak in leaks)
    other = small_manifest(tmp_path / "other", seed=7, num_groups=12, side=40)
    options = ["--data", str(other), "--split", "all", "--no-leaks", "--out", str(tmp_path / "b.json")]
    assert main(["evaluate", str(run), *options]) == 0
    assert json.loads((tmp_path / "b.json").read_text())["num_images"] == 24


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--split", "nowhere"), "no images in the split 'nowhere'; it has calibration"),
        (("--slices", "language"), "no column 'language'; it has group"),
        (("--prevalence", "2"), "prevalence must be between 0 and 1"),
        (("--data", "nowhere.csv"), "nowhere.csv does not exist"),
        (("--policy", "pyproject.toml"), "policy pyproject.toml cannot be used"),
    ],
)
def test_wrong_questions_are_explained(
    run: Path, options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence that names what there is."""
    assert main(["evaluate", str(run), *options]) == 1
    assert message in capsys.readouterr().err


def test_unknown_labels_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A label that the model was not taught is not silently a harmless image."""
    other = small_manifest(tmp_path, num_groups=4, side=32)
    other.write_text(other.read_text().replace("star", "moon"))
    assert main(["evaluate", str(run), "--data", str(other), "--split", "all"]) == 1
    assert "has the labels moon; the run knows circle, star" in capsys.readouterr().err


def test_what_is_not_known_of_the_data_is_noted(run: Path, tmp_path: Path) -> None:
    """A manifest that changed since training, and training data that are gone."""
    loaded, manifest = load_run(run), run / "data" / "manifest.csv"
    loaded.record["data"]["sha256"] = "0" * 64
    (changed,) = _notes(loaded, manifest, manifest, unknown_leaks=False)
    assert "has changed since the run was trained" in changed
    (gone,) = _notes(loaded, tmp_path / "other.csv", tmp_path / "gone.csv", unknown_leaks=True)
    assert "leaks were not looked for" in gone
