"""Manifests, folders and Parquet tables: what is read, and what is refused with its row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from train.data import SPLITS, ignored_files, in_split, label_names, read_manifest, targets
from train.errors import DataError


def write(folder: Path, text: str) -> Path:
    """Write a manifest."""
    path = folder / "manifest.csv"
    path.write_text(text)
    return path


def test_csv_manifest_is_read_in_order(tmp_path: Path) -> None:
    """Labels are separated by semicolons, empty means harmless, further columns are kept for slices."""
    path = write(
        tmp_path,
        "path,labels,group,split,weight,source,language\na.png,star;circle,g1,train,2,x,en\nb.png,,g2,test,,y,de\n",
    )
    first, second = read_manifest(path)
    assert (first.path, first.labels, first.weight) == (tmp_path / "a.png", ("circle", "star"), 2.0)
    assert (second.labels, second.weight, second.split) == ((), 1.0, "test")
    assert second.columns == {"language": "de"}
    assert label_names([first, second]) == ("circle", "star")
    np.testing.assert_array_equal(targets([first, second], ("circle", "star")), [[1, 1], [0, 0]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,group\na.png,g\n", "lacks the column.*labels"),
        ("path,labels\n,star\n", "row 2: path is empty"),
        ("path,labels,group\na.png,star\n", None),
        ("path,labels\na.png,star,extra\n", "row 2: has not as many fields"),
        ("path,labels,weight\na.png,star,heavy\n", "row 2: weight 'heavy' is not a number"),
        ("path,labels,weight\na.png,star,-1\n", "row 2: weight must be 0 or more"),
        ("path,labels\n", "has no rows"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, text: str, message: str | None) -> None:
    """Every refusal names the row as an editor numbers it; a short row means empty fields at its end."""
    path = write(tmp_path, text)
    if message is None:
        assert read_manifest(path)[0].labels == ("star",)
        return
    with pytest.raises(DataError, match=message):
        read_manifest(path)


def test_missing_manifest_says_how_to_make_one(tmp_path: Path) -> None:
    """The error has the command that builds the demo's data."""
    with pytest.raises(DataError, match=r"python -m train\.illustrated"):
        read_manifest(tmp_path / "none.csv")


def test_splits_are_assigned_by_group_and_stay(tmp_path: Path) -> None:
    """Without a split column groups are spread by a hash: none straddles, and new rows move nobody."""
    rows = [f"{index}.png,,g{index // 3}" for index in range(900)]
    examples = read_manifest(write(tmp_path, "path,labels,group\n" + "\n".join(rows) + "\n"))
    of_group = {example.group: example.split for example in examples}
    assert all(of_group[example.group] == example.split for example in examples)
    shares = [len(in_split(examples, split)) / 900 for split in SPLITS]
    assert 0.5 < shares[0] < 0.7
    assert min(shares) > 0.03
    fewer = read_manifest(write(tmp_path, "path,labels,group\n" + "\n".join(rows[::2]) + "\n"))
    assert all(of_group[example.group] == example.split for example in fewer)


def folders(root: Path, *names: str) -> Path:
    """Put small images into class folders."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name)
    return root


def test_class_folders_are_read(tmp_path: Path) -> None:
    """root/label/file; `neutral` means harmless; other files are told of; a stray image is an error."""
    root = folders(tmp_path / "d", "star/1.png", "neutral/2.png")
    found = {example.path.name: example for example in read_manifest(root)}
    assert found["1.png"].labels == ("star",)
    assert found["2.png"].labels == ()
    (root / "star" / "note.txt").write_text("")
    (told,) = ignored_files(root)
    assert "1 file(s) '.txt'" in told
    folders(root, "stray.png")
    with pytest.raises(DataError, match=r"stray\.png lies beside the class folders"):
        read_manifest(root)


def test_imagenets_folders_are_splits_not_labels(tmp_path: Path) -> None:
    """Train stays train, test stays test; what `val` holds is shared out to the splits that have no folder."""
    names = [f"{split}/gun/{index}.png" for split in ("train", "Val", "test") for index in range(40)]
    examples = read_manifest(folders(tmp_path, *names))
    assert {example.labels for example in examples} == {("gun",)}
    splits = {
        name: {example.split for example in examples if example.path.parts[-3] == name}
        for name in ("train", "Val", "test")
    }
    assert splits["train"] == {"train"}
    assert splits["Val"] == {"early_stop", "calibration", "policy"}
    assert splits["test"] == {"test"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train/gun/a.png", "holdout/gun/b.png"), "'holdout' is no folder of a split"),
        (("val/a.png",), "beside its class folders"),
        (("holdout/gun/a.png",), "is 'holdout' a label or a split"),
    ],
)
def test_unclear_folders_are_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    """What a folder means is never guessed."""
    with pytest.raises(DataError, match=message):
        read_manifest(folders(tmp_path, *names))


def test_images_without_a_group_keep_their_split(tmp_path: Path) -> None:
    """A row put before them moves no image to another split: their groups come from the path."""
    lines = [f"{index}.png," for index in range(50)]
    first = read_manifest(write(tmp_path, "\n".join(["path,labels", *lines, ""])))
    second = read_manifest(write(tmp_path, "\n".join(["path,labels", "new.png,star", *lines, ""])))
    assert [(each.group, each.split) for each in second[1:]] == [(each.group, each.split) for each in first]


def test_zero_is_a_value_in_parquet(tmp_path: Path) -> None:
    """Group 0 is a group, weight 0 leaves an image out; empty cells take the defaults."""
    table = pa.table(
        {"path": ["a", "b", "c"], "labels": ["", "", ""], "group": [0, 0, None], "weight": [0.0, None, 2.0]}
    )
    pq.write_table(table, tmp_path / "t.parquet")
    examples = read_manifest(tmp_path / "t.parquet")
    assert [example.group for example in examples] == ["0", "0", "image:c"]
    assert [example.weight for example in examples] == [0.0, 1.0, 2.0]


def test_parquet_with_bytes_is_read(tmp_path: Path) -> None:
    """A Parquet table may hold the files themselves and lists of labels."""
    import io

    from moderation_client.contract import ImageSpec
    from train.pixels import all_views

    file = io.BytesIO()
    Image.new("RGB", (8, 8), (255, 0, 0)).save(file, "PNG")
    table = pa.table({"bytes": [file.getvalue()], "labels": [["star", "circle"]], "split": ["test"]})
    pq.write_table(table, tmp_path / "t.parquet")
    (example,) = read_manifest(tmp_path / "t.parquet")
    assert example.labels == ("circle", "star")
    np.testing.assert_array_equal(all_views(example, ImageSpec(height=2, width=2))[0, 0, 0], [255, 0, 0])
    pq.write_table(pa.table({"labels": ["x"]}), tmp_path / "bad.parquet")
    with pytest.raises(DataError, match=r"needs the columns labels and path \(or bytes\)"):
        read_manifest(tmp_path / "bad.parquet")
