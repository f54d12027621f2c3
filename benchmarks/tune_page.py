"""How a search for settings is shown (table, frontier, final), and how its winner gets into the repository: through export."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.report import COLOURS, Page, figure, number, text_table
from benchmarks.results import Point, Result, ResultError
from benchmarks.serving import Settings, Shape, VariantError
from benchmarks.tune_trials import median_figures
from export.operations import configure
from export.repository import ModelFolder
from moderation_client.contract import MODEL_NAME

SHAPE = tuple(field.name for field in dataclasses.fields(Shape))
HEADER = ("settings", "phase", "images/s", "p50 ms", "p99 ms", "formed", "")


def row(point: Point) -> list[str]:
    """One line of the table."""
    marks = [word for word, key in (("winner", "winner"), ("own", "own")) if point.settings.get(key)]
    return [
        str(point.settings["settings"]),
        str(point.settings["phase"]),
        *(number(point.number(name)) for name in ("images_per_s", "p50_ms", "p99_ms", "mean_batch")),
        ", ".join(marks),
    ]


def text(result: Result) -> str:
    """Give everything that is printed, the final last."""
    ordered = sorted(
        measured(result),
        key=lambda point: (point.settings["phase"] == "final", -point.number("images_per_s")),
    )
    return "\n".join([text_table(HEADER, [row(point) for point in ordered]), *failures(result)])


def measured(result: Result) -> list[Point]:
    """Candidates that were measured."""
    return [point for point in result.points if point.settings["phase"] != "failed"]


def failures(result: Result) -> list[str]:
    """Candidates that did not start, with the reason."""
    failed = [point for point in result.points if point.settings["phase"] == "failed"]
    return [f"left out: {point.settings['settings']}: {'; '.join(point.notes)}" for point in failed]


def final_points(
    rounds: Mapping[Settings, list[dict[str, float]]], own: Settings, winner: Settings
) -> list[Point]:
    """Give one point an entrant of the final, with its settings as numbers so that other programs can take them over."""
    return [
        Point(
            settings={
                "phase": "final",
                "settings": str(each),
                "own": each == own,
                "winner": each == winner,
                **{name: getattr(each, name) for name in SHAPE},
            },
            samples={name: [figures[name] for figures in found] for name in found[0]},
            values=dict(median_figures(found)),
        )
        for each, found in rounds.items()
    ]


def winner_of(result: Result) -> tuple[Shape, Point]:
    """Settings that won, and what was measured of them. Raises ResultError."""
    for point in result.points:
        if point.settings.get("winner"):
            return Shape(**{name: int(str(point.settings[name])) for name in SHAPE}), point
    raise ResultError(f"the {result.benchmark} result names no winner")


def page(result: Result) -> Page:
    """Build the HTML page."""
    document = Page(
        "Server settings by measurement",
        f"Goal: {result.config['goal']}; closed loop of single-image callers over the wire, the real server for every candidate.",
    )
    document.bars(result.bars)
    finals = [point for point in result.points if point.settings["phase"] == "final"]
    document.heading("Final, median of interleaved rounds")
    document.table(HEADER, [row(point) for point in finals])
    document.heading("Frontier")
    document.figure(
        frontier(result), "Throughput against p99, one point a candidate; ringed: finalists by their medians."
    )
    document.heading("Search")
    searched = [point for point in result.points if point.settings["phase"] == "search"]
    searched.sort(key=lambda point: -point.number("images_per_s"))
    document.table(HEADER, [row(point) for point in searched])
    for line in failures(result):
        document.text(line)
    document.environment(result)
    return document


def frontier(result: Result) -> Any:
    """Throughput against p99 of every candidate."""
    drawing, axes = figure()
    shapes = sorted({str(point.settings["settings"]).split(",")[0] for point in measured(result)})
    for colour, shape in zip(COLOURS * 9, shapes, strict=False):
        group = [point for point in measured(result) if str(point.settings["settings"]).startswith(shape)]
        searched = [point for point in group if point.settings["phase"] == "search"]
        axes.plot(
            [point.number("images_per_s") for point in searched],
            [point.number("p99_ms") for point in searched],
            "o", color=colour, label=shape,
        )  # fmt: skip
        finals = [point for point in group if point.settings["phase"] == "final"]
        axes.plot(
            [point.number("images_per_s") for point in finals],
            [point.number("p99_ms") for point in finals],
            "o", color=colour, fillstyle="none", markersize=13,
        )  # fmt: skip
    axes.set(xlabel="images/s", ylabel="p99, ms", yscale="log")
    axes.legend(fontsize=8)
    return drawing


def write_winner(repository: Path, winner: Settings) -> str:
    """Let export write the settings beside those that were not searched. Raises ExportError when it refuses."""
    folder = ModelFolder(repository, MODEL_NAME)
    if folder.state is None:
        raise VariantError(
            f"{repository} was not written by `python -m export`: set what was found by hand: {winner}"
        )
    serving = dataclasses.replace(
        folder.state.serving,
        instances=winner.num_instances or 0,
        threads=winner.num_threads or 0,
        max_batch_size=winner.max_batch_size or folder.state.serving.max_batch_size,
        max_queue_delay_us=winner.max_queue_delay_us or 0,
    )
    configure(repository, serving)
    return f"{repository} is now served with {winner}"
