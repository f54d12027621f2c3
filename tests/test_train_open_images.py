"""Open Images' own file format becomes a manifest; what nobody verified is neither harmful nor harmless."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from PIL import Image

from train.data import read_manifest
from train.errors import DataError
from train.import_open_images import SHIPPED_MAP, ImportConfig, import_open_images, read_map, unknown_classes

CLASSES = "/m/0gxl3,Handgun\n/m/01599,Beer\n/m/04ctx,Knife\n/m/011k07,Tortoise\n"
LABELS = """ImageID,Source,LabelName,Confidence
aaa,verification,/m/0gxl3,1
aaa,verification,/m/01599,1
bbb,verification,/m/01599,0
bbb,verification,/m/011k07,1
ccc,verification,/m/011k07,1
ddd,machine,/m/0gxl3,0.8
eee,verification,/m/0gxl3,1
"""
BOXES = """ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside
fff,xclick,/m/0gxl3,1,0.1,0.3,0.2,0.7,0,0,0,0,0
fff,xclick,/m/04ctx,1,0.0,0.1,0.0,0.1,0,0,0,0,0
"""
INFO = (
    "ImageID,Subset,OriginalURL,License\naaa,train,https://x,https://creativecommons.org/licenses/by/2.0/\n"
)


def config(folder: Path, **changes: object) -> ImportConfig:
    """Files as Open Images has them, with five of six images downloaded."""
    (folder / "images").mkdir(exist_ok=True)
    for name in ("aaa", "bbb", "ccc", "ddd", "fff"):
        Image.new("RGB", (8, 8)).save(folder / "images" / f"{name}.jpg")
    for name, text in (("classes", CLASSES), ("labels", LABELS), ("boxes", BOXES), ("info", INFO)):
        (folder / f"{name}.csv").write_text(text)
    settings = {
        "images": folder / "images",
        "classes": folder / "classes.csv",
        "image_labels": (folder / "labels.csv",),
        "boxes": (folder / "boxes.csv",),
        "image_info": folder / "info.csv",
        "out": folder / "manifest.csv",
    }
    return ImportConfig(**{**settings, **changes})  # type: ignore[arg-type]


def test_annotations_become_a_manifest(tmp_path: Path) -> None:
    """Verified classes give labels, a verified absence makes an image harmless, everything else is counted and left out."""
    lines = import_open_images(config(tmp_path))
    found = {example.group: example for example in read_manifest(tmp_path / "manifest.csv")}
    assert set(found) == {"aaa", "bbb", "fff"}
    assert found["aaa"].labels == ("alcohol", "weapon")
    assert found["aaa"].licence.endswith("/by/2.0/")
    assert found["bbb"].labels == ()
    assert found["fff"].labels == ("weapon",)
    assert float(found["fff"].columns["smallest_box"]) == pytest.approx(0.1)
    assert all(example.path.exists() for example in found.values())
    assert "2 images about which nothing is known, 1 without a file" in lines[1]


def test_classes_that_the_release_does_not_have_are_told() -> None:
    """A class of the label map that is misspelt, or gone, would otherwise look like one that never occurs."""
    label_map = {"knife": "weapon", "hand gnu": "weapon"}
    assert unknown_classes(label_map, {"/m/1": "Knife"}) == [
        "classes of the label map that the class descriptions do not have: hand gnu"
    ]
    assert unknown_classes({"knife": "weapon"}, {"/m/1": "Knife"}) == []


def test_wrong_files_are_named(tmp_path: Path) -> None:
    """A missing column, a foreign class file, a word for a number: file and value are in the error."""
    with pytest.raises(DataError, match=r"boxes\.csv lacks the column\(s\) class, label"):
        import_open_images(config(tmp_path, label_map=tmp_path / "boxes.csv"))
    with pytest.raises(DataError, match=r"hold no line like"):
        import_open_images(config(tmp_path, classes=tmp_path / "labels.csv"))
    with pytest.raises(DataError, match="without either nothing is known"):
        import_open_images(config(tmp_path, image_labels=(), boxes=()))
    wrong = config(tmp_path)
    (tmp_path / "labels.csv").write_text(LABELS.replace("0.8", "high"))
    with pytest.raises(DataError, match="Confidence of image ddd is 'high'"):
        import_open_images(wrong)


def test_shipped_map_is_a_table_without_repeats() -> None:
    """Every class stands once, and each of the policy labels has classes."""
    with SHIPPED_MAP.open(newline="") as file:
        names = [row["class"].lower() for row in csv.DictReader(file)]
    assert len(names) == len(set(names))
    assert set(read_map(SHIPPED_MAP).values()) == {"", "weapon", "alcohol", "tobacco", "drugs", "gambling"}
