"""The comparison as one HTML file without script, network or second file; pictures are on it only when asked for."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bulk.comparison import EDGES, Comparison, Flip, Shift
from bulk.places import place_of
from bulk.plan import FOLDER, read_plan, read_shards
from bulk.reading import read_shard
from moderation_client import Decision, InvalidImageError
from moderation_client.contract import ImageSpec
from moderation_client.images import decode

if TYPE_CHECKING:
    from bulk.config import BulkConfig

THUMBNAIL = ImageSpec(height=112, width=112, fit="letterbox")
STYLE = """
:root { color-scheme: light; --ink: #1c2733; --soft: #5d6b7a; --line: #dde3ea; --bad: #a33a00; --good: #00694d; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.2rem 4rem; color: var(--ink); background: #fff;
       font: 16px/1.55 system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
p.lead, figcaption { color: var(--soft); } .bad { color: var(--bad); } .good { color: var(--good); }
.bad, .good { font-weight: 600; } figure { margin: 1rem 0; } figure svg { width: 100%; height: auto; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { color: var(--soft); font-weight: 600; }
"""


def page(found: Comparison, broken: Sequence[str], *, thumbnails_of: BulkConfig | None) -> str:
    """Write the page; `thumbnails_of`: the backfill whose source has the pictures, when they are to be shown."""
    versions = ". ".join(
        f"{name.capitalize()}: {html.escape(found.versions[name])}" for name in ("live", "candidate")
    )
    verdict = "".join(f'<p class="bad">{html.escape(each)}</p>' for each in broken)
    parts = [
        "<h1>Shadow run: candidate against live</h1>",
        f'<p class="lead">{found.num_compared:,} images, judged by both. {versions}.</p>',
        verdict or '<p class="good">Within the bounds.</p>',
        "<h2>Decisions</h2>",
        _decisions(found),
        f"<p>{found.flip_share:.3%} get another decision; {found.laxer_share:.3%} a less strict one.</p>",
        "<h2>Flips by the label that decided</h2>",
        _flips(found),
        "<h2>Score shift, candidate minus live</h2>",
        _shifts(found),
        *(_histogram(label, shift) for label, shift in found.shifts.items()),
        _errors(found),
        _examples(found.examples, thumbnails_of),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Shadow run</title><style>{STYLE}</style>'
        f"</head><body>{''.join(parts)}</body></html>\n"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells must be escaped already."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _decisions(found: Comparison) -> str:
    words = [str(each) for each in Decision]
    rows = [[f"live {one}", *(f"{found.transitions[one, other]:,}" for other in words)] for one in words]
    return _table(["", *(f"candidate {word}" for word in words)], rows)


def _flips(found: Comparison) -> str:
    labels = sorted({*found.stricter, *found.laxer})
    if not labels:
        return "<p>None.</p>"
    rows = [[html.escape(each), f"{found.stricter[each]:,}", f"{found.laxer[each]:,}"] for each in labels]
    return _table(["label", "stricter now", "laxer now"], rows)


def _shifts(found: Comparison) -> str:
    columns = ("mean", "p1", "p5", "p50", "p95", "p99")
    facts = {label: shift.to_dict() for label, shift in found.shifts.items()}
    rows = [
        [html.escape(label), *(f"{each[name]:+.4f}" for name in columns)] for label, each in facts.items()
    ]
    return _table(["label", *columns], rows)


def _histogram(label: str, shift: Shift) -> str:
    """Bars over the range where all but one in a thousand images lie; heights are square roots, or the middle hides the rest."""
    reach = max(abs(shift.quantile(0.0005)), abs(shift.quantile(0.9995)), 0.01)
    inside = np.abs(EDGES[:-1] + EDGES[1:]) / 2 <= reach * 1.05
    counts = np.array([part.sum() for part in np.array_split(shift.counts[inside], 61)])
    heights = 100 * np.sqrt(counts / max(counts.max(), 1))
    bars = "".join(
        f'<rect x="{10 * index + 1}" y="{104 - height:.1f}" width="8" height="{height:.1f}" fill="#0072b2"/>'
        for index, height in enumerate(heights)
    )
    text = (
        f"{html.escape(label)}: shift from -{reach:.3f} to +{reach:.3f}; heights are square roots of counts"
    )
    return (
        f'<figure><svg viewBox="0 0 610 108" role="img" aria-label="{text}">{bars}'
        '<line x1="0" x2="610" y1="104" y2="104" stroke="#5d6b7a"/><line x1="305" x2="305" y1="0" y2="108" '
        f'stroke="#d55e00" stroke-dasharray="3 3"/></svg><figcaption>{text}</figcaption></figure>'
    )


def _errors(found: Comparison) -> str:
    if not found.errors:
        return ""
    words = ", ".join(f"{number:,} by {who}" for who, number in sorted(found.errors.items()))
    return f"<h2>Not judged</h2><p>{words}.</p>"


def _examples(flips: Sequence[Flip], thumbnails_of: BulkConfig | None) -> str:
    if not flips:
        return ""
    pictures = thumbnails(flips, thumbnails_of) if thumbnails_of is not None else {}
    header = ["id", "live", "candidate", *(["picture"] if pictures else [])]
    rows = [
        [html.escape(str(flip.live["id"])), _side(flip.live), _side(flip.candidate)]
        + ([pictures.get((flip.shard, flip.row), "")] if pictures else [])
        for flip in flips
    ]
    shown = "ids and pictures" if pictures else "ids"
    note = f"The gravest first. This page shows {shown} of images, which may be personal data: treat it so."
    return f"<h2>Examples</h2><p>{note}</p>{_table(header, rows)}"


def _side(row: Any) -> str:
    return f"{row['decision']}: {html.escape(str(row['label']))} {row['score']:.3f}"


def thumbnails(flips: Sequence[Flip], config: BulkConfig) -> dict[tuple[int, int], str]:
    """Small pictures of the examples as HTML, read from the source once more."""
    out = place_of(config.out)
    plan = read_plan(out)
    assert plan is not None  # the comparison has read it
    shards = read_shards(plan, out)
    found = {}
    for flip in flips:
        shard = shards[flip.shard]
        source = next(read_shard(shard, place_of(plan.source), out.child(FOLDER), skip=flip.row)).source
        found[flip.shard, flip.row] = _thumbnail(source)
    return found


def _thumbnail(source: Any) -> str:
    from PIL import Image  # noqa: PLC0415  only with --thumbnails

    if isinstance(source, InvalidImageError):
        return ""
    try:
        pixels = decode(source, THUMBNAIL).pixels[0]
    except InvalidImageError:
        return "gone"
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
