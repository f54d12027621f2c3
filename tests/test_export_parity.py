"""What counts as close enough, and what is said when it is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import operations, session
from export.errors import GateError
from export.gates import Gates, Limits
from export.parity import compare, compare_batch
from export.publish import publish
from export.serving import Serving
from export.source import Pixels, Scores, Split
from export.variants import VariantConfig
from tests.small_export import quick_config, small_source


def test_score_of_an_image_is_the_maximum_over_its_views() -> None:
    """Views are reduced by owner, in order."""
    split = Split(
        pixels=np.zeros((4, 2, 2, 3), np.uint8), owners=np.array([0, 1, 1, 2]), names=("a", "b", "c")
    )
    scores = np.array([[0.1], [0.2], [0.9], [0.4]], np.float32)
    assert split.per_image(scores).ravel().tolist() == pytest.approx([0.1, 0.9, 0.4])


def test_policy_that_sends_all_to_review_does_not_hide_a_bad_variant(tmp_path: Path) -> None:
    """Decisions are compared at mid-range thresholds too, and every figure that fails is named."""
    source = small_source(tmp_path)
    reference = source.reference(source.images.test.pixels)
    wrong = 1.0 - reference
    parity = compare(source, source.images.test, reference, wrong, ())
    limits = Limits(max_score_shift=0.1, min_agreement=0.99, max_ap_drop=1.0)
    failures = " ".join(limits.failures(parity))
    assert "score shift" in failures
    assert "at threshold 0.5" in failures
    assert parity.min_agreement < 0.9
    assert Gates().fp32.failures(compare(source, source.images.test, reference, reference, ())) == ()


def test_scores_that_are_no_numbers_fail_every_gate(tmp_path: Path) -> None:
    """NaN is not a small difference."""
    source = small_source(tmp_path)
    reference = source.reference(source.images.test.pixels)
    broken = np.full_like(reference, np.nan)
    parity = compare(source, source.images.test, reference, broken, ())
    assert parity.shift.max == 1.0
    assert parity.min_agreement == 0.0
    assert Gates().int8.failures(parity)


def test_decision_that_a_batch_size_costs_is_counted_once(tmp_path: Path) -> None:
    """What is wrong at the largest batch too is counted there; what only this batch size gets wrong fails the gate."""
    source = small_source(tmp_path)
    reference = np.array([[0.1, 0.1], [0.6, 0.1], [0.9, 0.1], [0.1, 0.9]], np.float32)
    largest = reference.copy()
    largest[0] = 0.9
    lost = largest.copy()
    lost[3] = 0.1
    assert compare_batch(source, 1, reference, largest, largest).agreement == 1.0
    at_batch = compare_batch(source, 1, reference, largest, lost)
    assert (at_batch.agreement, at_batch.num_views) == (0.75, 4)
    assert at_batch.shift == pytest.approx(0.8)
    scores = source.reference(source.images.test.pixels)
    parity = compare(source, source.images.test, scores, scores, [at_batch])
    limits = Limits(max_score_shift=1.0, min_agreement=0.99, max_ap_drop=1.0)
    assert limits.failures(parity) == ("decisions kept at batch 1 75.00% are below 99.00%",)


@pytest.mark.parametrize("wrong", [1, 2, 40])
def test_every_batch_size_is_really_run_and_gated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: int
) -> None:
    """Also a largest batch above the number of test views: its last batch is filled up, not left smaller."""
    real = session.run

    def run(opened: Any, pixels: Pixels, *, batch: int) -> Scores:
        if batch in (1, 2, 40):
            assert len(pixels) % batch == 0
        found = real(opened, pixels, batch=batch)
        return np.asarray(1.0 - found if batch == wrong else found, np.float32)

    source = small_source(tmp_path / "source")
    assert len(source.images.test.pixels) < 40
    monkeypatch.setattr(session, "run", run)
    loose = Limits(max_score_shift=1.0, min_agreement=0.99, max_ap_drop=1.0)
    variants = VariantConfig(variants=("fp32",), gates=Gates(fp32=loose), max_batch_size=40)
    with pytest.raises(GateError, match=rf"batch {wrong}\b" if wrong < 40 else "agreement"):
        publish(source, quick_config(tmp_path / "r", variants=variants))


def test_parity_is_measured_at_the_batch_that_the_repository_forms(tmp_path: Path) -> None:
    """Settings of the repository that stay in force decide, not the default of the command."""
    repository, source = tmp_path / "r", small_source(tmp_path / "s")
    publish(source, quick_config(repository))
    operations.configure(repository, Serving(max_batch_size=12))
    publish(source, quick_config(repository))
    parity = json.loads((tmp_path / "report" / "parity.json").read_text())
    assert set(parity["variants"]["fp32"]["batch_shift"]) == {"1", "2", "12"}
    assert set(parity["variants"]["fp32"]["batch_agreement"]) == {"1", "2", "12"}


def test_variant_that_fails_is_not_published_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """FP32 off by more than its limit ends the command with the figure, and the repository stays empty."""
    source = small_source(tmp_path / "source")
    impossible = Gates(fp32=Limits(max_score_shift=-1.0, min_agreement=0.0, max_ap_drop=1.0))
    config = quick_config(
        tmp_path / "repository", variants=VariantConfig(variants=("fp32",), gates=impossible)
    )
    with pytest.raises(GateError, match=r"fp32 failed its gate.*score shift"):
        publish(source, config)
    assert not (tmp_path / "repository").exists()


def test_failing_int8_is_left_out_and_fp32_is_published(tmp_path: Path) -> None:
    """The version holds what passed; the record says which figure kept INT8 out."""
    source = small_source(tmp_path / "source")
    gates = Gates(int8=Limits(max_score_shift=0.0, min_agreement=0.0, max_ap_drop=1.0))
    variants = VariantConfig(variants=("fp32", "int8"), gates=gates, max_batch_size=4)
    published = publish(source, quick_config(tmp_path / "repository", variants=variants))
    folder = tmp_path / "repository" / "moderation" / "1"
    assert not (folder / "model_int8.onnx").exists()
    assert published.version.cpu_file == "model.onnx"
    assert "score shift" in published.version.record["variants"]["int8"]["failures"][0]
    page = (tmp_path / "report" / "parity.html").read_text()
    assert "FAILED" in page
    assert "keep it where they may be kept" in page
