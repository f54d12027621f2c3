"""What counts as close enough, and what is said when it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.errors import GateError
from export.gates import Gates, Limits
from export.parity import compare
from export.publish import publish
from export.source import Split
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
    parity = compare(source, source.images.test, reference, wrong, {1: 0.0})
    limits = Limits(max_score_shift=0.1, min_agreement=0.99, max_ap_drop=1.0)
    failures = " ".join(limits.failures(parity))
    assert "score shift" in failures
    assert "at threshold 0.5" in failures
    assert parity.min_agreement < 0.9
    assert Gates().fp32.failures(compare(source, source.images.test, reference, reference, {1: 0.0})) == ()


def test_scores_that_are_no_numbers_fail_every_gate(tmp_path: Path) -> None:
    """NaN is not a small difference."""
    source = small_source(tmp_path)
    reference = source.reference(source.images.test.pixels)
    broken = np.full_like(reference, np.nan)
    parity = compare(source, source.images.test, reference, broken, {})
    assert parity.shift.max == 1.0
    assert parity.min_agreement == 0.0
    assert Gates().int8.failures(parity)


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
