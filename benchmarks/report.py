"""How results look: aligned tables in a terminal, Markdown for the README, and one self-contained HTML page with SVG plots.

A page needs no network, no script and no second file. Everything that is in a plot is also in a table beside it.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from benchmarks.results import Bar, Result

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933")
"""Okabe and Ito (2008) with one addition: told apart with any kind of colour blindness."""

STYLE = """
:root { color-scheme: light; --ink: #1c2733; --soft: #5d6b7a; --line: #dde3ea; --pass: #00694d; --miss: #a33a00; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.2rem 4rem; color: var(--ink); background: #fff;
       font: 16px/1.55 system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
p.lead, figcaption, footer { color: var(--soft); } figure { margin: 1rem 0; }
figure svg { width: 100%; height: auto; } figcaption { font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child, th.text, td.text { text-align: left; } th { color: var(--soft); font-weight: 600; }
td.text { white-space: normal; min-width: 14rem; } .pass { color: var(--pass); } .miss { color: var(--miss); }
.pass, .miss { font-weight: 600; } code { font-size: .88em; }
@media print { body { max-width: none; padding: 0; } figure, table { break-inside: avoid; } }
"""


def number(value: float | None, digits: int = 3) -> str:
    """Short form: three significant digits, never an exponent, a dash for nothing."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:#.{digits}g}".rstrip(".")


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns for a terminal; the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [
            cell.ljust(width) if not index else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Table for the README."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


def figure(width: float = 9.0, height: float = 4.2, columns: int = 1) -> tuple[Figure, Any]:
    """Figure and axes (one, or a row of `columns`) in the house style; draws without a display."""
    drawing = Figure(figsize=(width, height), layout="constrained")
    axes = drawing.subplots(1, columns, squeeze=True)
    for each in [axes] if columns == 1 else axes:
        each.grid(visible=True, color="#e4e9ef", linewidth=0.8)
        each.set_axisbelow(True)
        for side in ("top", "right"):
            each.spines[side].set_visible(False)
        each.set_prop_cycle(color=COLOURS)
    return drawing, axes


def verdict_class(cell: str) -> str:
    """Colour of a cell that holds a verdict."""
    word = cell.partition(",")[0]
    return word if word in ("pass", "miss") else ""


class Page:
    """One HTML page, written top to bottom."""

    def __init__(self, title: str, lead: str) -> None:
        """Start with a heading and one sentence that says what the reader is looking at."""
        self.title = title
        self._parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="lead">{html.escape(lead)}</p>']
        self._num_figures = 0

    def heading(self, text: str) -> None:
        """Start a section."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def table(
        self, header: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: Sequence[int] = ()
    ) -> None:
        """Add a table; `text_columns` are set to the left."""
        kinds = ["text" if index in text_columns else "" for index in range(len(header))]
        head = "".join(
            f'<th class="{kind}">{html.escape(cell)}</th>' for kind, cell in zip(kinds, header, strict=True)
        )
        body = []
        for row in rows:
            cells = [
                f'<td class="{"text" if index in text_columns else verdict_class(cell)}">'
                f"{html.escape(cell)}</td>"
                for index, cell in enumerate(row)
            ]
            body.append(f"<tr>{''.join(cells)}</tr>")
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
        self._parts.append(f'<div class="scroll">{table}</div>')

    def figure(self, drawing: Figure, caption: str) -> None:
        """Add a plot as inline SVG, with what it shows said in words."""
        self._num_figures += 1
        self._parts.append(
            f"<figure>{inline_svg(drawing, f'f{self._num_figures}', caption)}"
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )

    def bars(self, bars: Sequence[Bar]) -> None:
        """Add the table of figures that must be reached."""
        if bars:
            self.heading("Bars")
            self.table(BAR_HEADER, bar_rows(bars))

    def environment(self, result: Result) -> None:
        """Say what it was measured on, and with which settings."""
        self.heading("Measured on")
        self.table(("what", "value"), environment_rows(result), text_columns=(1,))
        self.heading("Settings")
        rows = [(key.replace("_", " "), str(value)) for key, value in result.config.items()]
        self.table(("setting", "value"), rows, text_columns=(1,))

    def write(self, path: Path) -> Path:
        """Write the page."""
        path.parent.mkdir(parents=True, exist_ok=True)
        head = (
            '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(self.title)}</title><style>{STYLE}</style>"
        )
        body = "\n".join(self._parts)
        path.write_text(
            f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n', "utf-8"
        )
        return path


BAR_HEADER = ("what", "measured", "interval", "must be", "kind", "verdict")


def bar_rows(bars: Sequence[Bar]) -> list[tuple[str, ...]]:
    """Rows under `BAR_HEADER`."""
    return [
        (
            bar.name,
            number(bar.measured),
            "-" if bar.low is None or bar.high is None else f"{number(bar.low)} - {number(bar.high)}",
            f"{'≥' if bar.sense == 'at_least' else '≤'} {bar.limit:g}",
            "goal" if bar.goal else "bar",
            bar.verdict,
        )
        for bar in bars
    ]


def environment_rows(result: Result) -> list[tuple[str, str]]:
    """Rows that a reader must know before believing a figure."""
    environment = result.environment
    commit = f"{environment.commit or 'no checkout'}{' with local changes' if environment.dirty else ''}"
    rows = [
        ("when", result.started_at),
        ("commit", commit),
        ("CPU", f"{environment.cpu_model}, {environment.cpu_quota:g} of {environment.num_cpus} cores usable"),
        ("memory", f"{environment.memory_bytes / 2**30:.1f} GiB"),
        ("GPU", ", ".join(environment.gpus) or "none"),
        ("load before", f"{environment.load_average:g}"),
        ("Python", environment.python),
        ("packages", ", ".join(f"{name} {version}" for name, version in environment.versions.items())),
        ("server", ", ".join(f"{key} {value}" for key, value in environment.server.items())),
        ("model", ", ".join(f"{key} {value}" for key, value in environment.model.items())),
    ]
    return [(name, value) for name, value in rows if value]


def inline_svg(drawing: Figure, prefix: str, caption: str) -> str:
    """SVG of a figure without the XML header, its ids made unique on the page, with the caption for screen readers."""
    buffer = io.StringIO()
    drawing.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(caption, quote=True)}" ', 1)
