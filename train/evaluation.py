"""`python -m train evaluate RUN`: judge a finished run on any split of any data, with any policy, at any prevalence."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from scipy.special import expit, softmax

from moderation_client import PolicyError
from moderation_client.policy import Policy
from train import data
from train.checks import fingerprints, leaks
from train.data import Example
from train.errors import DataError, RunError
from train.evaluate import Scored, evaluate, slices
from train.files import write_text
from train.memory import keep_freed_memory
from train.model import LoadedRun, load_run
from train.record import file_sha256
from train.scoring import image_logits, probabilities
from train.summary import figure, left_out, percent
from train.task import NEUTRAL

MIN_SLICE = 20


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Judge a finished run on other data."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder, as `python -m train` wrote it."""
    data: Path | None = None
    """Manifest or folder of class folders; None takes the one the run was trained on."""
    split: str | None = "test"
    """Split to judge; `all` for every image of the manifest."""
    policy: Path | None = None
    """Policy file; None takes the run's own."""
    prevalence: float = 0.01
    """Share of uploads that truly show any label, for precision and reviews per million."""
    slices: tuple[str, ...] = ("source",)
    """Columns of the manifest to slice by."""
    leaks: bool = True
    """Look for images that are the same as, or look like, one the run was trained on."""
    out: Path | None = None
    """Where to write the JSON; None writes evaluation.json into the run's folder."""


def run_evaluation(config: EvaluateConfig) -> dict[str, Any]:
    """Score, judge, write and print. Raises TrainError."""
    if not 0.0 < config.prevalence < 1.0:
        raise DataError(f"prevalence must be between 0 and 1, got {config.prevalence}")
    keep_freed_memory()
    loaded = load_run(config.run)
    policy = _policy(config.policy, loaded)
    trained_on = Path(loaded.record["data"]["manifest"])
    manifest = config.data or trained_on
    examples = _chosen(manifest, config.split, loaded)
    scored = score_examples(loaded, examples)
    leaked = _leaks(trained_on, examples) if config.leaks else None
    results: dict[str, Any] = {
        "schema_version": 1,
        "data": str(manifest),
        "split": config.split,
        "policy": policy.version,
        **evaluate(scored, policy, config.prevalence),
        "slices": {
            column: slices(scored, data.column_values(examples, column), MIN_SLICE)
            for column in config.slices
        },
        "leaks": leaked,
        "notes": _notes(loaded, manifest, trained_on, unknown_leaks=config.leaks and leaked is None),
    }
    out = config.out or config.run / "evaluation.json"
    write_text(out, json.dumps(results, indent=1) + "\n")
    print_evaluation(results)
    print(f"written: {out}")
    return results


def _policy(path: Path | None, loaded: LoadedRun) -> Policy:
    """The policy to judge by. Raises RunError when the file is no policy for the run's labels."""
    try:
        policy = Policy.load(path) if path else loaded.policy
        policy.check_labels(loaded.spec.labels)
    except (OSError, PolicyError) as error:
        raise RunError(f"policy {path} cannot be used: {error}") from error
    return policy


def _notes(loaded: LoadedRun, manifest: Path, trained_on: Path, *, unknown_leaks: bool) -> list[str]:
    """What a reader of the figures must know of the data."""
    notes = []
    known = loaded.record["data"].get("sha256")
    if manifest == trained_on and known and file_sha256(manifest) != known:
        notes.append(
            f"{manifest} has changed since the run was trained (its SHA-256 is another): splits and labels may be others too"
        )
    if unknown_leaks:
        notes.append(
            f"leaks were not looked for: the training data {trained_on} are not here, so images may have been trained on"
        )
    return notes


def _chosen(manifest: Path, split: str | None, loaded: LoadedRun) -> list[Example]:
    """The images to judge; a label the model does not know is an error, not a zero."""
    examples = data.read_manifest(manifest)
    if split not in {None, "all"}:
        known = sorted({example.split for example in examples})
        examples = [example for example in examples if example.split == split]
        if not examples:
            raise DataError(f"{manifest} has no images in the split {split!r}; it has {', '.join(known)}")
    unknown = sorted(set(data.label_names(examples)) - set(loaded.spec.labels))
    if unknown:
        raise DataError(
            f"{manifest} has the labels {', '.join(unknown)}; the run knows {', '.join(loaded.spec.labels)}"
        )
    return examples


def score_examples(loaded: LoadedRun, examples: list[Example]) -> Scored:
    """Score images with a loaded run."""
    logits = image_logits(loaded.model, examples, loaded.spec.image)
    truth = data.targets(examples, loaded.spec.labels)
    if loaded.spec.task == "multiclass" and NEUTRAL in loaded.spec.labels:
        truth[:, loaded.spec.labels.index(NEUTRAL)] = truth.sum(1) == 0
    return Scored(
        labels=loaded.spec.labels,
        scores=probabilities(loaded.model, logits),
        raw=(expit(logits) if loaded.spec.task == "multilabel" else softmax(logits, axis=1)).astype(
            np.float32
        ),
        truth=truth,
        groups=tuple(example.group for example in examples),
        harmful=np.array([label in loaded.policy.thresholds for label in loaded.spec.labels]),
    )


def _leaks(trained_on: Path, examples: list[Example]) -> list[str] | None:
    """Images that are, or look like, one that was trained on; None when the training data are not here any more."""
    try:
        seen = data.in_split(data.read_manifest(trained_on), "train")
    except DataError:
        return None
    return leaks(seen, examples, fingerprints([*seen, *examples]))


def print_evaluation(results: dict[str, Any]) -> None:
    """Print the figures as a table of lines."""
    print(
        f"{results['num_images']} images, {results['num_groups']} groups, {results['num_harmless']} harmless"
    )
    print(
        f"harmful against harmless: AUROC {figure(results['auroc'])}; macro AP {figure(results['macro_ap'])}"
    )
    for label, found in results["labels"].items():
        calibration = found["calibration"]["after"]
        print(
            f"  {label}: AP {figure(found['ap'])}, AUROC {figure(found['auroc'])}, {found['num_positives']} positives"
        )
        print(
            f"    recall at 1 % FPR {figure(found['recall_at_1_percent_fpr'])}, at 5 % {figure(found['recall_at_5_percent_fpr'])}; "
            f"calibration error {calibration['ece_debiased']:.3f} (p = {calibration['p_value']:.2f} for calibrated)"
        )
    world = results["decisions"]["in_the_world"]
    print(
        f"at {world['prevalence']:.2%} harmful: {world['reviews_per_million']:,.0f} reviews per million, "
        f"{percent(world['block_precision'])} of what is blocked is harmful"
    )
    _print_slices(results["slices"])
    for note in results["notes"]:
        print(f"note: {note}")
    for leak in (results["leaks"] or [])[:5]:
        print(f"  leak: {leak}")


def _print_slices(slices_of: dict[str, list[dict[str, Any]]]) -> None:
    for column, rows in slices_of.items():
        for row in [row for row in rows if "left_out" not in row][:3]:
            print(
                f"  weakest by {column}: {row['name']}, AUROC {figure(row['auroc'])}, {row['num_images']} images"
            )
        if left_out(rows):
            print(f"  by {column} {left_out(rows)}")
