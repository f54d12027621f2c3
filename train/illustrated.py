"""`python -m train.illustrated`: build the illustrated-content data set from the committed label table.

The pictures are emoji, stickers and icons with the labels weapon, substance and gambling, or none of them. It is data for moderating
illustrated content: it holds no photograph and no nudity, and a model trained on it is no judge of either.

A build is all or nothing: it happens in a folder beside the target and is renamed at the end, with a stamp of what it was made from,
so that the next run reuses it or builds it anew, and a kill at any moment leaves the old data or none.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tyro

from train.errors import DataError, TrainError
from train.illustrated_packages import PACKAGES_FILE, Package, obtain, read_packages
from train.illustrated_table import LABELS, SPLITS, TABLE_FILE, Row, read_table

MANIFEST_COLUMNS = ("path", "labels", "group", "kind", "split", "source", "licence", "name")
_STAMP = "stamp.json"
_BUILDER = 2  # raise it when the same table gives other pixels


@dataclass(frozen=True, kw_only=True)
class IllustratedConfig:
    """Build the illustrated-content data set: emoji, stickers and icons, no photographs, no nudity."""

    out: Path = Path("data/illustrated")
    """Folder for manifest.csv, ATTRIBUTION.md and the images; replaced as a whole."""
    packages_dir: Path = Path("data/packages")
    """Folder of the packages' tarballs; what is missing there is downloaded into it."""
    labels: Path = TABLE_FILE
    """The reviewed label table."""
    packages: Path = PACKAGES_FILE
    """The pinned packages: version, checksum, licence, artist."""
    num_workers: int = 2
    """Processes that draw."""


def build(config: IllustratedConfig) -> Path:
    """Build the data set unless it is there already; return the path of its manifest.

    Raises the subtypes of `DataError`: LabelTableError, ChecksumError, DownloadError, NpmMissingError, UnknownImageError.
    """
    stamp = _stamp(config)
    manifest = config.out / "manifest.csv"
    if _is_built(config.out, stamp):
        return manifest
    packages = read_packages(config.packages)
    rows = read_table(config.labels, packages)
    used = {name: package for name, package in packages.items() if any(row.set == name for row in rows)}
    config.out.parent.mkdir(parents=True, exist_ok=True)
    with _lock(config.out):
        if not _is_built(config.out, stamp):  # by the process that held the lock
            _check_replaceable(config.out)
            _build_anew(rows, used, config, stamp)
    return manifest


def _build_anew(
    rows: Sequence[Row], packages: dict[str, Package], config: IllustratedConfig, stamp: dict[str, str | int]
) -> None:
    """Build in a folder beside the target, and put it in place when it is whole."""
    partial = config.out.with_name(f".{config.out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed build left
    try:
        _write_images(rows, packages, config, partial)
        _write_manifest(rows, partial)
        (partial / "ATTRIBUTION.md").write_text(_attribution(rows, packages), encoding="utf-8")
        (partial / _STAMP).write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")
        _swap(partial, config.out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _stamp(config: IllustratedConfig) -> dict[str, str | int]:
    """Say what a build is made from."""
    try:
        labels, packages = (
            hashlib.sha256(path.read_bytes()).hexdigest() for path in (config.labels, config.packages)
        )
    except OSError as error:
        raise DataError(f"Cannot read {error.filename}: {error.strerror}.") from error
    return {"builder": _BUILDER, "labels_sha256": labels, "packages_sha256": packages}


def _is_built(out: Path, stamp: dict[str, str | int]) -> bool:
    """Whether `out` is whole and was made from the same table and packages."""
    try:
        if json.loads((out / _STAMP).read_text(encoding="utf-8")) != stamp:
            return False
        with (out / "manifest.csv").open(encoding="utf-8", newline="") as file:
            return all((out / record["path"]).exists() for record in csv.DictReader(file))
    except (OSError, ValueError, KeyError):
        return False


def _check_replaceable(out: Path) -> None:
    """Never delete a folder that this program did not make."""
    if out.exists() and not (out / _STAMP).exists() and any(out.iterdir()):
        raise DataError(
            f"{out} holds something else than a data set of this program: name another folder with --out."
        )


@contextmanager
def _lock(out: Path) -> Iterator[None]:
    """Let one process at a time build into a folder; the lock goes with the process, however it ends."""
    with out.with_name(f".{out.name}.lock").open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _swap(partial: Path, out: Path) -> None:
    """Put the finished folder in place; the old one is moved away first, since a folder cannot be renamed over a full one."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _write_images(
    rows: Sequence[Row], packages: dict[str, Package], config: IllustratedConfig, folder: Path
) -> None:
    """Draw every row's image, in parallel; only here are the heavy modules needed."""
    from tqdm import tqdm  # noqa: PLC0415 - a second run needs none of them

    from train.illustrated_render import Artwork, Drawing  # noqa: PLC0415

    drawings: list[Drawing] = []
    for package in tqdm(packages.values(), desc="packages", unit="package", disable=None):
        artwork = Artwork(package, obtain(package, config.packages_dir))
        drawings += [artwork.drawing(row.name) for row in rows if row.set == package.set]
    for package in packages.values():
        (folder / package.set).mkdir(parents=True)
    context = multiprocessing.get_context("spawn")  # forking a process that has threads may hang
    with ProcessPoolExecutor(config.num_workers, mp_context=context, initializer=_start_worker) as pool:
        try:
            jobs = pool.map(_write_image, [folder] * len(drawings), drawings, chunksize=16)
            for _ in tqdm(jobs, total=len(drawings), desc="images", unit="image", disable=None):
                pass
        except BaseException:  # Ctrl-C too: do not draw the rest first
            pool.shutdown(cancel_futures=True)
            raise


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it, even when it is killed and can tell nobody."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _write_image(folder: Path, drawing: object) -> None:
    """Draw one image into its file; runs in a worker process."""
    from train.illustrated_render import Drawing, render  # noqa: PLC0415

    assert isinstance(drawing, Drawing)
    (folder / drawing.set / f"{drawing.name}.png").write_bytes(render(drawing))


def _write_manifest(rows: Sequence[Row], folder: Path) -> None:
    with (folder / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(MANIFEST_COLUMNS)
        for row in rows:
            path = f"{row.set}/{row.name}.png"
            writer.writerow(
                [path, ";".join(row.labels), row.group, row.kind, row.split, row.set, row.licence, row.name]
            )


def _attribution(rows: Sequence[Row], packages: dict[str, Package]) -> str:
    """Credit every artist, as the licences ask: who, what, where, under which terms, and what was changed."""
    lines = [
        "# Attribution",
        "",
        "Illustrated content (emoji, stickers, icons) for training a moderation model; no photographs, no nudity.",
        "Every image was scaled to 256 x 256 pixels; one-colour drawings were given colours, some a backdrop or a border.",
        "",
        "| set | artwork | artist | licence | source | images |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for package in packages.values():
        count = sum(row.set == package.set for row in rows)
        artwork = f"[{package.title}]({package.home})"
        lines.append(
            f"| {package.set} | {artwork} | {package.artist} | {package.licence} | npm {package.pinned} | {count} |"
        )
    return "\n".join(lines) + "\n"


def summary(manifest: Path) -> str:
    """Return the counts of a built data set, per split and label, as a table."""
    with manifest.open(encoding="utf-8", newline="") as file:
        records = list(csv.DictReader(file))
    splits = [split for split in SPLITS if any(record["split"] == split for record in records)]
    lines = [f"{'split':12}{'images':>8}" + "".join(f"{label:>11}" for label in LABELS) + f"{'neutral':>9}"]
    for split in [*splits, "all"]:
        part = [record["labels"].split(";") for record in records if split in {record["split"], "all"}]
        counts = "".join(f"{sum(label in labels for labels in part):>11}" for label in LABELS)
        lines.append(f"{split:12}{len(part):>8}{counts}{sum(labels == [''] for labels in part):>9}")
    return "\n".join(lines)


def main() -> int:
    """Run the program; return its exit status."""
    config = tyro.cli(IllustratedConfig, description=__doc__)
    start_s = time.monotonic()
    try:
        manifest = build(config)
    except TrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; what was there before is untouched", file=sys.stderr)
        return 130
    print(summary(manifest))
    print(f"{manifest} ({time.monotonic() - start_s:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
