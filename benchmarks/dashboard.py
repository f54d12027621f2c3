"""Draws the Grafana dashboard without Grafana: every panel's own queries, asked of a Prometheus, as one picture.

`python benchmarks/dashboard.py --prometheus http://127.0.0.1:9090 --out dashboard.png`
"""

from __future__ import annotations

import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

DASHBOARD = Path(__file__).parent.parent / "deploy" / "grafana" / "dashboards" / "moderation.json"
Query = Callable[[str], list[dict[str, Any]]]
"""PromQL -> series as Prometheus' query_range gives them: `metric` and `values`."""
NUM_COLUMNS = 3


class DashboardError(Exception):
    """The picture cannot be drawn; the message says why."""


@dataclass(frozen=True, kw_only=True)
class DashboardConfig:
    """Draw every panel of the dashboard from a running Prometheus."""

    prometheus: str = "http://127.0.0.1:9090"
    """Address of Prometheus."""
    out: Path = Path("dashboard.png")
    """Picture to write: .png or .svg."""
    minutes: float = 60.0
    """How far back."""
    label: str = "weapon"
    """Label whose scores are shown by bin."""
    dashboard: Path = DASHBOARD
    """Dashboard, as Grafana reads it."""


@dataclass(frozen=True)
class Panel:
    """Title, kind and queries of a panel."""

    title: str
    kind: str
    unit: str
    stacked: bool
    threshold: float | None
    targets: tuple[tuple[str, str], ...]
    """PromQL and legend."""


def read_panels(path: Path, label: str) -> list[Panel]:
    """Panels of a dashboard, its variable filled in."""
    panels = []
    for each in json.loads(path.read_bytes())["panels"]:
        defaults = each["fieldConfig"]["defaults"]
        steps = defaults.get("thresholds", {}).get("steps", [])
        targets = tuple((t["expr"].replace("$label", label), t["legendFormat"]) for t in each["targets"])
        panels.append(
            Panel(
                title=each["title"].replace("$label", label),
                kind=each["type"],
                unit=defaults["unit"],
                stacked="stacking" in defaults.get("custom", {}),
                threshold=steps[-1]["value"] if steps else None,
                targets=targets,
            )
        )
    return panels


def legend(template: str, metric: dict[str, str]) -> str:
    """Fill `{{name}}` in."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: metric.get(found[1], ""), template)


def draw(panels: Sequence[Panel], query: Query, out: Path) -> int:
    """Write the picture; how many series are in it."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - a second to import

    num_rows = -(-len(panels) // NUM_COLUMNS)
    figure = Figure(figsize=(15, 2.7 * num_rows), layout="constrained")
    answers = [
        [
            (legend(text, each["metric"]), each)
            for expression, text in panel.targets
            for each in query(expression)
        ]
        for panel in panels
    ]
    start = min(
        (float(when) for found in answers for _, each in found for when, _ in each["values"]), default=0.0
    )
    for place, (panel, found) in enumerate(zip(panels, answers, strict=True)):
        axes = figure.add_subplot(num_rows, NUM_COLUMNS, place + 1)
        axes.set_title(panel.title, fontsize=9, loc="left", fontweight="bold")
        axes.tick_params(labelsize=7)
        if panel.kind == "bargauge":
            _bars(axes, panel, found)
        else:
            _lines(axes, panel, found, start)
    figure.savefig(out, dpi=75)
    return sum(len(found) for found in answers)


def _lines(axes: Any, panel: Panel, found: list[tuple[str, dict[str, Any]]], start: float) -> None:
    """Draw series over time, seconds from `start`, the first value of any panel; gaps stay gaps."""
    times = sorted({float(when) for _, series in found for when, _ in series["values"]})
    rows = []
    for _, series in found:
        values = {float(when): float(value) for when, value in series["values"]}
        rows.append([values.get(when, 0.0 if panel.stacked else float("nan")) for when in times])
    at = [when - start for when in times]
    names = [name for name, _ in found]
    if panel.stacked and rows:
        axes.stackplot(at, rows, labels=names, alpha=0.7)
    else:
        for name, row in zip(names, rows, strict=True):
            axes.plot(at, row, label=name, linewidth=1.2)
    if panel.threshold is not None:
        axes.axhline(panel.threshold, color="tab:red", linewidth=0.8, linestyle="--")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("s", fontsize=7)
    if 0 < len(names) <= 12:
        axes.legend(fontsize=6)


def _bars(axes: Any, panel: Panel, found: list[tuple[str, dict[str, Any]]]) -> None:
    """Draw the last value of each series, one group of bars a query."""
    num_groups = len(panel.targets)
    edges = sorted({float(series["metric"]["bin"]) for _, series in found})
    for group, (expression, text) in enumerate(panel.targets):
        name = expression.split("{")[0]
        mine = [series for _, series in found if series["metric"]["__name__"] == name]
        heights = dict.fromkeys(edges, 0.0)
        for series in mine:
            heights[float(series["metric"]["bin"])] = max(float(value) for _, value in series["values"][-1:])
        at = [place + group / (num_groups + 0.5) for place in range(len(edges))]
        axes.bar(at, list(heights.values()), width=1 / (num_groups + 0.5), label=text.split(",")[0])
    axes.set_xticks(range(len(edges)), [f"{edge:g}" for edge in edges])
    axes.legend(fontsize=6)


def ask(config: DashboardConfig) -> Query:
    """Ask a Prometheus. The query raises DashboardError."""
    end = time.time()
    span = {"start": end - 60 * config.minutes, "end": end, "step": max(1.0, config.minutes * 60 / 300)}

    def query(expression: str) -> list[dict[str, Any]]:
        words = urllib.parse.urlencode({"query": expression, **span})
        try:
            with urllib.request.urlopen(  # noqa: S310 - the user's own address
                f"{config.prometheus}/api/v1/query_range?{words}", timeout=30
            ) as answer:
                found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        except (urllib.error.URLError, ValueError, KeyError) as error:
            raise DashboardError(f"{config.prometheus} does not answer {expression!r}: {error}") from error
        return found

    return query


def main() -> int:
    """Run the command; its exit status."""
    config = tyro.cli(DashboardConfig, description=__doc__)
    try:
        num_series = draw(read_panels(config.dashboard, config.label), ask(config), config.out)
    except DashboardError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{num_series} series in {config.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
