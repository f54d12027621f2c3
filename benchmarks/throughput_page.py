"""How an open-loop run is shown: the table of offered rates, and a page with latency, goodput and the generator's lateness."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.report import COLOURS, Page, figure, number, text_table
from benchmarks.results import Point, Result
from benchmarks.stats import percentile

HEADER = (
    "phase", "x", "offered/s", "goodput/s", "answered/s", "p50 ms", "p99 ms", "max ms", "queue full", "expired",
    "other", "open", "formed", "late p99 ms", "valid",
)  # fmt: skip


def row(point: Point) -> list[str]:
    """One line of the table."""
    values = point.values
    answered = point.samples["latency_ms"]
    summary = point.summary() if answered else None
    late = point.samples["lateness_ms"]
    refused = [int(point.number(key)) for key in ("num_queue_full", "num_expired")]
    formed = values.get("mean_batch")
    unanswered = int(values.get("num_unanswered") or 0)
    return [
        str(point.settings["phase"]),
        f"{point.settings['multiple']:g}" if point.settings["multiple"] else "-",
        number(float(str(point.settings["offered_per_s"]))),
        number(point.number("goodput_per_s")),
        number(point.number("answered_per_s")),
        *(number(value) for value in ((summary.p50, summary.p99, summary.max) if summary else (None,) * 3)),
        *(str(value) for value in refused),
        str(int(point.number("num_errors")) - sum(refused) - unanswered),
        str(unanswered),
        number(None if formed is None else float(formed)),
        number(percentile(late, 99)) if late else "-",
        "yes" if point.valid else "NO",
    ]


def highest(result: Result) -> Point | None:
    """Point with the highest offered rate that met the SLO and is valid."""
    slo_ms = float(result.config["slo_p99_ms"])
    good = [
        point
        for point in result.points
        if point.valid
        and not point.number("num_errors")
        and point.samples["latency_ms"]
        and point.summary().p99 <= slo_ms
    ]
    return max(good, key=lambda point: float(str(point.settings["offered_per_s"])), default=None)


def conclusion(result: Result) -> str:
    """Answer in one sentence."""
    slo_ms = float(result.config["slo_p99_ms"])
    best = highest(result)
    if best is None:
        return f"no offered rate met p99 <= {slo_ms:g} ms"
    rate, goodput = best.settings["offered_per_s"], best.number("goodput_per_s")
    return (
        f"highest rate with p99 <= {slo_ms:g} ms: {float(str(rate)):.1f} requests/s "
        f"(goodput {goodput:.1f}/s, p99 {best.summary().p99:.1f} ms)"
    )


def text(result: Result) -> str:
    """Give everything that is printed."""
    lines = [text_table(HEADER, [row(point) for point in result.points])]
    lines += [
        f"INVALID {point.settings['offered_per_s']:.0f}/s: {note}"
        for point in result.points
        for note in point.notes
    ]
    lines.append(conclusion(result))
    return "\n".join(lines)


def page(result: Result) -> Page:
    """Build the HTML page."""
    document = Page(
        "Throughput within an SLO, open loop",
        "Requests arrive when they are due, whether or not earlier ones were answered; latency counts from then.",
    )
    document.text(conclusion(result))
    document.bars(result.bars)
    document.heading("Offered rates")
    document.table(HEADER, [row(point) for point in result.points])
    if not result.points:
        return document
    for point in result.points:
        for note in point.notes:
            document.text(f"invalid at {point.settings['offered_per_s']:.0f}/s: {note}")
    document.heading("Plots")
    slo_ms = float(result.config["slo_p99_ms"])
    document.figure(
        latency_plot(result, slo_ms),
        "Latency of answered requests against the offered rate; the line is the SLO.",
    )
    document.figure(goodput_plot(result), "Answers within the SLO and refusals against the offered rate.")
    document.figure(
        lateness_plot(result), "How late the generator itself sent: hollow points are invalid runs."
    )
    document.environment(result)
    return document


def _rates(result: Result) -> Any:
    return np.array([float(str(point.settings["offered_per_s"])) for point in result.points])


def latency_plot(result: Result, slo_ms: float) -> Any:
    """Median and p99 against the offered rate."""
    drawing, axes = figure()
    rates = _rates(result)
    order = np.argsort(rates, kind="stable")
    for percent, colour in ((50, COLOURS[0]), (99, COLOURS[1])):
        values = np.array(
            [
                percentile(each.samples["latency_ms"], percent) if each.samples["latency_ms"] else np.nan
                for each in result.points
            ]
        )
        axes.plot(rates[order], values[order], "o-", color=colour, label=f"p{percent}")
    axes.axhline(slo_ms, color="#5d6b7a", linestyle=":", label="SLO")
    axes.set(xlabel="offered, requests/s", ylabel="latency from due, ms", yscale="log", xlim=(0, None))
    axes.legend(fontsize=8)
    return drawing


def goodput_plot(result: Result) -> Any:
    """Goodput and refusals against the offered rate."""
    drawing, axes = figure()
    rates = _rates(result)
    order = np.argsort(rates, kind="stable")
    durations = np.array([point.number("duration_s") for point in result.points])
    lines = {
        "goodput": np.array([point.number("goodput_per_s") for point in result.points]),
        "refused, queue full": np.array([point.number("num_queue_full") for point in result.points])
        / durations,
        "expired": np.array([point.number("num_expired") for point in result.points]) / durations,
    }
    for name, values in lines.items():
        axes.plot(rates[order], values[order], "o-", label=name)
    axes.plot([0, rates.max()], [0, rates.max()], color="#5d6b7a", linestyle=":", label="offered")
    axes.set(xlabel="offered, requests/s", ylabel="requests/s", xlim=(0, None), ylim=(0, None))
    axes.legend(fontsize=8)
    return drawing


def lateness_plot(result: Result) -> Any:
    """p99 of the generator's lateness."""
    drawing, axes = figure(height=3.0)
    for point, rate in zip(result.points, _rates(result), strict=True):
        late = point.samples["lateness_ms"]
        if late:
            fill = "full" if point.valid else "none"
            axes.plot(rate, percentile(late, 99), "o", color=COLOURS[2], fillstyle=fill)
    axes.set(xlabel="offered, requests/s", ylabel="lateness p99, ms", xlim=(0, None), ylim=(0, None))
    return drawing
