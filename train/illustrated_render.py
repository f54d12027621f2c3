"""How a drawing of a package becomes an image file: 256 x 256 pixels with transparency, the same bytes every time.

One-colour drawings get a colour, and some of them a backdrop or a sticker's border, from a hash of set and name alone: neither
may say anything about the label, or a model would learn it instead of the object.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import resvg_py
from PIL import Image, ImageDraw, ImageFilter

from train.errors import DataError, UnknownImageError
from train.illustrated_packages import Package

SIDE = 256
_INNER_SIDE, _STICKER_SIDE = 200, 232  # room for a backdrop around the drawing, for a border around it
_DARKS = (
    "#1f2328 #4b5563 #7c3f1d #9a3412 #3f6212 #166534 #0f766e #155e75 #1d4ed8 #1e3a8a #5b21b6 #86198f #9d174d #b91c1c #7f1d1d"
).split()
"""Inks that are read on white, and have a contrast of at least 4.5 to every light."""
_MIDS = (
    "#8a8f98 #c2610c #e07a1f #d4a017 #6b8e23 #2e9b5e #1aa6b7 #2f84d8 #7c5cd6 #d6457f #94703f #5b7a99".split()
)
"""Inks that are seen on white and on black."""
_LIGHTS = "#ffffff #f8f1e2 #fff2c9 #e3f3ff #e9f9df #ffe6ea #efeaff #eceff2".split()
_PLAIN_OF_10, _BACKDROP_OF_10 = 6, 2  # the remaining two of ten get a sticker's border
_INK = 'color="#000000"'  # what `currentColor` in a drawing means until it is coloured
_ICON_BOX = {"left": 0, "top": 0, "width": 16, "height": 16}  # defaults of the Iconify JSON format


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One drawing as its package holds it."""

    set: str
    """The artist's set."""
    name: str
    """The image's name in the package."""
    style: str
    """`colour`, `mono` or `raster`."""
    content: str | bytes
    """SVG text, or an encoded picture for `raster`."""


class Artwork:
    """A verified tarball, opened in memory: nothing of a package is unpacked to disk or run."""

    def __init__(self, package: Package, tarball: Path) -> None:
        """Read the whole tarball; raises DataError when it is not what such a package holds."""
        self._package = package
        self._icons: dict[str, dict[str, Any]] = {}
        self._defaults: dict[str, Any] = {}
        self._pictures: dict[str, bytes] = {}
        try:
            with tarfile.open(tarball) as archive:
                if package.style == "raster":
                    self._pictures = _read_pictures(archive)
                else:
                    self._defaults = _read_json(archive, "package/icons.json")
                    self._icons = self._defaults["icons"]
        except (tarfile.TarError, KeyError, ValueError) as error:
            raise DataError(
                f"{package.pinned}: {tarball} does not hold the expected artwork: {error}"
            ) from error

    def drawing(self, name: str) -> Drawing:
        """Return one drawing; raises UnknownImageError when the package has none of that name."""
        known = self._pictures or self._icons
        if name not in known:
            raise UnknownImageError(
                f"{self._package.pinned} holds no image named {name!r}: correct the label table's row, or remove it."
            )
        content = self._pictures[name] if self._pictures else self._svg(self._icons[name])
        return Drawing(set=self._package.set, name=name, style=self._package.style, content=content)

    def _svg(self, icon: dict[str, Any]) -> str:
        """Write the SVG around an icon's body, as the Iconify JSON format defines it."""
        box = {key: icon.get(key, self._defaults.get(key, default)) for key, default in _ICON_BOX.items()}
        view = f"{box['left']} {box['top']} {box['width']} {box['height']}"
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{box["width"]}" height="{box["height"]}" viewBox="{view}" {_INK}>{icon["body"]}</svg>'
        )


def render(drawing: Drawing) -> bytes:
    """Return the PNG file of a drawing: RGBA, SIDE x SIDE, centred, transparent where nothing is drawn."""
    if isinstance(drawing.content, bytes):
        with Image.open(io.BytesIO(drawing.content)) as picture:
            image = _centre(picture.convert("RGBA"), SIDE, SIDE)
    elif drawing.style == "mono":
        image = _dress(drawing.content, hashlib.sha256(f"{drawing.set}/{drawing.name}".encode()).digest())
    else:
        image = _rasterise(drawing.content, SIDE)
    file = io.BytesIO()
    image.save(file, format="PNG", compress_level=6)
    return file.getvalue()


def _dress(svg: str, dice: bytes) -> Image.Image:
    """Colour a one-colour drawing by its own dice: plain, on a backdrop, or with a sticker's border."""
    inks = (*_DARKS, *_MIDS)
    ink, dark, light = (
        inks[dice[0] % len(inks)],
        _DARKS[dice[0] % len(_DARKS)],
        _LIGHTS[dice[1] % len(_LIGHTS)],
    )
    look = dice[2] % 10
    if look < _PLAIN_OF_10:
        return _rasterise(_inked(svg, ink), SIDE)
    if look < _PLAIN_OF_10 + _BACKDROP_OF_10:
        front, back = (dark, light) if dice[3] % 2 else (light, dark)
        image = _backdrop(back, dice[4])
        image.alpha_composite(_centre(_rasterise(_inked(svg, front), _INNER_SIDE), SIDE, _INNER_SIDE))
        return image
    glyph = _centre(_rasterise(_inked(svg, dark), _STICKER_SIDE), SIDE, _STICKER_SIDE)
    border = Image.new("RGBA", glyph.size, light)
    border.putalpha(
        glyph.getchannel("A").filter(ImageFilter.MaxFilter(13)).filter(ImageFilter.GaussianBlur(1))
    )
    border.alpha_composite(glyph)
    return border


def _backdrop(colour: str, choice: int) -> Image.Image:
    image = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    box = (0, 0, SIDE - 1, SIDE - 1)
    if choice % 3 == 0:
        draw.ellipse(box, fill=colour)
    elif choice % 3 == 1:
        draw.rounded_rectangle(box, radius=SIDE // 5, fill=colour)
    else:
        draw.rectangle(box, fill=colour)
    return image


def _inked(svg: str, colour: str) -> str:
    return svg.replace(_INK, f'color="{colour}"', 1)


def _rasterise(svg: str, side: int) -> Image.Image:
    """Draw an SVG so that its longer side is `side`; no font of the machine takes part."""
    try:
        data = resvg_py.svg_to_bytes(svg_string=svg, width=side, skip_system_fonts=True)
    except ValueError as error:
        raise DataError(f"resvg cannot draw {svg[:120]!r}: {error}") from error
    with Image.open(io.BytesIO(bytes(data))) as picture:
        return _centre(picture.convert("RGBA"), side, side)


def _centre(image: Image.Image, canvas: int, longest: int) -> Image.Image:
    """Scale an image to the given longest side and put it in the middle of a transparent square."""
    scale = longest / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    scaled = image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (canvas, canvas), (0, 0, 0, 0))
    square.paste(scaled, ((canvas - size[0]) // 2, (canvas - size[1]) // 2))
    return square


def _read_json(archive: tarfile.TarFile, member: str) -> dict[str, Any]:
    file = archive.extractfile(member)
    if file is None:
        raise ValueError(f"{member} is not a file")
    icons: dict[str, Any] = json.load(file)
    if not isinstance(icons.get("icons"), dict):
        raise ValueError(f"{member} lists no icons")
    return icons


def _read_pictures(archive: tarfile.TarFile) -> dict[str, bytes]:
    pictures = {}
    for member in archive:
        file = archive.extractfile(member) if member.name.endswith(".webp") else None
        if file is not None:
            pictures[Path(member.name).stem] = file.read()
    return pictures
