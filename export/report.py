"""parity.json and parity.html: what was measured on which images, against which limits, and the images that moved most."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from export.parity import SHIFT_BINS, Worst
from export.source import Source
from export.variants import Built, VariantConfig

PARITY_SCHEMA_VERSION = 1
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #1c2024 }
table { border-collapse: collapse; margin: .5rem 0 1.5rem } th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #d8dce0 }
th:first-child, td:first-child { text-align: left } .pass { color: #18794e } .fail { color: #cd2b31; font-weight: 600 }
.worst { display: flex; flex-wrap: wrap; gap: 1rem } figure { margin: 0; width: 8rem; font-size: .8rem } figure img { width: 8rem; height: 8rem; object-fit: contain; border: 1px solid #d8dce0 }
.bar { fill: #3e63dd } small { color: #60646c }
"""


def write_report(source: Source, built: Sequence[Built], config: VariantConfig, folder: Path) -> Path:
    """Write both files into `folder`; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    payload = {
        "schema_version": PARITY_SCHEMA_VERSION,
        "source": source.name,
        "reference": source.reference_name,
        "gates": config.gates.to_dict(),
        "max_batch_size": config.max_batch_size,
        "variants": {each.variant: _json(each) for each in built},
    }
    (folder / "parity.json").write_text(json.dumps(payload, indent=1) + "\n")
    page = folder / "parity.html"
    page.write_text(_page(source, built, config), encoding="utf-8")
    return page


def _json(built: Built) -> dict[str, Any]:
    return {
        "passed": built.passed,
        "failures": list(built.failures),
        "batch_8_ms": built.time_ms,
        "notes": dict(built.notes),
        **built.parity.to_dict(),
    }


def _page(source: Source, built: Sequence[Built], config: VariantConfig) -> str:
    test = source.images.test
    body = [
        f"<h1>Parity of {_e(source.name)}</h1>",
        (
            f"<p>Every variant against {_e(source.reference_name)} on {test.num_images} held-out images "
            f"({len(test.pixels)} views). Decisions are compared under the recommended policy and with every label's "
            "threshold in the middle of the range. <small>This page shows held-out images: keep it where they may be "
            "kept.</small></p>"
        ),
        _figures(built, config),
        *(_section(each, source) for each in built),
    ]
    return f"<!doctype html><html lang=en><meta charset=utf-8><title>Parity</title><style>{STYLE}</style>{''.join(body)}</html>\n"


def _figures(built: Sequence[Built], config: VariantConfig) -> str:
    rows = [("", *(each.variant for each in built))]
    rows.append(("gate", *("passed" if each.passed else "FAILED" for each in built)))
    for where in built[0].parity.agreement:
        rows.append((f"decisions agree {where}", *(_share(each, where) for each in built)))
    for batch in built[0].parity.batch_agreement:
        cells = (f"{each.parity.batch_agreement[batch]:.2%}" for each in built)
        rows.append((f"decisions kept at batch {batch}", *cells))
    rows.append(
        ("needed: at least", *(f"{config.gates.of(each.variant).min_agreement:.2%}" for each in built))
    )
    for name in ("mean", "p99", "max"):
        rows.append((f"score shift, {name}", *(f"{getattr(each.parity.shift, name):.2g}" for each in built)))
    for batch in built[0].parity.batch_shift:
        rows.append(
            (f"largest shift at batch {batch}", *(f"{each.parity.batch_shift[batch]:.2g}" for each in built))
        )
    rows.append(
        ("allowed: at most", *(f"{config.gates.of(each.variant).max_score_shift:g}" for each in built))
    )
    for label in built[0].parity.ap_reference:
        rows.append((f"average precision, {label}", *(_ap(each, label) for each in built)))
    rows.append(("batch of 8 on this machine", *(f"{each.time_ms:.1f} ms" for each in built)))
    return _table(rows)


def _share(built: Built, where: str) -> str:
    parity = built.parity
    return f"{parity.agreement[where]:.2%} ({parity.disagreements[where]} differ)"


def _ap(built: Built, label: str) -> str:
    parity = built.parity
    return f"{parity.ap_variant[label]:.4f} ({0.0 - round(parity.ap_drop[label], 4):+.4f})"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    head = "".join(f"<th>{_e(cell)}</th>" for cell in rows[0])
    marks = {"passed": " class=pass", "FAILED": " class=fail"}
    lines = "".join(
        "<tr>" + "".join(f"<td{marks.get(cell, '')}>{_e(cell)}</td>" for cell in row) + "</tr>"
        for row in rows[1:]
    )
    return f"<table><tr>{head}</tr>{lines}</table>"


def _section(built: Built, source: Source) -> str:
    failed = "".join(f"<p class=fail>{_e(failure)}</p>" for failure in built.failures)
    notes = _notes(built)
    worst = "".join(_figure(each, source) for each in built.parity.worst)
    return (
        f"<h2>{built.variant}</h2>{failed}{notes}{_histogram(built)}"
        f"<h3>Images whose score moved most</h3><div class=worst>{worst}</div>"
    )


def _notes(built: Built) -> str:
    notes = built.notes
    if "trials" not in notes:
        return ""
    rows = [("calibration", "layers in float", "smallest agreement", "mean shift")]
    for trial in notes["trials"]:
        settings = trial["settings"]
        floats = str(len(settings["float_nodes"]))
        rows.append((settings["method"], floats, f"{trial['agreement']:.2%}", f"{trial['mean_shift']:.2g}"))
    return (
        f"<p>{notes['num_layers']} layers; chosen: {_e(notes['method'])} with {len(notes['float_layers'])} more in float. "
        f"Tried, on images that are not the test images:</p>{_table(rows)}"
    )


def _histogram(built: Built) -> str:
    """Draw counts of score shifts by size, as bars; each bar has its number."""
    counts = built.parity.shift.histogram
    top = max(*counts, 1)
    bars = []
    for index, count in enumerate(counts):
        height = round(100 * count / top)
        x = 20 + 62 * index
        bars.append(
            f"<rect class=bar x={x} y={140 - height} width=50 height={height} />"
            f"<text x={x + 25} y={135 - height} text-anchor=middle font-size=10>{count}</text>"
            f"<text x={x + 25} y=154 text-anchor=middle font-size=10>&lt; {SHIFT_BINS[index + 1]:g}</text>"
        )
    width = 40 + 62 * len(counts)
    title = f"<text x=20 y=12 font-size=11>scores by absolute shift ({sum(counts)} scores)</text>"
    return f"<svg width={width} height=165 role=img>{title}{''.join(bars)}</svg>"


def _figure(worst: Worst, source: Source) -> str:
    test = source.images.test
    view = int((test.owners == worst.index).argmax())
    stream = io.BytesIO()
    picture = Image.fromarray(test.pixels[view])
    picture.thumbnail((128, 128))
    picture.save(stream, "PNG")
    encoded = base64.b64encode(stream.getvalue()).decode()
    return (
        f'<figure><img src="data:image/png;base64,{encoded}" alt="{_e(worst.name)}">'
        f"<figcaption>{_e(worst.label)} {worst.reference:.3f} &rarr; {worst.variant:.3f}<br><small>{_e(worst.name)}</small>"
        "</figcaption></figure>"
    )


def _e(text: object) -> str:
    return html.escape(str(text))
