"""What is found before training: broken files, twins across splits, labels and groups that cannot work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from train.checks import check, duplicates, fingerprints, unknown_splits
from train.data import Example
from train.errors import DataError


def picture(path: Path, seed: int, *, side: int = 96, **options: int) -> Path:
    """Draw a random scene of lines and boxes."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (96, 96), tuple(rng.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, w, h = rng.integers(0, 64, 4).tolist()
        draw.rectangle((x, y, x + w, y + h), fill=tuple(rng.integers(0, 256, 3).tolist()))
    image.resize((side, side)).save(path, **options)  # type: ignore[arg-type]
    return path


def example(path: Path, split: str, group: str, *labels: str) -> Example:
    """One row."""
    return Example(path=path, split=split, group=group, labels=labels)


def test_broken_and_missing_files_are_listed_with_the_decoders_words(tmp_path: Path) -> None:
    """Both are named, neither is dropped, and training would stop."""
    good = picture(tmp_path / "good.png", 0)
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:200])
    rows = [
        example(good, "train", "a", "star"),
        example(tmp_path / "cut.png", "train", "b"),
        example(tmp_path / "gone.png", "test", "c", "star"),
    ]
    found = check(rows, ("star",))
    assert len(found.fatal) == 2
    with pytest.raises(
        DataError, match=r"(?s)2 problem.*cut\.png: Truncated.*gone\.png: cannot be read: No such file"
    ):
        found.raise_if_fatal(tmp_path / "manifest.csv")


def test_twins_across_splits_are_told(tmp_path: Path) -> None:
    """The same file, and the same picture resized and recompressed; other pictures and twins within a split are not."""
    first = picture(tmp_path / "a.png", 1)
    (tmp_path / "copy.png").write_bytes(first.read_bytes())
    again = picture(tmp_path / "small.jpg", 1, side=72, quality=70)
    others = [example(picture(tmp_path / f"{seed}.png", seed), "test", f"g{seed}") for seed in range(2, 40)]
    rows = [
        example(first, "train", "a", "star"),
        example(tmp_path / "copy.png", "test", "b", "star"),
        example(again, "policy", "c"),
        *others,
    ]
    told = duplicates(rows, fingerprints(rows))
    assert len(told) == 3
    assert "a.png (train) is the same file as" in told[0]
    assert "looks the same as" in told[1]
    assert told[1].endswith("and they are labelled differently")
    assert "copy.png (test) looks the same as" in told[2]
    within = [replace(row, split="train") for row in rows]
    assert duplicates(within, fingerprints(within)) == []
    evidence = [replace(row, split="policy") for row in rows[:2]]
    (twins,) = duplicates(evidence, fingerprints(evidence))
    assert "their groups 'a' and 'b' count as two pieces of evidence" in twins
    one_group = [replace(row, group="a") for row in evidence]
    assert duplicates(one_group, fingerprints(one_group)) == []


def test_misspelt_splits_are_told() -> None:
    """A split beyond the five is only judged; one that looks misspelt is asked about."""
    rows = [example(Path("a"), split, "g") for split in ("train", "trian", "unseen")]
    misspelt, other = unknown_splits(rows)
    assert "'trian' is none of" in misspelt
    assert misspelt.endswith("is 'train' meant?")
    assert "unseen" in other
    assert "meant" not in other


def test_groups_and_labels_are_checked(tmp_path: Path) -> None:
    """A group on two sides, a label nothing can be learnt of, one nobody asked for, and one without positives in test."""
    path = picture(tmp_path / "a.png", 3)
    rows = [
        example(path, "train", "a", "star"),
        example(path, "test", "a"),
        example(path, "unseen", "a", "moon"),
    ]
    found = check(rows, ("star", "sun"), images=False)
    text = "\n".join(found.fatal)
    assert "group 'a' is in the splits test, train" in text
    assert "label 'sun' has no positive image in train" in text
    assert "label 'moon' occurs but is not one of the labels to learn: star, sun" in text
    assert "label 'star' has no positive image in test" in found.told
