"""How an overload is shown: the figures, and the course of answers, refusals, latency and memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.report import COLOURS, Page, bar_rows, figure, number, text_table
from benchmarks.results import Point, Result

BIN_S = 0.5


def rows(point: Point) -> list[tuple[str, str]]:
    """Every single reading of a point."""
    return [
        (key.replace("_", " "), number(value) if isinstance(value, float) else str(value))
        for key, value in point.values.items()
    ]


def text(result: Result) -> str:
    """Give everything that is printed."""
    tables = [text_table((str(point.settings["phase"]), "value"), rows(point)) for point in result.points]
    bars = [(name, measured, limit, word) for name, measured, _, limit, _, word in bar_rows(result.bars)]
    return "\n\n".join([*tables, text_table(("bar", "measured", "limit", "verdict"), bars)])


def page(result: Result) -> Page:
    """Build the HTML page."""
    document = Page(
        "Three times the capacity",
        "Requests arrive when they are due, whether or not earlier ones were answered; latency counts from then.",
    )
    document.bars(result.bars)
    for point in result.points:
        document.heading(
            {"overload": "Overload", "priority": "Interactive beside a backfill"}[
                str(point.settings["phase"])
            ]
        )
        document.table(("what", "value"), rows(point))
        if point.settings["phase"] == "overload":
            document.figure(
                timeline(point),
                "Answers and refusals a second; latency of what was answered; memory. Shaded: the overload.",
            )
    document.environment(result)
    return document


def timeline(point: Point) -> Any:
    """Answers and refusals, latency, and memory over time."""
    drawing, (left, middle, right) = figure(width=11.0, height=3.0, columns=3)
    due_s, latency_ms = np.asarray(point.samples["due_s"]), np.asarray(point.samples["latency_ms"])
    refused = np.asarray(point.samples["refused"]) > 0
    edges = np.arange(0.0, due_s.max(), BIN_S)
    for name, chosen in (("answered", ~refused), ("refused", refused)):
        rates = np.histogram((due_s + latency_ms / 1000)[chosen], edges)[0] / BIN_S
        left.step(edges[:-1], rates, where="post", label=name)
    left.axhline(point.number("capacity_per_s"), color="#5d6b7a", linestyle=":", label="capacity")
    left.set(xlabel="s", ylabel="requests/s", ylim=(0, None))
    left.legend(fontsize=8)
    middle.plot(due_s[~refused], latency_ms[~refused], ".", markersize=2, color=COLOURS[5])
    middle.set(xlabel="s", ylabel="latency of answers, ms", yscale="log")
    memory = point.samples["memory_mb"]
    right.plot(np.arange(len(memory)), memory, color=COLOURS[2])
    right.set(xlabel="s", ylabel="memory of the server, MiB", ylim=(0, None))
    for axes in (left, middle, right):
        axes.axvspan(point.number("begun_s"), point.number("end_s"), color=COLOURS[4], alpha=0.15)
    return drawing
