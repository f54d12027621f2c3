"""How a latency run is shown: the table, and a page with latency against load (knee marked), the CDF and throughput by batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.report import COLOURS, Page, figure, number, text_table
from benchmarks.results import Point, Result
from benchmarks.stats import bootstrap, percentile_of

HEADER = (
    "input", "batch", "callers", "images/s", "p50 ms", "p90", "p95", "p99", "max", "n", "errors",
    "formed", "queue ms", "in", "infer", "out", "load CPU", "server CPU", "MiB",
)  # fmt: skip
GPU_HEADER = ("GPU %", "GPU W", "GPU MiB")
NUM_LATENCY = 11
"""Columns of `HEADER` that a caller sees; the others are the server's."""
KNEE_GAIN = 0.1
"""The knee is the last point that gained more than this share of throughput for each doubling of callers."""


def sweep_points(result: Result) -> list[Point]:
    """Points of the sweep, without those of the in-process comparison."""
    return [point for point in result.points if "concurrency" in point.settings]


def answered(points: Sequence[Point]) -> list[Point]:
    """Points that have latencies: one at which everything was an error has none to draw."""
    return [point for point in points if point.samples["latency_ms"]]


def header(points: Sequence[Point]) -> tuple[str, ...]:
    """Columns of these points: those of the GPU where one was read."""
    return (*HEADER, *(GPU_HEADER if any(map(_has_gpu, points)) else ()))


def _has_gpu(point: Point) -> bool:
    return point.values.get("gpu_utilisation_percent") is not None


def table(points: Sequence[Point]) -> list[list[str]]:
    """Lines under `header`."""
    with_gpu = len(header(points)) > len(HEADER)
    return [row(point) + (_gpu_cells(point) if with_gpu else []) for point in points]


def _gpu_cells(point: Point) -> list[str]:
    memory = _float(point.values.get("gpu_memory_bytes"))
    shown = [_float(point.values.get(f"gpu_{name}")) for name in ("utilisation_percent", "power_w")]
    return [*map(number, shown), "-" if memory is None else f"{memory / 2**20:.0f}"]


def row(point: Point) -> list[str]:
    """One line of the table; dashes where nothing was answered."""
    values = point.values
    summary = point.summary() if point.samples["latency_ms"] else None
    times = (
        (None,) * 5 if summary is None else (summary.p50, summary.p90, summary.p95, summary.p99, summary.max)
    )
    shares = [_cores(values.get(key), values) for key in ("generator_cpu_s", "server_cpu_s")]
    memory = values.get("server_memory_bytes")
    return [
        f"{point.settings['input']}{'' if point.settings.get('via') == 'wire' else ' (client)'}",
        str(point.settings["batch_size"]),
        str(point.settings["concurrency"]),
        number(point.number("images_per_s")),
        *(number(each) for each in times),
        str(summary.count if summary else 0),
        str(values.get("num_errors", 0)),
        *(number(_float(values.get(key))) for key in ("mean_batch", "server_queue_ms")),
        *(number(_float(values.get(f"server_compute_{key}_ms"))) for key in ("input", "infer", "output")),
        *shares,
        "-" if not isinstance(memory, int) else f"{memory / 2**20:.0f}",
    ]


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _cores(cpu_s: Any, values: Any) -> str:
    return "-" if cpu_s is None else f"{float(cpu_s) / float(values['duration_s']):.2f}"


def text(result: Result) -> str:
    """Give everything that is printed: the table and the remarks."""
    points = sweep_points(result)
    parts = [text_table(header(points), table(points))] if points else []
    parts += [f"{_name(point)}: {note}" for point in points for note in point.notes]
    ceiling = _ceiling_rows(result)
    if ceiling:
        parts.append("\n" + text_table(CEILING_HEADER, ceiling))
    return "\n".join(parts)


CEILING_HEADER = ("images/s, same file, same run", "median", "interval", "rounds")


def _ceiling_rows(result: Result) -> list[list[str]]:
    rows = []
    for point in result.points:
        if "mode" in point.settings:
            rates = sorted(point.samples["images_per_s"])
            callers = point.settings.get("callers", 16)  # results from before it was noted had 16
            is_served = point.settings["kind"] == "served"
            name = (
                f"served, {callers} caller{'' if callers == 1 else 's'}"
                if is_served
                else point.settings["mode"]
            )
            median = float(np.median(rates))
            rows.append(
                [str(name), number(median), f"{number(rates[0])} - {number(rates[-1])}", str(len(rates))]
            )
    return rows


def _name(point: Point) -> str:
    settings = point.settings
    return f"{settings['input']}, batch {settings['batch_size']}, {settings['concurrency']} callers"


def page(result: Result) -> Page:
    """Build the HTML page."""
    document = Page(
        "Latency in a closed loop",
        "Each caller sends its next request when the last one is answered. The server's split is from its own statistics.",
    )
    document.bars(result.bars)
    points = sweep_points(result)
    if points:
        _add_points(document, points)
    rows = _ceiling_rows(result)
    if rows:
        document.heading("Against the same file in process")
        document.table(CEILING_HEADER, rows)
    document.environment(result)
    return document


def _add_points(document: Page, points: Sequence[Point]) -> None:
    document.heading("Points")
    rows, columns = table(points), header(points)
    document.table(columns[:NUM_LATENCY], [each[:NUM_LATENCY] for each in rows])
    document.heading("Inside the server, and what it cost")
    document.table(
        (*columns[:3], *columns[NUM_LATENCY:]), [(*each[:3], *each[NUM_LATENCY:]) for each in rows]
    )
    document.text(
        "formed: images per execution. queue, in, infer, out: mean milliseconds of a request by the server's statistics. "
        "CPU: cores kept busy. MiB: the server's memory, shared pages counted once."
    )
    for point in points:
        for note in point.notes:
            document.text(f"{_name(point)}: {note}")
    document.heading("Intervals")
    document.table(("point", "p50 ms", "p90 ms", "p95 ms", "p99 ms"), [_intervals(point) for point in points])
    if answered(points):
        _add_plots(document, answered(points))


def _add_plots(document: Page, points: Sequence[Point]) -> None:
    document.heading("Plots")
    document.figure(
        load_curve(points), "Latency against throughput, one line a batch size; the knee has a ring."
    )
    document.figure(
        cumulative(points), "Share of requests answered within a time, single-image requests first."
    )
    document.figure(by_batch(points), "Throughput against images per request; one line a number of callers.")
    if any(point.values.get("server_queue_ms") is not None for point in points):
        document.figure(
            split_bars(points),
            "Mean time of a request in the server, by its own statistics, and outside of it.",
        )


def _intervals(point: Point) -> list[str]:
    samples = point.samples["latency_ms"]
    if len(samples) < 2:
        return [_name(point), "-", "-", "-", "-"]
    found = [bootstrap(samples, percentile_of(percent), num_resamples=500) for percent in (50, 90, 95, 99)]
    return [
        _name(point),
        *(f"{number(each.value)} ({number(each.low)} - {number(each.high)})" for each in found),
    ]


def series(points: Sequence[Point], name: str) -> dict[Any, list[Point]]:
    """Group points by a setting (with the input, when there are several)."""
    groups: dict[Any, list[Point]] = {}
    inputs = {point.settings["input"] for point in points}
    for point in points:
        key = point.settings[name]
        groups.setdefault(f"{point.settings['input']}, {key}" if len(inputs) > 1 else key, []).append(point)
    return groups


def knee(points: Sequence[Point]) -> Point:
    """Last point, by callers, whose throughput still grew by `KNEE_GAIN` for each doubling of callers."""
    ordered = sorted(points, key=lambda point: int(str(point.settings["concurrency"])))
    best = ordered[0]
    for point in ordered[1:]:
        doublings = np.log2(int(str(point.settings["concurrency"])) / int(str(best.settings["concurrency"])))
        gain = point.number("images_per_s") / best.number("images_per_s")
        if gain >= (1 + KNEE_GAIN) ** max(float(doublings), 1.0):
            best = point
    return best


def load_curve(points: Sequence[Point]) -> Any:
    """Latency against throughput."""
    drawing, axes = figure()
    for colour, (name, group) in zip(COLOURS * 9, series(points, "batch_size").items(), strict=False):
        rates = [point.number("images_per_s") for point in group]
        medians = [point.summary().p50 for point in group]
        tails = [point.summary().p99 for point in group]
        axes.plot(rates, medians, "o-", color=colour, label=f"batch {name}: p50")
        axes.plot(rates, tails, "o--", color=colour, alpha=0.6, label=f"batch {name}: p99")
        for point, rate, median in zip(group, rates, medians, strict=True):
            axes.annotate(
                str(point.settings["concurrency"]),
                (rate, median),
                xytext=(4, -11),
                textcoords="offset points",
                fontsize=8,
            )
        bend = knee(group)
        axes.plot(
            bend.number("images_per_s"),
            bend.summary().p50,
            "o",
            markersize=14,
            fillstyle="none",
            color=colour,
        )
    axes.set(xlabel="images/s (small figures: callers)", ylabel="latency, ms", yscale="log")
    axes.legend(fontsize=8)
    return drawing


def cumulative(points: Sequence[Point]) -> Any:
    """Share of requests answered within a time."""
    drawing, axes = figure()
    ordered = sorted(points, key=lambda point: int(str(point.settings["batch_size"])))
    for point, colour in zip(ordered[: len(COLOURS)], COLOURS, strict=False):
        values = np.sort(np.asarray(point.samples["latency_ms"]))
        axes.step(
            values,
            np.arange(1, values.size + 1) / values.size,
            where="post",
            color=colour,
            label=_name(point),
        )
    axes.set(xlabel="latency, ms", ylabel="share of requests", xscale="log", ylim=(0, 1.01))
    axes.legend(fontsize=8)
    return drawing


def by_batch(points: Sequence[Point]) -> Any:
    """Throughput against images per request."""
    drawing, axes = figure()
    for name, group in series(points, "concurrency").items():
        sizes = [int(str(point.settings["batch_size"])) for point in group]
        axes.plot(sizes, [point.number("images_per_s") for point in group], "o-", label=f"{name} callers")
    axes.set(xlabel="images per request", ylabel="images/s", ylim=(0, None))
    axes.legend(fontsize=8)
    return drawing


def split_bars(points: Sequence[Point]) -> Any:
    """Mean latency split by the server's statistics; the rest is the network, gRPC and the load generator."""
    drawing, axes = figure(height=0.5 * len(points) + 1.6)
    names = [_name(point) for point in points]
    left = np.zeros(len(points))
    for part in ("queue", "compute_input", "compute_infer", "compute_output"):
        widths = np.array([_float(point.values.get(f"server_{part}_ms")) or 0.0 for point in points])
        axes.barh(names, widths, left=left, label=part.replace("_", " "))
        left += widths
    rest = np.maximum(np.array([point.summary().mean for point in points]) - left, 0.0)
    axes.barh(names, rest, left=left, label="outside the server", color="#c8d0d9")
    axes.invert_yaxis()
    axes.set(xlabel="mean time of a request, ms")
    axes.legend(fontsize=8)
    return drawing
