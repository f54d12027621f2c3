"""How a run of faults is shown: one line a fault, and for each the course of throughput and latency with the fault marked."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.fault_kinds import KINDS
from benchmarks.report import COLOURS, Page, bar_rows, figure, number, text_table
from benchmarks.results import Point, Result

HEADER = (
    "fault", "replicas", "asked", "lost", "wrong", "failed", "survivors/s", "back after s", "share after 2 s",
    "p99 before ms", "during", "after", "longest ms", "left after s", "used again after s", "unready after s", "ready after s",
)  # fmt: skip
BIN_S = 0.5


def faults_of(result: Result) -> list[Point]:
    """Points that are faults."""
    return [point for point in result.points if point.settings["phase"] == "fault"]


def _since(point: Point, key: str, mark: str) -> float | None:
    """Seconds from a mark to a moment that may not have come."""
    value = point.values.get(key)
    return None if value is None else point.number(key) - point.number(mark)


def row(point: Point) -> list[str]:
    """One line of the table."""
    keys = (
        "survivors_per_s",
        "recovery_s",
        "share_after_2s",
        "p99_before_ms",
        "p99_during_ms",
        "p99_after_ms",
    )
    floats = [None if point.values[key] is None else point.number(key) for key in (*keys, "longest_ms")]
    return [
        str(point.settings["fault"]),
        str(point.settings["num_replicas"]),
        *(str(int(point.number(key))) for key in ("num_asked", "num_lost", "num_wrong", "num_failed")),
        *(number(value) for value in floats),
        number(_since(point, "left_s", "begun_s")),
        number(_since(point, "back_s", "begun_s")),
        number(_since(point, "unready_s", "begun_s")),
        number(_since(point, "ready_s", "begun_s")),
    ]


def text(result: Result) -> str:
    """Give everything that is printed."""
    tables = [text_table(HEADER, [row(point) for point in faults_of(result)])]
    tables.append(
        text_table(("bar", "measured", "limit", "verdict"), [_bar(each) for each in bar_rows(result.bars)])
    )
    return "\n\n".join(tables)


def _bar(cells: tuple[str, ...]) -> tuple[str, ...]:
    name, measured, _interval, limit, _kind, word = cells
    return name, measured, limit, word


def page(result: Result) -> Page:
    """Build the HTML page."""
    document = Page(
        "One replica fails",
        "Callers ask one image after the other, every answer is checked; one of the replicas meets a fault.",
    )
    document.text(
        "All replicas and the callers share one machine: what starts again takes processor time from those that answer. "
        "'Survivors' is what the other replicas answered a second, undisturbed, right before. 'Used again' counts from the "
        "fault, so it holds the time for which the fault lasted."
    )
    document.bars(result.bars)
    document.heading("Faults")
    document.table(HEADER, [row(point) for point in faults_of(result)])
    for point in faults_of(result):
        fault = KINDS[str(point.settings["fault"])]
        document.heading(f"{fault.name}, {point.settings['num_replicas']} replicas")
        document.figure(
            timeline(point), f"{fault.text}. Shaded: while it lasts. Dotted: what survives, and 0.8 of it."
        )
    document.environment(result)
    return document


def timeline(point: Point) -> Any:
    """Throughput and latency over time, the fault shaded, failed calls as crosses."""
    drawing, (left, right) = figure(height=2.8, columns=2)
    done_s = np.asarray(point.samples["done_s"])
    latency_ms = np.asarray(point.samples["latency_ms"])
    edges = np.arange(0.0, done_s.max(), BIN_S)
    rates = np.histogram(done_s, edges)[0] / BIN_S
    left.step(edges[:-1], rates, where="post", color=COLOURS[0])
    survivors = point.number("survivors_per_s")
    for share in (0.8, 1.0):
        left.axhline(share * survivors, color="#5d6b7a", linestyle=":", linewidth=1)
    bad_s = point.samples["bad_s"]
    left.plot(bad_s, np.zeros(len(bad_s)), "x", color=COLOURS[1], label="failed or wrong")
    left.set(xlabel="s", ylabel="right answers/s", ylim=(0, None))
    right.plot(done_s, latency_ms, ".", markersize=2, color=COLOURS[5], label="each call", rasterized=False)
    right.step(edges[:-1], _p99(done_s, latency_ms, edges), where="post", color=COLOURS[1], label="p99")
    right.set(xlabel="s", ylabel="latency, ms", yscale="log")
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.axvspan(point.number("begun_s"), point.number("undone_s"), color=COLOURS[4], alpha=0.15)
    return drawing


def _p99(done_s: Any, latency_ms: Any, edges: Any) -> Any:
    places = np.digitize(done_s, edges)
    bins = [latency_ms[places == index] for index in range(1, len(edges))]
    return np.array([np.percentile(each, 99) if len(each) else np.nan for each in bins])
