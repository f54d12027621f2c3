"""The figures of a run's page, as SVG text: curves with the chosen points, reliability, score bands, cost against risk.

Colours are Okabe and Ito's, which people with any colour vision can tell apart; each label also has its own dash.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray

from moderation_client.policy import Decision, Policy
from train import reliability
from train.evaluate import Scored, decide

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)))
BANDS = {"allow": ("#009E73", ""), "review": ("#E69F00", "//"), "block": ("#D55E00", "xx")}
SMALLEST = 1e-4
"""Left end of score axes: scores are plotted by their logit, since most are near 0."""


def _svg(figure: Figure) -> str:
    """SVG without the XML header, with the same ids every time."""
    with mpl.rc_context({"svg.hashsalt": "moderation", "svg.fonttype": "none"}):
        text = io.StringIO()
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})  # type: ignore[no-untyped-call]
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _figure(columns: int, *, height: float = 3.2) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(3.4 * columns, height), layout="constrained")
    axes = [figure.add_subplot(1, columns, index + 1) for index in range(columns)]
    for each in axes:
        each.grid(alpha=0.25)
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def curves(scored: Scored, policy: Policy) -> str:
    """Precision over recall, and recall over false positives, per label; a dot at review, a square at block."""
    figure, (left, right) = _figure(2)
    for column in np.flatnonzero(scored.harmful):
        label, style = scored.labels[column], _style(int(column))
        truth, scores = scored.truth[:, column], scored.scores[:, column]
        if not 0 < truth.sum() < len(truth):
            continue
        points = [_rates(scores, truth, edge) for edge in np.unique(scores)[::-1]]
        recall, precision, wrong = np.array([(0.0, 1.0, 0.0), *points]).T
        left.plot(recall, precision, label=label, **style)
        right.plot(wrong, recall, label=label, **style)
        for edge, marker in ((policy.thresholds[label].review, "o"), (policy.thresholds[label].block, "s")):
            if edge is not None:
                at = _rates(scores, truth, edge)
                left.plot(at[0], at[1], marker, color=style["color"], markeredgecolor="white", markersize=8)
                right.plot(at[2], at[0], marker, color=style["color"], markeredgecolor="white", markersize=8)
    left.set(xlabel="recall", ylabel="precision", ylim=(0, 1.03), xlim=(0, 1.03))
    right.set(xlabel="false-positive rate", ylabel="recall", ylim=(0, 1.03), xlim=(-0.02, 1))
    left.legend(fontsize=8, loc="lower left")
    return _svg(figure)


def _rates(
    scores: NDArray[np.float32], truth: NDArray[np.float32], edge: float
) -> tuple[float, float, float]:
    """Recall, precision and false-positive rate of what scores at or above an edge."""
    flagged = scores >= edge
    hits = float((flagged & (truth > 0.5)).sum())
    wrong = float((flagged & (truth < 0.5)).sum()) / max(float((truth < 0.5).sum()), 1.0)
    return (
        hits / max(float(truth.sum()), 1.0),
        hits / max(float(flagged.sum()), 1.0) if flagged.any() else 1.0,
        wrong,
    )


def _style(column: int) -> dict[str, Any]:
    return {"color": COLOURS[column % len(COLOURS)], "linestyle": DASHES[column % len(DASHES)]}


def calibration(scored: Scored) -> str:
    """Reliability: share of positives over mean score in bins of equally many images; on the diagonal scores are true."""
    columns = np.flatnonzero(scored.harmful)
    figure, axes = _figure(len(columns), height=3.0)
    for axis, column in zip(axes, columns, strict=True):
        axis.plot([0, 1], [0, 1], color="#888888", linewidth=1)
        for values, word, marker in ((scored.raw, "before", "x"), (scored.scores, "after", "o")):
            points = np.array(reliability.curve(values[:, column], scored.truth[:, column]))
            axis.plot(points[:, 0], points[:, 1], marker=marker, label=word, linewidth=1, markersize=5)
        axis.set(title=scored.labels[column], xlabel="mean score", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes[0].set_ylabel("share of positives")
    axes[0].legend(fontsize=8)
    return _svg(figure)


def bands(scored: Scored, policy: Policy) -> str:
    """How many images score where, positives above and others below the line, over the allow, review and block bands."""
    columns = np.flatnonzero(scored.harmful)
    figure, axes = _figure(len(columns))
    edges = np.linspace(_logit(SMALLEST), _logit(1.0 - SMALLEST), 31)
    for axis, column in zip(axes, columns, strict=True):
        threshold = policy.thresholds[scored.labels[column]]
        _paint_bands(axis, threshold.review, threshold.block, edges[0], edges[-1])
        place = np.clip(_logit(scored.scores[:, column]), edges[0], edges[-1])
        shown = scored.truth[:, column] > 0.5
        up, down = (np.histogram(place[kind], edges)[0].astype(float) for kind in (shown, ~shown))
        width = edges[1] - edges[0]
        axis.bar(edges[:-1], np.log10(1.0 + up), width, align="edge", color="#0072B2", label="shows it")
        axis.bar(edges[:-1], -np.log10(1.0 + down), width, align="edge", color="#666666", label="does not")
        ticks = (0.001, 0.05, 0.5, 0.95, 0.999)
        axis.set_xticks([_logit(tick) for tick in ticks], [f"{tick:g}" for tick in ticks])
        counts = (-1000, -100, -10, 0, 10, 100, 1000)
        axis.set_yticks(
            [np.sign(count) * np.log10(1 + abs(count)) for count in counts], [abs(count) for count in counts]
        )
        axis.set(title=scored.labels[column], xlabel="score", xlim=(edges[0], edges[-1]))
    axes[0].set_ylabel("images")
    axes[0].legend(fontsize=7, loc="upper right")
    return _svg(figure)


def _paint_bands(axis: Any, review: float, block: float | None, low: float, high: float) -> None:
    first = float(np.clip(_logit(review), low, high))
    second = high if block is None else float(np.clip(_logit(block), low, high))
    for name, start, end in (("allow", low, first), ("review", first, second), ("block", second, high)):
        if end > start:
            colour, hatch = BANDS[name]
            axis.axvspan(start, end, facecolor=colour, alpha=0.15, hatch=hatch, edgecolor=colour, linewidth=0)
            axis.text(
                (start + end) / 2, 0.02, name, ha="center", fontsize=7, transform=axis.get_xaxis_transform()
            )


def _logit(value: Any) -> Any:
    clipped = np.clip(value, SMALLEST, 1.0 - SMALLEST)
    return np.log(clipped / (1.0 - clipped))


def cost_against_risk(scored: Scored, policy: Policy, prevalence: float) -> str:
    """Reviews per million over the share of harmful images allowed, as all review thresholds move together."""
    figure, (axis,) = _figure(1)
    missed, reviews, own = cost_curve(scored, policy, prevalence)
    axis.plot(missed, reviews, color=COLOURS[0])
    axis.plot(missed[own], reviews[own], "o", color=COLOURS[1], label="this policy", markersize=8)
    axis.set(
        xlabel="share of harmful images allowed",
        ylabel="reviews per million",
        xlim=(-0.01, max(0.5, 1.1 * float(missed[own]))),
    )
    axis.set_yscale("symlog", linthresh=100.0)  # a policy that decides everything has no reviews
    axis.legend(fontsize=8)
    return _svg(figure)


def cost_curve(
    scored: Scored, policy: Policy, prevalence: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Share of harmful images allowed, reviews per million, and where on the curve the policy itself is.

    Every review threshold is moved by the same step of the logit; what the policy blocks stays blocked.
    """
    columns = np.flatnonzero(scored.harmful)
    review = np.array([policy.thresholds[scored.labels[column]].review for column in columns])
    margin = (_fine_logit(scored.scores[:, columns]) - _fine_logit(review)).max(1)
    blocked, unsafe = decide(scored.scores, policy) == Decision.BLOCK, scored.unsafe > 0.5
    steps = np.unique(np.r_[margin, 0.0])
    flagged = margin >= steps[:, None]
    missed = (~flagged & ~blocked)[:, unsafe].mean(1)
    reviewed = [(flagged & ~blocked)[:, kind].mean(1) for kind in (unsafe, ~unsafe)]
    reviews = 1e6 * (prevalence * reviewed[0] + (1.0 - prevalence) * reviewed[1])
    return missed, reviews, int(np.searchsorted(steps, 0.0))


def _fine_logit(value: NDArray[Any]) -> NDArray[np.float64]:
    clipped = np.clip(value.astype(np.float64), 1e-9, 1.0 - 1e-9)
    return np.asarray(np.log(clipped) - np.log1p(-clipped))


def worst_slices(rows: Sequence[dict[str, Any]], title: str) -> str:
    """AUROC of each slice with its interval, worst on top."""
    shown = [row for row in rows if row["auroc"]["value"] is not None][:12][::-1]
    figure, (axis,) = _figure(1, height=0.8 + 0.28 * len(shown))
    for place, row in enumerate(shown):
        area = row["auroc"]
        axis.plot([area["low"], area["high"]], [place, place], color=COLOURS[0], linewidth=2)
        axis.plot(area["value"], place, "o", color=COLOURS[0])
    axis.set_yticks(
        range(len(shown)), [f"{row['name']} ({row['num_positives']}/{row['num_images']})" for row in shown]
    )
    axis.tick_params(axis="y", labelsize=7)
    axis.set(xlabel=f"AUROC by {title}", xlim=(min([0.5, *(row["auroc"]["low"] for row in shown)]), 1.01))
    return _svg(figure)
