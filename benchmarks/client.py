"""What the client itself costs: its import, its memory over a long stream, its CPU beside the decoding of the image.

    python benchmarks/client.py                    all three, JSON and page into runs/benchmarks
    python benchmarks/client.py --num-images 2000  a shorter stream

The server is the client's own fake in a process of its own: it answers at once, so nothing here waits for a model, and requests
are as small and as many as they ever get: the worst case for the client's share. CPU is process time of all the client's threads,
the same images in turns with decoding alone, in one process.
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import tyro
from PIL import Image

from benchmarks.ending import finish
from benchmarks.report import Page, number, text_table
from benchmarks.results import Bar, Point, Result, make_result
from moderation_client import ImageSpec, ModerationClient
from moderation_client.images import decode

SPEC = ImageSpec()
PICTURES = {
    "jpeg_1280x720": (1280, 720, "JPEG"),
    "jpeg_640x480": (640, 480, "JPEG"),
    "png_256x256": (256, 256, "PNG"),
}
"""Name -> width, height, format. The first is the bar's; on the small ones the same cost is a larger share: goals."""

SERVER = """
import sys
import numpy as np
from moderation_client import ImageSpec, ModelSpec
from moderation_client.testing import FakeServer

spec = ModelSpec(labels=("red", "green", "blue"), image=ImageSpec(), version=1)
with FakeServer(spec=spec, max_batch=32, scores=lambda pixels: np.full((len(pixels), 3), 0.1, np.float32)) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""

IMPORT = """
import time
start = time.perf_counter()
import moderation_client
print(time.perf_counter() - start)
"""


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    """What to measure."""

    num_images: int = 10_000
    """Images of the stream whose memory is watched."""
    num_rounds: int = 15
    """Turns of decoding alone and the client on the same images."""
    decode_threads: int = min(8, os.cpu_count() or 1)
    """Threads that decode, in the client and alone: where two share a core, CPU time counts for less."""
    images_a_round: int = 200
    """Images a turn."""
    num_imports: int = 15
    """Interpreters started to time the import."""
    out: Path | None = None
    """Where to write, without ending; by default runs/benchmarks/<date>_<commit>_<machine>_client."""


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Run a fake server in another process; its address."""
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()


def picture(width: int, height: int, kind: str, seed: int) -> bytes:
    """A file with the statistics of a photo: smooth shapes and a little noise."""
    rng = np.random.default_rng(seed)
    shapes = Image.fromarray(rng.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8))
    smooth = np.asarray(shapes.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    noisy = (smooth + rng.integers(-8, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, kind)
    return buffer.getvalue()


def measure_import(config: ClientConfig) -> Point:
    """Seconds of `import moderation_client` in fresh interpreters."""
    samples = []
    for _ in range(config.num_imports):
        done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
        samples.append(float(done.stdout) * 1e3)
    return Point(settings={"measure": "import"}, samples={"import_ms": samples})


def measure_cpu(config: ClientConfig, client: ModerationClient, name: str) -> Point:
    """CPU of decoding alone, on as many threads, and of the whole client, in turns."""
    width, height, kind = PICTURES[name]
    files = [picture(width, height, kind, seed) for seed in range(8)]
    images = [files[index % len(files)] for index in range(config.images_a_round)]
    client.moderate(images[:32])
    alone, whole = [], []
    with ThreadPoolExecutor(config.decode_threads) as threads:
        for _ in range(config.num_rounds):
            start = time.process_time()
            for _ in threads.map(lambda image: decode(image, SPEC), images):
                pass
            middle = time.process_time()
            for _ in client.moderate_stream(images):
                pass
            alone.append((middle - start) / len(images) * 1e3)
            whole.append((time.process_time() - middle) / len(images) * 1e3)
    ratios = [a / b for a, b in zip(whole, alone, strict=True)]
    return Point(
        settings={"measure": "cpu", "picture": name},
        samples={"decode_cpu_ms": alone, "client_cpu_ms": whole, "ratio": ratios},
    )


def measure_memory(config: ClientConfig, client: ModerationClient) -> Point:
    """Resident memory over a long stream, every 100 images; files are made afresh so that none is shared."""
    process = psutil.Process()
    base = picture(640, 480, "JPEG", 0)
    images = (base + index.to_bytes(4, "big") for index in range(config.num_images))
    samples: list[float] = []
    start = time.monotonic()
    for count, _ in enumerate(client.moderate_stream(images), 1):
        if count % 100 == 0:
            samples.append(process.memory_info().rss / 2**20)
    after_500 = samples[4] if len(samples) > 4 else samples[0]
    return Point(
        settings={"measure": "memory", "num_images": config.num_images},
        samples={"rss_mib": samples},
        values={
            "growth_mib": max(samples[4:] or samples) - after_500,
            "duration_s": time.monotonic() - start,
        },
    )


def bars(points: list[Point]) -> list[Bar]:
    """Figures against what is asked."""
    found = []
    for point in points:
        measure = point.settings["measure"]
        if measure == "import":
            name = "import, ms (the fastest start: other work on the machine only adds)"
            fastest, slowest = min(point.samples["import_ms"]), max(point.samples["import_ms"])
            found.append(
                Bar(name=name, measured=fastest, low=fastest, high=slowest, limit=150, sense="at_most")
            )
        elif measure == "cpu":
            ratios = sorted(point.samples["ratio"])
            name = f"CPU an image over decoding alone, {point.settings['picture']}"
            found.append(
                Bar(
                    name=name,
                    measured=statistics.median(ratios),
                    low=ratios[0],
                    high=ratios[-1],
                    limit=1.15,
                    sense="at_most",
                    goal=point.settings["picture"] != next(iter(PICTURES)),
                )
            )
        else:
            name = f"memory growth after 500 of {point.settings['num_images']} images, MiB"
            found.append(Bar(name=name, measured=point.number("growth_mib"), limit=50, sense="at_most"))
    return found


HEADER = ("measured", "unit", "median", "lowest", "highest")


def rows(result: Result) -> list[list[str]]:
    """Rows under `HEADER`, for terminal, page and README."""
    found = []
    for point in result.points:
        what = str(point.settings.get("picture") or point.settings["measure"])
        for name, samples in point.samples.items():
            figure, _, unit = name.rpartition("_")
            label = (figure or unit).replace("_", " ")
            values = (statistics.median(samples), min(samples), max(samples))
            found.append([f"{what}: {label}", unit if figure else "-", *map(number, values)])
    return found


def text(result: Result) -> str:
    """Give everything that is printed."""
    return text_table(HEADER, rows(result))


def page(result: Result) -> Page:
    """Build the HTML page."""
    document = Page(
        "What the client costs", "Its import, its memory over a stream, its CPU beside the decoding."
    )
    document.bars(result.bars)
    document.heading("Readings")
    document.table(HEADER, rows(result))
    document.environment(result)
    return document


def main(config: ClientConfig) -> int:
    """Measure, print pass or miss, write the JSON; the exit code is 1 when a bar is missed."""
    points = [measure_import(config)]
    with server() as url, ModerationClient(url, decode_threads=config.decode_threads) as client:
        points.append(measure_memory(config, client))
        points += [measure_cpu(config, client, name) for name in PICTURES]
    result = make_result("client", config, points, bars=bars(points))
    return finish(result, config.out, text=text, page=page)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(ClientConfig)))
