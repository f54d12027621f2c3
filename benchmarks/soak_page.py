"""How a soak is shown: what was read over time with the slope that was fitted, and how the images ended."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats as scipy_stats

from benchmarks.report import COLOURS, Page, bar_rows, figure, text_table
from benchmarks.results import Point, Result
from benchmarks.stats import Interval

NAMES = {
    "server_mb": "the server's memory, MiB",
    "client_mb": "the client's memory, MiB",
    "server_descriptors": "the server's descriptors",
    "client_descriptors": "the client's descriptors",
    "shared_mb": "shared memory, MiB",
}
LIMITS = {
    "server_mb": 1.0,
    "client_mb": 1.0,
    "server_descriptors": 0.0,
    "client_descriptors": 0.0,
    "shared_mb": 0.0,
}


def growth(point: Point, key: str, settle_s: float) -> Interval:
    """Slope a minute after `settle_s`, by Theil and Sen."""
    read_s, values = np.asarray(point.samples["read_s"]), np.asarray(point.samples[key])
    chosen = read_s >= settle_s
    slope, _, low, high = scipy_stats.theilslopes(values[chosen], read_s[chosen] / 60.0, 0.95)
    return Interval(low=float(low), value=float(slope), high=float(high), confidence=0.95)


def text(result: Result) -> str:
    """Give everything that is printed."""
    counts = [(key, str(value)) for key, value in result.points[0].values.items()]
    bars = [
        (name, measured, interval, limit, word)
        for name, measured, interval, limit, _, word in bar_rows(result.bars)
    ]
    header = ("bar", "measured", "95 % interval", "limit", "verdict")
    return "\n\n".join((text_table(("images", "number"), counts), text_table(header, bars)))


def page(result: Result) -> Page:
    """Build the HTML page."""
    point, settle_s = result.points[0], float(result.config["settle_s"])
    document = Page(
        "Nothing grows",
        "Mixed traffic with one broken image in twenty; memory, descriptors and shared memory of both sides.",
    )
    document.bars(result.bars)
    document.heading("Images")
    document.table(("what", "number"), [(key, str(value)) for key, value in point.values.items()])
    document.heading("Course")
    for key, name in NAMES.items():
        document.figure(
            plot(point, key, settle_s),
            f"{name}. The line is the slope fitted to what lies right of the mark.",
        )
    document.environment(result)
    return document


def plot(point: Point, key: str, settle_s: float) -> Any:
    """One quantity over time with its slope."""
    drawing, axes = figure(height=2.6)
    minutes, values = np.asarray(point.samples["read_s"]) / 60.0, np.asarray(point.samples[key])
    axes.plot(minutes, values, color=COLOURS[0])
    chosen = minutes >= settle_s / 60.0
    slope = growth(point, key, settle_s).value
    middle = np.median(values[chosen]) - slope * np.median(minutes[chosen])
    axes.plot(
        minutes[chosen], middle + slope * minutes[chosen], color=COLOURS[1], label=f"{slope:+.3f} a minute"
    )
    axes.axvline(settle_s / 60.0, color="#5d6b7a", linestyle=":")
    axes.set(xlabel="minutes", ylabel=NAMES[key].rpartition(", ")[2], ylim=(0, None))
    axes.legend(fontsize=8)
    return drawing
