"""What a run prints at its end: the figures against chance and baselines, the policy, and what could not be proven."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moderation_client.policy import Policy, Threshold


def print_summary(run: Path) -> None:
    """Print figures and policy of a run, when it was finished by this process."""
    if not (run / "metrics.json").exists():
        return
    results = json.loads((run / "metrics.json").read_text())
    for name, split in results["splits"].items():
        if name == "policy":
            continue
        print(f"{name}: {split['num_images']} images, {split['num_groups']} groups")
        print(
            f"  unsafe against harmless, AUROC {figure(split['auroc'])}; macro AP {figure(split['macro_ap'])}"
        )
        baseline = results.get("frozen_features", {}).get(name)
        if baseline:
            print(
                f"  frozen features:         AUROC {figure(baseline['auroc'])}; macro AP {figure(baseline['macro_ap'])}"
            )
        scratch = results.get("scratch", {}).get(name)
        if scratch:
            print(
                f"  without ImageNet weights: AUROC {figure(scratch['auroc'])}; macro AP {figure(scratch['macro_ap'])}"
            )
        print(f"  sent to review {figure(split['decisions']['review_share'])}")
    print_policy(Policy.load(run / "policy.json"))
    print(f"{results['seconds']['total']:.0f} s; report: {run / 'report.html'}")


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
    return [_sentence(found[key], what[key], found["confidence"]) for key in what if key in found]


def _sentence(found: Mapping[str, Any], what: str, confidence: float) -> str:
    share, examples = f"at most {found['target']:.1%} {what}", f"{found['num_examples']} independent examples"
    if found["proven"]:
        return f"{share}: proven with {confidence:.0%} confidence on {examples}"
    return (
        f"{share}: not provable with {confidence:.0%} confidence on {examples} "
        f"(at least {found['num_needed_without_error']} are needed), so never decided automatically"
    )


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
