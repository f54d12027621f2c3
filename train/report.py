"""report.html: one self-contained page about a run, for the people who answer for its thresholds.

It is made from the run's own files alone (metrics.json, training.json, policy.json, scores.csv), so it can be made again.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from moderation_client.policy import Decision, Policy
from train import plots
from train.data import read_manifest
from train.evaluate import decide
from train.files import write_text
from train.gallery import NUM_SHOWN, Mistake, gallery
from train.image_risk import risk_lines
from train.model import LoadedRun, load_run
from train.record import ScoredImages, file_sha256, load_scores
from train.summary import evidence_lines, left_out, percent

TEMPLATE = Path(__file__).with_name("report.html")
Row = Sequence[str]


def write_report(run: Path) -> Path:
    """Write report.html into a run and give its path."""
    loaded = load_run(run)
    results = json.loads((run / "metrics.json").read_text())
    images = load_scores(run)
    test, kept = images["test"].scored, kept_bytes(loaded.record)
    prevalence = results["splits"]["test"]["decisions"]["in_the_world"]["prevalence"]
    sections = [
        _head(loaded, results),
        _section("How good it is", _figures(results)),
        _section("What is decided automatically", _policy(loaded, results)),
        _section("Curves on the test split", _plot(plots.curves(test, loaded.policy)), CURVES_NOTE),
        _section("Scores and bands", _plot(plots.bands(test, loaded.policy)), BANDS_NOTE),
        _section("Are the scores true?", _plot(plots.calibration(test)), _calibration_note(results)),
        _section(
            "Cost against risk", _plot(plots.cost_against_risk(test, loaded.policy, prevalence)), COST_NOTE
        ),
        _section("Where it is weakest", _slices(results)),
        *(
            _mistakes(name, images[name], loaded.policy, kept)
            for name in images
            if name not in {"calibration", "policy"}
        ),
        _section("Data", _data(loaded.record, results)),
        _section("Model card", _card(loaded)),
    ]
    page = run / "report.html"
    title = html.escape(f"Run {run.name}")
    write_text(page, Template(TEMPLATE.read_text()).substitute(title=title, body="\n".join(sections)))
    return page


CURVES_NOTE = "A dot is where review begins, a square where blocking begins."
COST_NOTE = (
    "On the test split, as the review thresholds of all labels move together; what is blocked stays blocked."
)
BANDS_NOTE = (
    "Upwards images that show the label, downwards images that do not, on a logarithmic scale. "
    "Green is allowed automatically, yellow goes to a person, red is blocked automatically."
)


def _section(title: str, *parts: str) -> str:
    body = "".join(part if part.startswith("<") else f"<p>{html.escape(part)}</p>" for part in parts if part)
    return f"<section><h2>{html.escape(title)}</h2>{body}</section>"


def _plot(svg: str) -> str:
    return f'<div class="plot">{svg}</div>'


def table(header: Row, rows: Sequence[Row], *, numbers_from: int = 1) -> str:
    """HTML table; cells are HTML already, those from column `numbers_from` on are set as numbers."""

    def line(cells: Row, tag: str) -> str:
        marks = ["" if column < numbers_from else ' class="n"' for column in range(len(cells))]
        return "<tr>" + "".join(f"<{tag}{m}>{c}</{tag}>" for c, m in zip(cells, marks, strict=True)) + "</tr>"

    return f'<div class="scroll"><table>{line(header, "th")}{"".join(line(row, "td") for row in rows)}</table></div>'


def figure(value: Mapping[str, float | None] | None) -> str:
    """A figure with its interval in small print."""
    if not value or value["value"] is None:
        return "not defined"
    return f"{value['value']:.3f}<br><small>{value['low']:.3f} to {value['high']:.3f}</small>"


def _head(loaded: LoadedRun, results: Mapping[str, Any]) -> str:
    record = loaded.record
    when = html.escape(str(record.get("created", "")).replace("T", " ").replace("+00:00", " UTC"))
    images = record["data"]["splits"].get("train", 0)
    sentence = (
        f"{record['backbone']} trained on {images:,} images for {', '.join(loaded.spec.labels)}; "
        f"{results['seconds']['total']:.0f} seconds."
    )
    warn = f'<p class="warn">{html.escape(loaded.spec.description)}</p>' if loaded.spec.description else ""
    return (
        f"<h1>Run {html.escape(loaded.path.name)}</h1><p class='dim'>{when} · policy "
        f"{loaded.policy.version}</p><p>{html.escape(sentence)}</p>{warn}"
    )


def _figures(results: Mapping[str, Any]) -> str:
    """One row a model and split: this one, its frozen features, the same network from nothing."""
    rows: list[Row] = []
    for split, found in results["splits"].items():
        if split == "policy":
            continue
        rows.append(
            [f"<b>{html.escape(split)}</b>: this model", figure(found["auroc"]), figure(found["macro_ap"])]
        )
        for word, key in (
            ("frozen features, logistic regression", "frozen_features"),
            ("same network without ImageNet weights", "scratch"),
        ):
            other = results.get(key, {}).get(split)
            if other:
                rows.append(
                    [f"{html.escape(split)}: {word}", figure(other["auroc"]), figure(other["macro_ap"])]
                )
            if other and "macro_ap_gain" in other:
                gain = figure(other["macro_ap_gain"])
                rows.append([f"{html.escape(split)}: gain over them, paired", "", gain])
    note = "<p class='dim'>Intervals are 95 %, by resampling whole groups (objects), 1,000 times. AUROC is of harmful against harmless.</p>"
    return table(["", "AUROC", "macro AP"], rows) + note + _label_table(results)


def _label_table(results: Mapping[str, Any]) -> str:
    header = ["test", "images", "AP", "AUROC", "recall at 1 % FPR", "recall at 5 % FPR"]
    rows = [
        [
            html.escape(label),
            f"{found['num_positives']}<br><small>{found['num_positive_groups']} groups</small>",
            *(
                figure(found[key])
                for key in ("ap", "auroc", "recall_at_1_percent_fpr", "recall_at_5_percent_fpr")
            ),
        ]
        for label, found in results["splits"]["test"]["labels"].items()
    ]
    return table(header, rows)


def _policy(loaded: LoadedRun, results: Mapping[str, Any]) -> str:
    """The thresholds, what they rest on, and what they do on the test split."""
    items = []
    for label, threshold in loaded.policy.thresholds.items():
        block = "never blocks" if threshold.block is None else f"blocks from {threshold.block:.4f}"
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in evidence_lines(label, threshold))
        items.append(
            f"<p><b>{html.escape(label)}</b>: a person looks from {threshold.review:.4f}, {block}</p><ul>{lines}</ul>"
        )
    found = results["splits"]["test"]["decisions"]
    rows = [
        [
            html.escape(kind),
            *(figure(found[f"{kind}_{decision}"]) for decision in ("allow", "review", "block")),
        ]
        for kind in ("harmful", "harmless")
    ]
    world = found["in_the_world"]
    text = (
        f"On the test split. If {world['prevalence']:.1%} of uploads are harmful, a million uploads mean "
        f"{world['reviews_per_million']:,.0f} reviews, {world['missed_per_million']:,.0f} harmful images allowed and "
        f"{world['false_blocks_per_million']:,.0f} harmless ones blocked; {percent(world['block_precision'])} of what is blocked is harmful."
    )
    risk = "".join(f"<li>{html.escape(line)}</li>" for line in risk_lines(results.get("image_risk", {})))
    return (
        "".join(items)
        + (f"<p><b>Any label</b>, image by image</p><ul>{risk}</ul>" if risk else "")
        + table(["share of", "allowed", "reviewed", "blocked"], rows)
        + f"<p>{html.escape(text)}</p>"
    )


def _calibration_note(results: Mapping[str, Any]) -> str:
    parts = []
    for label, found in results["splits"]["test"]["labels"].items():
        before, after = found["calibration"]["before"], found["calibration"]["after"]
        parts.append(
            f"{label}: error {before['ece_debiased']:.3f} before, {after['ece_debiased']:.3f} after calibration "
            f"(less what chance gives; p = {after['p_value']:.2f} for being calibrated)"
        )
    return "; ".join(parts) + "."


def _slices(results: Mapping[str, Any]) -> str:
    parts = []
    for column, rows in results["slices"].items():
        if any(row["auroc"]["value"] is not None for row in rows):
            parts.append(_plot(plots.worst_slices(rows, column)))
        if left_out(rows):
            parts.append(f"<p class='dim'>{html.escape(f'By {column} {left_out(rows)}.')}</p>")
    return "".join(parts) or "<p>No column to slice by.</p>"


def kept_bytes(record: Mapping[str, Any]) -> dict[Path, bytes]:
    """Images that the manifest holds itself, by the name they go by; none when it is gone or has changed, since names are rows."""
    manifest = Path(record["data"]["manifest"])
    if manifest.suffix != ".parquet" or not manifest.exists():
        return {}
    if file_sha256(manifest) != record["data"].get("sha256"):
        return {}
    return {each.path: each.content for each in read_manifest(manifest) if each.content is not None}


def _mistakes(name: str, images: ScoredImages, policy: Policy, kept: Mapping[Path, bytes]) -> str:
    """Thumbnails of what the policy decides wrongly, the surest first."""
    scored, decided = images.scored, decide(images.scored.scores, policy)
    missed = (scored.unsafe > 0.5) & (decided == Decision.ALLOW)
    wrong = (scored.unsafe < 0.5) & (decided == Decision.BLOCK)
    parts = []
    for title, order in (
        (
            "Harmful images that are allowed, lowest scores first",
            [i for i in scored.worst.argsort() if missed[i]],
        ),
        (
            "Harmless images that are blocked, highest scores first",
            [i for i in (-scored.worst).argsort() if wrong[i]],
        ),
    ):
        mistakes = [_mistake(images, int(index), kept) for index in order[:NUM_SHOWN]]
        parts.append(f"<h3>{title}: {len(order)}</h3>{gallery(mistakes)}")
    return _section(f"Worst mistakes: {name}", "Blurred until clicked.", *parts)


def _mistake(images: ScoredImages, index: int, kept: Mapping[Path, bytes]) -> Mistake:
    path = images.paths[index]
    return Mistake(
        path=path,
        caption=f"{path.stem} ({images.shown[index] or 'harmless'})",
        score=float(images.scored.worst[index]),
        content=kept.get(path),
    )


def _data(record: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """Images per split and label, sources, licences, and what the checks found."""
    counts = record["data"]["split_labels"]
    names = sorted({label for split in counts.values() for label in split})
    rows = [
        [
            html.escape(split),
            str(record["data"]["splits"][split]),
            *(str(found.get(name, 0)) for name in names),
        ]
        for split, found in counts.items()
    ]
    problems = results.get("data_problems", [])
    listed = "".join(f"<li>{html.escape(problem)}</li>" for problem in problems) or "<li>none found</li>"
    return table(["split", "images", *map(html.escape, names)], rows) + f"<p>Problems:</p><ul>{listed}</ul>"


def _card(loaded: LoadedRun) -> str:
    record = loaded.record
    licences = ", ".join(f"{name} ({count})" for name, count in record["data"]["licences"].items())
    sources = ", ".join(f"{name} ({count})" for name, count in record["data"]["sources"].items())
    entries = {
        "Intended use": "sorting uploads into allow, review and block by the labels above, with people behind the review band",
        "Not for": loaded.spec.description or "anything that the training data do not show",
        "Backbone": f"{record['backbone']}, weights: {record['config']['weights']}",
        "Input": f"{loaded.spec.image.width} x {loaded.spec.image.height} RGB, whole frame ({loaded.spec.image.fit})",
        "Data": f"{record['data']['manifest']} (sha256 {str(record['data']['sha256'])[:16]}…)",
        "Sources": sources or "not stated",
        "Licences": licences or "not stated",
        "Code": str(record.get("commit")),
        "Seed": str(record["seed"]),
        "Software": ", ".join(f"{name} {number}" for name, number in record["packages"].items()),
    }
    listed = "".join(f"<dt>{key}</dt><dd>{html.escape(value)}</dd>" for key, value in entries.items())
    return f"<dl>{listed}</dl><p class='dim'>This page shows pictures from the data set; treat it as you treat them.</p>"
