"""What a run prints at its end: the figures against chance and baselines, the policy, and what could not be proven."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moderation_client.policy import Policy, Threshold
from train.image_risk import risk_lines


def print_summary(run: Path) -> None:
    """Print figures and policy of a run, when it was finished by this process."""
    if not (run / "metrics.json").exists():
        return
    results = json.loads((run / "metrics.json").read_text())
    for name, split in results["splits"].items():
        if name != "policy":
            print(f"{name}: {split['num_images']} images, {split['num_groups']} groups")
            for line in split_lines(split, results, name):
                print(f"  {line}")
    print_policy(Policy.load(run / "policy.json"))
    for line in risk_lines(results.get("image_risk", {})):
        print(f"  any label: {line}")
    print(f"{results['seconds']['total']:.0f} s; report: {run / 'report.html'}")


def split_lines(split: Mapping[str, Any], results: Mapping[str, Any], name: str) -> list[str]:
    """Figures of one split beside those of the baselines, and what they mean for reviewers."""
    lines = [f"unsafe against harmless, AUROC {figure(split['auroc'])}; macro AP {figure(split['macro_ap'])}"]
    frozen = results.get("frozen_features", {}).get(name)
    if frozen:
        lines += [
            f"frozen features:         AUROC {figure(frozen['auroc'])}; macro AP {figure(frozen['macro_ap'])}",
            f"gain over them, paired:  macro AP {figure(frozen['macro_ap_gain'])}",
        ]
    scratch = results.get("scratch", {}).get(name)
    if scratch:
        lines.append(
            f"without ImageNet weights: AUROC {figure(scratch['auroc'])}; macro AP {figure(scratch['macro_ap'])}"
        )
    world = split["decisions"]["in_the_world"]
    reviews = f"{world['reviews_per_million']:,.0f} reviews per million at {world['prevalence']:.2%} harmful uploads"
    return [*lines, f"sent to review {figure(split['decisions']['review_share'])}; {reviews}"]


def print_policy(policy: Policy) -> None:
    """Print each label's thresholds with the bounds they rest on, or how many examples would be needed."""
    print(f"policy {policy.version}:")
    for label, threshold in policy.thresholds.items():
        block = "never" if threshold.block is None else f"{threshold.block:.4f}"
        print(f"  {label}: review from {threshold.review:.4f}, block from {block}")
        for line in evidence_lines(label, threshold):
            print(f"    {line}")


def evidence_lines(label: str, threshold: Threshold) -> list[str]:
    """Put a threshold's evidence into sentences."""
    found = threshold.evidence
    what = {
        "missed": f"of images that show {label} are allowed",
        "false_block": "of harmless images are blocked",
    }
    return [_sentence(found[key], what[key], found) for key in what if key in found]


def _sentence(found: Mapping[str, Any], what: str, evidence: Mapping[str, Any]) -> str:
    share, confidence = f"at most {found['target']:.1%} {what}", f"{evidence['confidence']:.0%} confidence"
    examples, reach = _examples(found, evidence)
    if found["proven"]:
        return f"{share}: proven with {confidence} on {examples}{reach}"
    return (
        f"{share}: not provable with {confidence} on {examples} "
        f"(at least {found['num_needed_without_error']} are needed), so never decided automatically"
    )


def _examples(found: Mapping[str, Any], evidence: Mapping[str, Any]) -> tuple[str, str]:
    """What the evidence is made of, and what it therefore holds for."""
    images, groups = evidence.get("words", ("images", "groups"))
    if evidence.get("unit") == "source":
        return (
            f"{found['num_examples']} {images} of {found['num_groups']} {groups}",
            f"; holds for new {images} of such {groups}, not for new {groups}",
        )
    if evidence.get("unit") == "group":
        return f"{found['num_examples']} {groups}, one of the {images} of each", ""
    return f"{found['num_examples']} independent examples", ""  # policies from before the unit was kept


def figure(value: Mapping[str, float | None]) -> str:
    """`0.912 (0.880 to 0.940)`."""
    if value["value"] is None:
        return "not defined"
    return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def percent(value: float | None) -> str:
    """`93 %`; `-` for the share of nothing."""
    return "-" if value is None else f"{value:.0%}"


def left_out(rows: Sequence[Mapping[str, Any]]) -> str:
    """Sentence on the slices that have no figure; empty when all have one."""
    named = [
        f"{row['name'] or '(empty)'} ({row['num_images']}: {row['left_out']})"
        for row in rows
        if "left_out" in row
    ]
    return f"without a figure: {', '.join(named)}" if named else ""
