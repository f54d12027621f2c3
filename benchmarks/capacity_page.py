"""How the check of the capacity model looks: a table of measured and simulated latencies, and the same as a plot."""

from __future__ import annotations

from benchmarks.report import Page, environment_rows, figure, number, text_table
from benchmarks.results import Point, Result

COLUMNS = ("mean", "p50", "p99", "queue")
HEADER = (
    "replicas",
    "load",
    "rate /s",
    *(f"{each} {name}" for name in COLUMNS for each in ("measured", "simulated")),
)


def load_points(result: Result) -> list[Point]:
    """Points that compare."""
    return [each for each in result.points if each.settings["phase"] == "load"]


def rows(result: Result) -> list[list[str]]:
    """Lines under HEADER, in milliseconds."""
    return [
        [
            str(point.settings["replicas"]),
            str(point.settings["load"]),
            number(float(str(point.settings["rate_per_s"]))),
            *(
                number(point.number(f"{each}_{name}_ms"))
                for name in COLUMNS
                for each in ("measured", "simulated")
            ),
        ]
        for point in load_points(result)
    ]


def check_text(result: Result) -> str:
    """Table for a terminal."""
    return text_table(HEADER, rows(result))


def check_page(result: Result) -> Page:
    """Page of one run."""
    page = Page(
        "The capacity model against real replicas",
        "Poisson load on one and two servers, one core each; times in milliseconds.",
    )
    page.bars(result.bars)
    page.heading("Measured and simulated")
    page.table(HEADER, rows(result))
    drawing, axes = figure(columns=2)
    for axis, replicas in zip(axes, (1, 2), strict=True):
        points = [each for each in load_points(result) if each.settings["replicas"] == replicas]
        loads = [float(str(each.settings["load"])) for each in points]
        for name, style in (("mean", "-"), ("p99", "--")):
            for each, marker in (("measured", "o"), ("simulated", "x")):
                values = [point.number(f"{each}_{name}_ms") for point in points]
                axis.plot(loads, values, style, marker=marker, label=f"{each} {name}")
        axis.set(
            title=f"{replicas} replica{'s' if replicas > 1 else ''}",
            xlabel="share of capacity",
            ylabel="latency, ms",
            yscale="log",
        )
        axis.legend(frameon=False)
    page.figure(
        drawing,
        "Latency by load, measured, and simulated from the arrivals and the time that computing took.",
    )
    page.heading("Measured on")
    page.table(("", ""), environment_rows(result), text_columns=(1,))
    return page
