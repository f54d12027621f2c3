"""`python -m train.import_open_images`: turn Open Images' own CSV files into a manifest to train on.

Open Images (https://storage.googleapis.com/openimages/web/) says of an image which classes people verified to be in it
(Confidence 1) and which not (Confidence 0); of any other class it says nothing. So an image counts as harmless only when a mapped
class was verified to be absent and none to be present; images about which nothing is known are left out and counted. Which class
means which policy label stands in a table; a class mapped to no label (a kitchen knife) is named there too, and decides nothing.
"""

from __future__ import annotations

import csv
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from train.data import IMAGE_SUFFIXES
from train.errors import DataError, TrainError

SHIPPED_MAP = Path(__file__).with_name("open_images_labels.csv")
COLUMNS = ("path", "labels", "group", "split", "source", "licence", "name", "smallest_box")


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Turn Open Images' CSV files into a manifest."""

    images: Path
    """Folder with the image files, named by their ImageID."""
    classes: Path
    """class-descriptions.csv: machine name (/m/0…) and display name."""
    image_labels: tuple[Path, ...] = ()
    """Image-level labels: ImageID, Source, LabelName, Confidence."""
    boxes: tuple[Path, ...] = ()
    """Boxes: ImageID, Source, LabelName, Confidence, XMin, XMax, YMin, YMax, …"""
    image_info: Path | None = None
    """Image list with OriginalURL, License and Author, for the licence column."""
    label_map: Path = SHIPPED_MAP
    """Table with the columns class and label; an empty label maps to none."""
    out: Path = Path("data/open_images/manifest.csv")
    """Manifest to write; paths in it are relative to it where possible."""
    harmless_per_harmful: float = 5.0
    """Harmless images kept for each harmful one, drawn by a seed; 0 keeps all."""
    seed: int = 0
    """Start of that draw."""


@dataclass(kw_only=True)
class Seen:
    """What is known of one image."""

    present: set[str] = field(default_factory=set)
    """Policy labels verified to be there."""
    absent: bool = False
    """Whether a mapped class was verified not to be there."""
    names: set[str] = field(default_factory=set)
    smallest_box: float = 1.0
    """Area of the smallest box of a mapped class, of the image's."""


def main() -> int:
    """Command line; exit status 1 with a sentence for what is wrong."""
    config = tyro.cli(ImportConfig, prog="python -m train.import_open_images", description=__doc__)
    try:
        for line in import_open_images(config):
            print(line)
    except TrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def import_open_images(config: ImportConfig) -> list[str]:
    """Write the manifest and say what was kept and what was not. Raises DataError."""
    if not config.image_labels and not config.boxes:
        raise DataError("give --image-labels or --boxes: without either nothing is known of any image")
    label_map, classes = read_map(config.label_map), read_classes(config.classes)
    mapped = resolve(label_map, classes)
    seen = collect(config, mapped)
    files = {
        path.stem: path for path in sorted(config.images.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES
    }
    known = {image: each for image, each in seen.items() if each.present or each.absent}
    harmful = sorted(image for image, each in known.items() if each.present and image in files)
    harmless = sorted(image for image, each in known.items() if not each.present and image in files)
    kept = _draw(harmless, len(harmful), config)
    _write(config, {image: known[image] for image in sorted([*harmful, *kept])}, files)
    counts = Counter(label for image in harmful for label in known[image].present)
    listed = ", ".join(f"{label} {count}" for label, count in sorted(counts.items()))
    unknown, without = len(seen) - len(known), len(known.keys() - files.keys())
    return [
        f"{config.out}: {len(harmful)} harmful images ({listed}), {len(kept)} harmless ones of {len(harmless)}",
        f"left out: {unknown} images about which nothing is known, {without} without a file in {config.images}",
        *unknown_classes(label_map, classes),
    ]


def read_map(path: Path) -> dict[str, str]:
    """Display name in lower case -> policy label, "" for none. Raises DataError."""
    return {row["class"].strip().lower(): row["label"].strip() for row in _rows(path, ("class", "label"))}


def read_classes(path: Path) -> dict[str, str]:
    """Machine name -> display name; the file has a header in some releases and none in others. Raises DataError."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [
                row for row in csv.reader(file) if len(row) >= 2 and row[0].startswith(("/m/", "/g/", "/t/"))
            ]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"class descriptions {path} cannot be read: {error}") from error
    if not rows:
        raise DataError(f"class descriptions {path} hold no line like /m/011k07,Tortoise")
    return {row[0]: row[1] for row in rows}


def resolve(label_map: Mapping[str, str], classes: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Machine name -> (display name, policy label) of the mapped classes. Raises DataError when none is known."""
    found = {
        machine: (name, label_map[name.strip().lower()])
        for machine, name in classes.items()
        if label_map.get(name.strip().lower())
    }
    if not found:
        raise DataError(
            "none of the label map's classes is among the class descriptions: is it the right file?"
        )
    return found


def unknown_classes(label_map: Mapping[str, str], classes: Mapping[str, str]) -> list[str]:
    """Sentence on classes of the label map that the release does not have, so that nothing was taken for them."""
    there = {name.strip().lower() for name in classes.values()}
    absent = sorted(set(label_map) - there)
    return (
        [f"classes of the label map that the class descriptions do not have: {', '.join(absent)}"]
        if absent
        else []
    )


def collect(config: ImportConfig, mapped: Mapping[str, tuple[str, str]]) -> dict[str, Seen]:
    """Read all annotations. Raises DataError that names file and line."""
    seen: dict[str, Seen] = defaultdict(Seen)
    for path in config.image_labels:
        for row in _rows(path, ("ImageID", "LabelName", "Confidence")):
            _note(seen[row["ImageID"]], row, mapped, path)
    for path in config.boxes:
        for row in _rows(path, ("ImageID", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax")):
            image = seen[row["ImageID"]]
            if _note(image, row, mapped, path):
                width, height = (
                    _number(row, f"{axis}Max", path) - _number(row, f"{axis}Min", path) for axis in "XY"
                )
                image.smallest_box = min(image.smallest_box, max(width * height, 0.0))
    return seen


def _note(image: Seen, row: Mapping[str, str], mapped: Mapping[str, tuple[str, str]], path: Path) -> bool:
    """Take one annotation in; true when it says that a mapped class is there."""
    confidence = _number(row, "Confidence", path)
    if row["LabelName"] not in mapped:
        return False
    name, label = mapped[row["LabelName"]]
    if confidence == 0.0:
        image.absent = True
        return False
    if confidence < 1.0:  # a machine's guess that nobody verified
        return False
    image.present.add(label)
    image.names.add(name)
    return True


def _number(row: Mapping[str, str], column: str, path: Path) -> float:
    try:
        return float(row[column])
    except ValueError as error:
        raise DataError(
            f"{path}: {column} of image {row['ImageID']} is {row[column]!r}, not a number"
        ) from error


def _rows(path: Path, needed: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Rows of a CSV with the needed columns. Raises DataError."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [column for column in needed if column not in (reader.fieldnames or ())]
            if missing:
                raise DataError(
                    f"{path} lacks the column(s) {', '.join(missing)}; it has {reader.fieldnames}"
                )
            for row in reader:
                if any(row[column] is None for column in needed):
                    raise DataError(f"{path}, line {reader.line_num}: has not as many fields as the header")
                yield row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _draw(harmless: list[str], num_harmful: int, config: ImportConfig) -> list[str]:
    most = round(config.harmless_per_harmful * num_harmful)
    if not config.harmless_per_harmful or len(harmless) <= most:
        return harmless
    return random.Random(config.seed).sample(harmless, most)


def _write(config: ImportConfig, chosen: Mapping[str, Seen], files: Mapping[str, Path]) -> None:
    licences = {}
    if config.image_info:
        licences = {
            row["ImageID"]: row["License"] for row in _rows(config.image_info, ("ImageID", "License"))
        }
    config.out.parent.mkdir(parents=True, exist_ok=True)
    with config.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for image, each in chosen.items():
            path = files[image].resolve()
            folder = config.out.parent.resolve()
            shown = path.relative_to(folder) if path.is_relative_to(folder) else path
            names = "+".join(sorted(each.names))
            labels = ";".join(sorted(each.present))
            box = f"{each.smallest_box:.4f}" if each.present else ""
            writer.writerow([shown, labels, image, "", "open-images", licences.get(image, ""), names, box])


if __name__ == "__main__":
    sys.exit(main())
