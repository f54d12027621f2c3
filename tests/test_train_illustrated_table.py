"""The committed label table of the illustrated data set: large, varied and fair enough to train and prove a model on."""

from __future__ import annotations

from collections import Counter

import pytest

from train.illustrated_packages import FREE_LICENCES, read_packages
from train.illustrated_table import LABELS, TABLE_FILE, Row, read_table


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Return the committed table."""
    return read_table(TABLE_FILE, read_packages())


def test_table_is_large_and_varied_enough(rows: list[Row]) -> None:
    """At least 2,000 images of at least six sets, under free licences, every label with hundreds of images."""
    assert len(rows) >= 2000
    assert len({row.set for row in rows}) >= 6
    assert {row.licence for row in rows} <= FREE_LICENCES
    counts = Counter(label for row in rows for label in row.labels)
    assert set(counts) == set(LABELS)
    assert min(counts.values()) >= 150, counts


def test_table_keeps_groups_and_the_unseen_artist_apart(rows: list[Row]) -> None:
    """No object is in two splits of the seen sets, and a set is either unseen or not."""
    seen = [row for row in rows if row.split != "unseen"]
    splits: dict[str, set[str]] = {}
    for row in seen:
        splits.setdefault(row.group, set()).add(row.split)
    assert {group for group, found in splits.items() if len(found) > 1} == set()
    assert {row.set for row in seen}.isdisjoint(row.set for row in rows if row.split == "unseen")
    assert any(row.split == "unseen" for row in rows)


@pytest.mark.parametrize(("label", "least"), [("weapon", 60), ("substance", 40), ("gambling", 40)])
def test_test_split_has_enough_of_each_label(rows: list[Row], label: str, least: int) -> None:
    """The held-out figures rest on enough positives of more than a few objects."""
    held_out = [row for row in rows if row.split == "test" and label in row.labels]
    assert len(held_out) >= least
    assert len({row.group for row in held_out}) >= 3


def test_no_set_gives_its_label_away(rows: list[Row]) -> None:
    """Every set has neutral images and labelled ones, so that a drawing style says nothing about the label."""
    for name in {row.set for row in rows}:
        shares = Counter(bool(row.labels) for row in rows if row.set == name)
        assert shares[False] >= 30, name
        assert shares[True] >= 4, name


def test_policy_says_what_the_data_is_not() -> None:
    """The companion page says that this is neither photographs nor nudity, and defines every label."""
    text = TABLE_FILE.with_name("illustrated_policy.md").read_text(encoding="utf-8")
    assert "no photographs" in text
    assert "no nudity" in text
    assert all(f"**{label}**" in text for label in LABELS)
