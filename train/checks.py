"""What is wrong with a data set, found before hours are spent on it; nothing is dropped silently.

Some problems make training or its guarantees worthless and stop it: files that cannot be decoded, groups on two sides of a split,
labels nothing can be learnt of. Others are told and stand in the report: the same or nearly the same picture on two sides of a
split, labels without positives in a split. Pictures are compared by content (SHA-256 of the file) and by perceptual hash.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image
from tqdm import tqdm

from moderation_client import InvalidImageError
from moderation_client.contract import ImageSpec
from moderation_client.images import decode
from train.data import SPLITS, Example
from train.errors import DataError

THUMBNAIL = ImageSpec(height=64, width=64)
NEAR_BITS = 3
"""Of 64: bits in which the perceptual hashes of one picture, resized or recompressed, may differ."""
NUM_BANDS = 4
"""Hashes that differ in fewer bits than there are bands agree in one band at least, which is looked up."""
LISTED = 20
EVIDENCE = ("calibration", "policy", "test")
"""Splits whose groups are counted as independent."""


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What is remembered of one image to compare it with others."""

    content: str = ""
    """SHA-256 of the file."""
    look: int | None = None
    """Perceptual hash, 64 bits; None for a picture without structure."""
    problem: str | None = None
    """The decoder's words, when it refused."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What the checks found, as sentences."""

    fatal: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def raise_if_fatal(self, where: Path) -> None:
        """Raise DataError that lists the first of them."""
        if self.fatal:
            more = f"\n  … and {len(self.fatal) - LISTED} more" if len(self.fatal) > LISTED else ""
            listed = "\n  ".join(self.fatal[:LISTED])
            raise DataError(
                f"{where} has {len(self.fatal)} problem(s) that must be mended first:\n  {listed}{more}"
            )


def check(examples: Sequence[Example], labels: Sequence[str], *, images: bool = True) -> Findings:
    """Look at every label and group and, with `images`, at every file."""
    prints = fingerprints(examples) if images else [Fingerprint() for _ in examples]
    fatal = [
        f"{example.path}: {each.problem}"
        for example, each in zip(examples, prints, strict=True)
        if each.problem
    ]
    missing, thin = _labels(examples, labels)
    return Findings(
        fatal=[*fatal, *_straddling(examples), *missing],
        told=[*unknown_splits(examples), *thin, *duplicates(examples, prints)],
    )


def fingerprints(examples: Sequence[Example]) -> list[Fingerprint]:
    """Decode every image once, small."""
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(fingerprint, examples)
        return list(tqdm(found, "check images", len(examples), unit=" images", leave=False))


def fingerprint(example: Example) -> Fingerprint:
    """Hash one image's bytes and its look over white; transparency alone never hides a difference there."""
    try:
        content = example.content if example.content is not None else example.path.read_bytes()
    except OSError as error:
        return Fingerprint(problem=f"cannot be read: {error.strerror or error}")
    try:
        pixels = decode(content, THUMBNAIL).pixels
    except InvalidImageError as error:
        return Fingerprint(problem=f"{type(error).__name__}: {error}")
    view = max(pixels, key=lambda each: float(each.std()))
    look = None
    if view.std() >= 1.0:
        bits = imagehash.phash(Image.fromarray(view)).hash.flatten()
        look = int(np.packbits(bits).view(">u8")[0])
    return Fingerprint(content=hashlib.sha256(content).hexdigest(), look=look)


def _straddling(examples: Iterable[Example]) -> list[str]:
    """Groups of which two of the five splits have images; sets kept for evaluation only may share groups with them."""
    splits: dict[str, set[str]] = defaultdict(set)
    for example in examples:
        if example.split in SPLITS:
            splits[example.group].add(example.split)
    return [
        f"group {group!r} is in the splits {', '.join(sorted(found))}: its variants would be judged by what was learnt from them"
        for group, found in sorted(splits.items())
        if len(found) > 1
    ]


def unknown_splits(examples: Iterable[Example]) -> list[str]:
    """Splits beyond the five: they are judged and never learnt from, which a misspelt one was not meant to be."""
    counts = Counter(example.split for example in examples if example.split not in SPLITS)
    told = []
    for split, number in sorted(counts.items()):
        near = get_close_matches(split, SPLITS, 1, 0.75)
        hint = f"; is {near[0]!r} meant?" if near else ""
        told.append(
            f"split {split!r} is none of {', '.join(SPLITS)}: its {number} images are only judged{hint}"
        )
    return told


def _labels(examples: Sequence[Example], labels: Sequence[str]) -> tuple[list[str], list[str]]:
    """Labels that cannot be learnt, and labels that cannot be judged in some split."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for example in examples:
        counts[example.split].update(example.labels)
    missing = [
        f"label {label!r} has no positive image in train" for label in labels if not counts["train"][label]
    ]
    unknown = sorted({label for example in examples for label in example.labels} - set(labels))
    missing += [
        f"label {label!r} occurs but is not one of the labels to learn: {', '.join(labels)}"
        for label in unknown
    ]
    thin = [
        f"label {label!r} has no positive image in {split}"
        for split in sorted(counts)
        for label in labels
        if split != "train" and not counts[split][label]
    ]
    return missing, thin


def duplicates(examples: Sequence[Example], prints: Sequence[Fingerprint]) -> list[str]:
    """Pairs of images that are the same file or look the same, where that spoils what a split is for."""
    return [
        _pair(examples[a], examples[b], same=prints[a].content == prints[b].content)
        for a, b in sorted(_candidates(prints))
        if _spoils(examples[a], examples[b])
    ]


def leaks(seen: Sequence[Example], judged: Sequence[Example], prints: Sequence[Fingerprint]) -> list[str]:
    """Pairs of a judged image and one that was trained on; `prints` are of both, in this order."""
    both = [*seen, *judged]
    return [
        _pair(both[a], both[b], same=prints[a].content == prints[b].content)
        for a, b in sorted(_candidates(prints))
        if min(a, b) < len(seen) <= max(a, b)
    ]


def _spoils(a: Example, b: Example) -> bool:
    """Twins on two sides of a choice, or counted as two pieces of evidence for one."""
    if a.split == b.split:
        return a.split in EVIDENCE and a.group != b.group
    return SPLITS[0] in {a.split, b.split} or (a.split in SPLITS and b.split in SPLITS)


def _pair(a: Example, b: Example, *, same: bool) -> str:
    word = "is the same file as" if same else "looks the same as"
    note = "" if a.labels == b.labels else ", and they are labelled differently"
    if a.split == b.split:
        note += f"; their groups {a.group!r} and {b.group!r} count as two pieces of evidence"
    return f"{a.path} ({a.split}) {word} {b.path} ({b.split}){note}"


def _candidates(prints: Sequence[Fingerprint]) -> set[tuple[int, int]]:
    """Pairs with the same content, or with perceptual hashes that differ in at most NEAR_BITS bits."""
    buckets: dict[tuple[int, int | str], list[int]] = defaultdict(list)
    for index, each in enumerate(prints):
        if each.content:
            buckets[-1, each.content].append(index)
        if each.look is not None:
            for band in range(NUM_BANDS):
                buckets[band, (each.look >> (16 * band)) & 0xFFFF].append(index)
    found = set()
    for members in buckets.values():
        for place, a in enumerate(members):
            for b in members[place + 1 :]:
                if _same(prints[a], prints[b]):
                    found.add((a, b))
    return found


def _same(a: Fingerprint, b: Fingerprint) -> bool:
    if a.content == b.content:
        return True
    return a.look is not None and b.look is not None and (a.look ^ b.look).bit_count() <= NEAR_BITS
