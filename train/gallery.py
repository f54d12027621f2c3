"""Galleries of the most confident mistakes, with thumbnails that stay blurred until somebody wants to see them."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from moderation_client import InvalidImageError
from moderation_client.contract import ImageSpec
from moderation_client.images import decode

SIDE = 112
NUM_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """One image on which model and label table disagree."""

    path: Path
    caption: str
    score: float
    content: bytes | None = field(default=None, repr=False)
    """The file's bytes, where the manifest holds them."""


def gallery(mistakes: Sequence[Mistake]) -> str:
    """HTML of a row of thumbnails; each is a checkbox, so that no script is needed to lift the blur."""
    if not mistakes:
        return "<p>None.</p>"
    return f'<div class="gallery">{"".join(_figure(mistake) for mistake in mistakes)}</div>'


def _figure(mistake: Mistake) -> str:
    caption = html.escape(f"{mistake.caption}: {mistake.score:.3f}")
    picture = thumbnail(str(mistake.path) if mistake.content is None else mistake.content)
    inner = (
        f'<img alt="hidden picture" src="data:image/webp;base64,{picture}">'
        if picture
        else "<i>file is gone</i>"
    )
    return (
        f'<figure><label title="click to see"><input type="checkbox" aria-label="show picture">{inner}</label>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def thumbnail(image: str | bytes) -> str | None:
    """First view of an image as base64 of a small WebP; None when it cannot be read any more."""
    try:
        views = decode(image, ImageSpec(height=SIDE, width=SIDE)).pixels
    except InvalidImageError:
        return None
    file = io.BytesIO()
    Image.fromarray(views[0]).save(file, "WEBP", quality=70)
    return base64.b64encode(file.getvalue()).decode()
