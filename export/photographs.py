"""A few dozen real, harmless photographs for comparing foreign models where nothing better is at hand: scikit-image's samples."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

from PIL import Image

from export.errors import RunError
from train.data import Example

NAMES = (
    "astronaut.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
    "horse.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
"""Those that ship in the wheel and are pictures of something."""
PARTS = 6
"""Parts of each photograph that are used besides the whole: halves and quarters."""


def photographs() -> list[Example]:
    """Give whole photographs as `test` and parts of them as `train`, PNG bytes inside. Raises RunError without scikit-image.

    Parts and wholes show the same things: figures measured on them are optimistic, and say little of other images.
    """
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise RunError(
            "no images to compare on: give --images, or install scikit-image for its sample photographs"
        )
    folder = Path(found.origin).parent / "data"
    examples = []
    for name in NAMES:
        if (folder / name).is_file():
            with Image.open(folder / name) as opened:
                picture = opened.convert("RGB")
            examples.append(_example(name, picture, "test"))
            examples += [
                _example(f"{index}-{name}", part, "train") for index, part in enumerate(_parts(picture))
            ]
    return examples


def _parts(picture: Image.Image) -> list[Image.Image]:
    width, height = picture.size
    x, y = width // 2, height // 2
    boxes = [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]
    boxes += [(0, 0, x, height), (0, 0, width, y)]
    return [picture.crop(box) for box in boxes[:PARTS]]


def _example(name: str, picture: Image.Image, split: str) -> Example:
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=1)
    return Example(path=Path(name), content=stream.getvalue(), split=split, name=name)
