"""How the stages of a request are shown: a table with shares, and a stacked bar above the whole."""

from __future__ import annotations

import numpy as np

from benchmarks.report import COLOURS, Page, figure, number, text_table
from benchmarks.results import Result
from benchmarks.stats import bootstrap

HEADER = ("stage", "mean ms", "share")


def text(result: Result) -> str:
    """Give everything that is printed."""
    return text_table(HEADER, rows(result))


def rows(result: Result) -> list[list[str]]:
    """Rows under `HEADER`, the whole last."""
    whole = result.points[-1].number("mean_ms")
    found = [
        [
            str(point.settings["stage"]),
            number(point.number("mean_ms")),
            f"{point.number('mean_ms') / whole:.1%}",
        ]
        for point in result.points[:-1]
    ]
    total = sum(point.number("mean_ms") for point in result.points[:-1])
    samples = result.points[-1].samples["latency_ms"]
    interval = bootstrap(samples, lambda values: float(np.mean(values))) if len(samples) > 1 else None
    spread = "" if interval is None else f" ({number(interval.low)} - {number(interval.high)})"
    return [
        *found,
        ["all stages", number(total), f"{total / whole:.1%}"],
        [
            "moderate([path])",
            f"{number(whole)}{spread}",
            "100.0%",
        ],
    ]


def page(result: Result) -> Page:
    """Build the HTML page."""
    document = Page(
        "Where the time of one request goes",
        "From the file on disk to the verdict, one caller. The server's part is from its own statistics.",
    )
    document.bars(result.bars)
    document.heading("Stages")
    document.table(HEADER, rows(result))
    drawing, axes = figure(height=3.0)
    left = 0.0
    colours = (*COLOURS, "#7a5195", "#bc5090")
    for point, colour in zip(result.points[:-1], colours, strict=True):
        axes.barh(
            "stages", point.number("mean_ms"), left=left, color=colour, label=str(point.settings["stage"])
        )
        left += point.number("mean_ms")
    axes.barh("moderate()", result.points[-1].number("mean_ms"), color="#c8d0d9")
    axes.invert_yaxis()
    axes.set(xlabel="ms")
    axes.legend(fontsize=8, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.35))
    document.figure(drawing, "The stages on end, above the whole request as its caller measures it.")
    document.environment(result)
    return document
