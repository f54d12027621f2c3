"""What decoding costs: JPEGs at reduced scale against a full decode, bombs, and the worst of Pillow's own test images.

Ratios are of CPU time on one thread, each picture through both ways in turn. Peak memory is the process' high-water mark, reset
before each file, minus what it held then; bombs and test images run in a process of their own that has decoded one file of every format.
"""

from __future__ import annotations

import datetime
import io
import json
import statistics
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image

from benchmarks.corpus import photograph
from benchmarks.ending import finish
from benchmarks.environment import ROOT
from benchmarks.pillow_images import FetchError, pillow_images
from benchmarks.report import Page, text_table
from benchmarks.results import Bar, Point, Result, Scalar, make_result
from benchmarks.subject import fail
from moderation_client import ImageSpec, InvalidImageError
from moderation_client.images import decode

RESULTS = Path("runs/benchmarks")
SPEC = ImageSpec()
WIDTH, HEIGHT = 4000, 3000
"""12 megapixels."""
NUM_SCALES = 4
"""Baseline and progressive, each at two qualities."""
CHILD = "from benchmarks.decode import measure_files; import sys; measure_files(sys.argv[1:])"


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """Measure what decoding costs, and check the decoder's bars."""

    num_photographs: int = 6
    """Photographs of 12 megapixels, generated as for the other benchmarks."""
    quality: int = 90
    """JPEG quality of the photographs that the bars are about."""
    high_quality: int = 97
    """Another one: what reduced scale cannot save grows with the file."""
    repeats: int = 7
    """Times each photograph is decoded each way."""
    folder: Path = RESULTS / "pillow-images"
    """Where Pillow's test images are kept."""
    out: Path | None = None
    """Where to write, without ending; by default runs/benchmarks/<date>_<commit>_<machine>_decode."""


def full_decode(data: bytes) -> None:
    """Decode every pixel, then resize, as a loader without reduced scale does."""
    Image.open(io.BytesIO(data)).convert("RGB").resize((SPEC.width, SPEC.height), Image.Resampling.BILINEAR)


def cpu_ms(work: Callable[[], object]) -> float:
    """CPU time of one call."""
    started = time.thread_time()
    work()
    return (time.thread_time() - started) * 1000


def compare_scales(config: DecodeConfig, quality: int, *, progressive: bool) -> Point:
    """Measure both ways on every photograph; the ratio is of the medians."""
    full, ours, sizes = [], [], []
    for index in range(config.num_photographs):
        data = photograph(index, WIDTH, HEIGHT, quality=quality)
        if progressive:
            buffer = io.BytesIO()
            Image.open(io.BytesIO(data)).save(buffer, "JPEG", quality="keep", progressive=True)
            data = buffer.getvalue()
        sizes.append(len(data))
        decode(data, SPEC)
        for _ in range(config.repeats):
            full.append(cpu_ms(lambda data=data: full_decode(data)))  # type: ignore[misc]
            ours.append(cpu_ms(lambda data=data: decode(data, SPEC)))  # type: ignore[misc]
    values = {
        "ratio": statistics.median(ours) / statistics.median(full),
        "file_bytes": statistics.mean(sizes),
    }
    coding = "progressive" if progressive else "baseline"
    settings: dict[str, Scalar] = {"what": "reduced scale", "coding": coding, "quality": quality}
    return Point(settings=settings, samples={"full_ms": full, "decode_ms": ours}, values=values)


def write_bombs(folder: Path) -> list[Path]:
    """Write a PNG of 623 megapixels in 77 KB and a GIF that claims 4.3 gigapixels."""
    rows = zlib.compress(bytes((1 + (20990 + 7) // 8) * 29700), 9)
    header = struct.pack(">IIBBBBB", 20990, 29700, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    gif = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6)
    gif += b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02L\x01\x00;"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "623_megapixels.png", folder / "4_gigapixels.gif"]
    for path, data in zip(paths, (png, gif), strict=True):
        path.write_bytes(data)
    return paths


def _memory_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def measure_files(paths: list[str]) -> None:
    """In a process of its own: print name, outcome, milliseconds and bytes of growth for each file."""
    for format in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF"):
        buffer = io.BytesIO()
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(buffer, format)
        decode(buffer, SPEC)
    for path in paths:
        data = Path(path).read_bytes()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets the high-water mark back
        before, started, outcome = _memory_bytes("VmRSS"), time.perf_counter(), "decoded"
        try:
            decode(data, SPEC)
        except InvalidImageError as error:
            outcome = type(error).__name__
        took_ms = (time.perf_counter() - started) * 1000
        print(json.dumps([Path(path).name, outcome, took_ms, _memory_bytes("VmHWM") - before]))


def in_child(what: str, paths: list[Path]) -> list[Point]:
    """Measure files in a fresh process; it may complain on stderr about broken TIFFs, which libtiff prints itself."""
    names = [str(path.resolve()) for path in paths]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *names],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    return [
        Point(
            settings={"what": what, "file": name, "outcome": outcome},
            values={"took_ms": took_ms, "growth_bytes": growth},
        )
        for name, outcome, took_ms, growth in map(json.loads, done.stdout.splitlines())
    ]


def measure(config: DecodeConfig) -> Result:
    """Measure everything; Ctrl-C keeps what there is. Raises FetchError when Pillow's images are not to be had."""
    started_at = datetime.datetime.now(datetime.timezone.utc)
    files = sorted(path for path in pillow_images(config.folder).rglob("*") if path.is_file())
    points: list[Point] = []
    interrupted = False
    try:
        for progressive in (False, True):
            for quality in (config.quality, config.high_quality):
                points.append(compare_scales(config, quality, progressive=progressive))
        points += in_child("bomb", write_bombs(config.folder / "bombs"))
        points += in_child("pillow", files)
    except KeyboardInterrupt:
        interrupted = True
    return make_result(
        "decode", config, points, bars=bars(points), started_at=started_at, interrupted=interrupted
    )


def bars(points: list[Point]) -> list[Bar]:
    """Judge what was measured."""
    scales, bombs, images = (
        [point for point in points if point.settings["what"] == what]
        for what in ("reduced scale", "bomb", "pillow")
    )
    return [
        *(scale_bars(scales) if len(scales) == NUM_SCALES else []),
        *(bomb_bars(bombs) if bombs else []),
        *(image_bars(images) if images else []),
    ]


def _bar(name: str, measured: float, limit: float, **more: Any) -> Bar:
    return Bar(name=name, measured=measured, limit=limit, sense="at_most", **more)


def scale_bars(scales: list[Point]) -> list[Bar]:
    """Make the bars of reduced scale; a progressive file gains less and is reported beside its goal."""
    baseline, _, progressive, _ = (point.number("ratio") for point in scales)
    return [
        _bar("12-megapixel baseline JPEG, share of a full decode", baseline, 0.4),
        _bar("12-megapixel baseline JPEG, share of a full decode", baseline, 0.3, goal=True),
        _bar("12-megapixel progressive JPEG, share of a full decode", progressive, 0.8, goal=True),
    ]


def bomb_bars(bombs: list[Point]) -> list[Bar]:
    """Make the bars of the bombs; one that is decoded misses by its whole size."""
    refused = all(point.settings["outcome"] == "ImageTooLargeError" for point in bombs)
    return [
        _bar("bombs not refused", 0.0 if refused else 1.0, 0.0),
        _bar("slowest bomb refused, ms", max(point.number("took_ms") for point in bombs), 50.0),
        _bar("bomb refused, MB of growth", max(point.number("growth_bytes") for point in bombs) / 1e6, 50.0),
    ]


def image_bars(images: list[Point]) -> list[Bar]:
    """Make the bars of Pillow's images, named after the slowest and the largest."""
    slowest = max(images, key=lambda point: point.number("took_ms"))
    largest = max(images, key=lambda point: point.number("growth_bytes"))
    name = f"of Pillow's {len(images)} images"
    return [
        _bar(f"slowest {name} ({slowest.settings['file']}), s", slowest.number("took_ms") / 1000, 2.0),
        _bar(f"largest {name} ({largest.settings['file']}), MB", largest.number("growth_bytes") / 1e6, 200.0),
    ]


HEADER = ("JPEG of 12 megapixels", "quality", "file KB", "full decode ms", "decode ms", "share")


def rows(result: Result) -> list[list[str]]:
    """Rows under `HEADER`."""
    return [
        [
            str(point.settings["coding"]),
            str(point.settings["quality"]),
            f"{point.number('file_bytes') / 1000:.0f}",
            f"{statistics.median(point.samples['full_ms']):.1f}",
            f"{statistics.median(point.samples['decode_ms']):.1f}",
            f"{point.number('ratio'):.2f}",
        ]
        for point in result.points
        if point.settings["what"] == "reduced scale"
    ]


FILE_HEADER = ("file", "outcome", "ms", "MB of growth")


def file_rows(result: Result, num_files: int = 8) -> list[list[str]]:
    """Rows under `FILE_HEADER`: the bombs, then the slowest files."""
    files = [point for point in result.points if "file" in point.settings]
    bombs = [point for point in files if point.settings["what"] == "bomb"]
    slowest = sorted(
        (point for point in files if point not in bombs), key=lambda point: -point.number("took_ms")
    )
    return [
        [
            str(point.settings["file"]),
            str(point.settings["outcome"]),
            f"{point.number('took_ms'):.1f}",
            f"{point.number('growth_bytes') / 1e6:.1f}",
        ]
        for point in [*bombs, *slowest[:num_files]]
    ]


def text(result: Result) -> str:
    """Give everything that is printed."""
    return "\n\n".join([text_table(HEADER, rows(result)), text_table(FILE_HEADER, file_rows(result))])


def page(result: Result) -> Page:
    """Build the HTML page."""
    document = Page("What decoding costs", "CPU time on one thread; memory as growth of the high-water mark.")
    document.bars(result.bars)
    document.heading("Reduced scale")
    document.table(HEADER, rows(result))
    document.heading("Bombs, and the slowest of Pillow's test images")
    document.table(FILE_HEADER, file_rows(result))
    document.environment(result)
    return document


def main(config: DecodeConfig) -> int:
    """Measure, print, write; 1 when a bar is missed."""
    try:
        result = measure(config)
    except FetchError as error:
        fail(error)
    return finish(result, config.out, text=text, page=page)


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(DecodeConfig)))
