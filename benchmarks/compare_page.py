"""How a comparison is judged and shown: paired ratios with intervals, bars for throughput and tail, one page."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.report import COLOURS, Page, figure, number, text_table
from benchmarks.results import Bar, Point, Result
from benchmarks.stats import Ratio, median_interval, percentile, ratio

HEADER = (
    "",
    "what",
    "images/s",
    "rounds",
    "p50 ms",
    "p99 ms",
    "÷ tutorial",
    "÷ ceiling of its precision",
    "errors",
)


def p99(values: Sequence[float]) -> float:
    """99th percentile of one round."""
    return percentile(values, 99)


def rates(point: Point) -> list[float]:
    """Throughput of each round."""
    return list(point.samples["images_per_s"])


def by_key(points: Sequence[Point], key: str) -> Point | None:
    """Give the server with this letter."""
    return next((point for point in points if point.settings["key"] == key), None)


def ceiling(points: Sequence[Point], precision: str) -> Point | None:
    """Best in-process ONNX Runtime mode of a precision, by its median."""
    found = [
        point for point in points if point.settings["key"] == "b" and precision in str(point.settings["name"])
    ]
    return max(found, key=lambda point: statistics.median(rates(point)), default=None)


def paired(ours: Point | None, theirs: Point | None, sample: str = "images_per_s") -> Ratio | None:
    """Ratio over the rounds that both have, without those in which either had errors or no answer; None when none is left."""
    if ours is None or theirs is None:
        return None
    rounds = [
        pair
        for index, pair in enumerate(
            zip(ours.samples.get(sample, ()), theirs.samples.get(sample, ()), strict=False)
        )
        if min(pair) > 0 and not _has_errors(ours, index) and not _has_errors(theirs, index)
    ]
    return ratio([first for first, _ in rounds], [second for _, second in rounds]) if rounds else None


def _has_errors(point: Point, index: int) -> bool:
    errors = point.samples.get("errors", ())
    return index < len(errors) and errors[index] > 0


def bars(points: Sequence[Point], input_: str, backbone: str) -> list[Bar]:
    """Judge what ours must reach from JPEG bytes with ResNet-50; other runs are for looking at."""
    if input_ != "jpeg" or backbone != "resnet50":
        return []
    c, d, e, g, h = (by_key(points, key) for key in "cdegh")
    wanted = (
        ("ours INT8 ÷ tutorial server, images/s", paired(h, c), 5.0, 6.5),
        ("ours INT8 ÷ tutorial server, p99 of latency", paired(h, c, "p99_ms"), 0.1, None),
        ("ours INT8 ÷ best simple server INT8, images/s", paired(h, d), 1.0, 1.3),
        ("ours FP32 ÷ tutorial server, images/s", paired(g, c), 1.6, None),
        ("ours FP32 ÷ LitServe + ONNX Runtime, images/s", paired(g, e), 1.0, 1.1),
    )
    judged = [
        _bar(name, found, limit, is_goal=is_goal)
        for name, found, must, goal in wanted
        for limit, is_goal in ((must, False), (goal, True))
        if found is not None and limit is not None
    ]
    return [*judged, *_error_bars((g, h))]


def _bar(name: str, found: Ratio, limit: float, *, is_goal: bool) -> Bar:
    return Bar(
        name=name + found.caution,
        measured=found.value,
        low=found.interval.low,
        high=found.interval.high,
        limit=limit,
        sense="at_most" if "p99" in name else "at_least",
        goal=is_goal,
        ratio=True,
    )


def _error_bars(ours: Sequence[Point | None]) -> list[Bar]:
    """Rounds with errors are left out of the ratios, so that errors must be judged themselves."""
    return [
        Bar(name=f"errors of {each.settings['name']}", measured=errors, limit=0.0, sense="at_most")
        for each in ours
        if each is not None and (errors := each.number("num_errors"))
    ]


def row(point: Point, points: Sequence[Point]) -> list[str]:
    """One line of the table."""
    name = str(point.settings["name"])
    rate = median_interval(rates(point))
    latencies = point.samples["latency_ms"]
    precision = "INT8" if "INT8" in name else "FP32"
    tutorial = paired(point, by_key(points, "c"))
    best = ceiling(points, precision) if "PyTorch" not in name else None
    of_ceiling = paired(point, best) if best is not point else None
    return [
        f"({point.settings['key']})",
        name,
        f"{number(rate.value)} ({number(rate.low)} - {number(rate.high)})",
        str(len(rates(point))),
        number(percentile(latencies, 50)) if latencies else "-",
        number(statistics.median(point.samples["p99_ms"])) if latencies else "-",
        str(tutorial) if tutorial else "-",
        str(of_ceiling) if of_ceiling else "-",
        str(point.values["num_errors"]),
    ]


def text(result: Result) -> str:
    """Give everything that is printed."""
    ordered = sorted(result.points, key=lambda point: str(point.settings["key"]))
    lines = [text_table(HEADER, [row(point, result.points) for point in ordered])]
    return "\n".join(lines)


def page(result: Result) -> Page:
    """Build the HTML page."""
    what = "from JPEG bytes to decision" if result.config["input"] == "jpeg" else "from pixels to decision"
    document = Page(
        f"The same images and weights through everything: {result.config['backbone']}",
        f"{result.config['num_callers']} callers, {what}; everything on the same cores, in interleaved rounds.",
    )
    document.bars(result.bars)
    ordered = sorted(result.points, key=lambda point: str(point.settings["key"]))
    document.heading("Rounds")
    document.table(HEADER, [row(point, result.points) for point in ordered], text_columns=(1,))
    document.text(
        "Ratios are of the same round, then the median; the interval is that of the median over rounds. "
        "p99 is the median of the rounds' own."
    )
    if not ordered:
        return document
    document.heading("Plots")
    document.figure(rate_plot(ordered), "Images per second: median of the rounds, each round as a point.")
    document.figure(latency_plot(ordered), "Latency of the servers: median and p99, logarithmic.")
    document.environment(result)
    return document


def rate_plot(points: Sequence[Point]) -> Any:
    """Throughput bars with every round as a point."""
    drawing, axes = figure(height=0.36 * len(points) + 1.2)
    for place, point in enumerate(points):
        colour = COLOURS[2] if str(point.settings["name"]).startswith("ours") else COLOURS[5]
        axes.barh(place, statistics.median(rates(point)), color=colour)
        axes.plot(rates(point), [place] * len(rates(point)), "|", color="#1c2733", markersize=9)
    axes.set_yticks(
        range(len(points)), [f"({point.settings['key']}) {point.settings['name']}" for point in points]
    )
    axes.invert_yaxis()
    axes.set(xlabel="images/s", xlim=(0, None))
    return drawing


def latency_plot(points: Sequence[Point]) -> Any:
    """Median and p99 of the servers."""
    servers = [point for point in points if point.samples["latency_ms"]]
    drawing, axes = figure(height=0.4 * len(servers) + 1.2)
    for place, point in enumerate(servers):
        values = point.samples["latency_ms"]
        low, high = percentile(values, 50), percentile(values, 99)
        axes.plot([low, high], [place, place], "-", color="#c8d0d9", linewidth=4, zorder=1)
        axes.plot(low, place, "o", color=COLOURS[0], label="p50" if not place else None)
        axes.plot(high, place, "s", color=COLOURS[1], label="p99" if not place else None)
    axes.set_yticks(
        range(len(servers)), [f"({point.settings['key']}) {point.settings['name']}" for point in servers]
    )
    axes.invert_yaxis()
    axes.set(xlabel="latency, ms", xscale="log")
    axes.legend(fontsize=8)
    return drawing
