"""Variants of a repository, the stages of a request, and the search for settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks import tune
from benchmarks.results import read_result
from benchmarks.serving import Settings, VariantError, copy_variant, model_file, read_config
from benchmarks.stages import STAGES, StagesConfig, main
from benchmarks.tune import TuneConfig, candidates, own_settings, rank, stamp_of, why_not
from benchmarks.tune_page import winner_of
from benchmarks.tune_trials import Trials
from tests.small_model import build_repository, small_config


def test_a_variant_leaves_the_original_alone(tmp_path: Path) -> None:
    """Hard links must not let a variant's configuration reach the repository it was made of."""
    repository = build_repository(tmp_path / "a")
    before = (repository / "moderation" / "config.pbtxt").read_text()
    changed = Settings(
        num_instances=3,
        num_threads=2,
        max_batch_size=4,
        max_queue_delay_us=7,
        max_queue_size=9,
        queue_timeout_us=11,
    )
    config = read_config(copy_variant(repository, tmp_path / "b", changed))
    assert (repository / "moderation" / "config.pbtxt").read_text() == before
    assert [group.count for group in config.instance_group] == [3]
    assert config.parameters["intra_op_thread_count"].string_value == "2"
    assert (config.max_batch_size, max(each.batch_size for each in config.model_warmup)) == (4, 4)
    assert config.dynamic_batching.max_queue_delay_microseconds == 7
    policy = config.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (9, 11)


def test_a_variant_without_batching_has_no_batcher(tmp_path: Path) -> None:
    """One request, one execution."""
    repository = build_repository(tmp_path / "a")
    variant = copy_variant(repository, tmp_path / "b", Settings(dynamic_batching=False))
    assert not read_config(variant).HasField("dynamic_batching")


def test_a_missing_model_or_file_is_named(tmp_path: Path) -> None:
    """The way out is in the message."""
    with pytest.raises(VariantError, match="python -m export"):
        read_config(tmp_path)
    with pytest.raises(VariantError, match=r"model_int8\.onnx"):
        model_file(build_repository(tmp_path / "a"), "model_int8.onnx")


def test_stages_are_all_there(tmp_path: Path) -> None:
    """Every stage from file to verdict has its time, and the whole stands beside them."""
    repository = build_repository(tmp_path / "r", config=small_config(num_instances=2))
    config = StagesConfig(serve=True, repository=repository, num_images=2, repeats=3, out=tmp_path / "s")
    assert main(config) in (0, 1)  # whether they add up is for a quiet machine to say
    points = read_result(tmp_path / "s.json").points
    assert [point.settings["stage"] for point in points] == [*STAGES, "whole"]
    assert all(point.number("mean_ms") >= 0 for point in points)
    assert len(points[-1].samples["latency_ms"]) == 6


def test_candidates_fill_the_cores() -> None:
    """Instances x threads is the number of cores, or two instances that have them all; delays only where batches can form."""
    found = candidates(TuneConfig(), 4)
    assert {(each.num_instances, each.num_threads) for each in found} == {(4, 1), (2, 2), (2, 4)}
    assert all(each.max_queue_delay_us == 0 for each in found if each.max_batch_size == 1)
    assert len(set(map(str, found))) == len(found)


def test_ranking_puts_the_slo_first() -> None:
    """A fast candidate beyond the SLO loses to a slower one within it."""
    config = TuneConfig(slo_p99_ms=50.0)
    fast = {"images_per_s": 100.0, "p50_ms": 5.0, "p99_ms": 90.0, "mean_batch": 1.0}
    slow = {"images_per_s": 60.0, "p50_ms": 5.0, "p99_ms": 40.0, "mean_batch": 1.0}
    assert rank(config, slow) > rank(config, fast)
    assert rank(TuneConfig(), fast) > rank(TuneConfig(), slow)


def test_a_search_is_taken_up_only_for_the_same_thing(tmp_path: Path) -> None:
    """Measurements of another file or another load are not mixed in."""
    path = tmp_path / "trials.json"
    Trials.open(path, "one").add(
        Settings(num_instances=2, num_threads=1, max_batch_size=4), {"images_per_s": 1.0}
    )
    assert list(Trials.open(path, "one").known) == ["2 x 1 threads, batch 4, delay 0 us"]
    assert Trials.open(path, "two").known == {}


def test_own_settings_are_read_from_the_repository(tmp_path: Path) -> None:
    """What the winner must beat is what the repository has."""
    repository = build_repository(
        tmp_path / "r", config=small_config(num_instances=2, max_queue_delay_us=500)
    )
    found = own_settings(TuneConfig(repository=repository))
    assert str(found) == "2 x 1 threads, batch 8, delay 500 us"


FAST = {"images_per_s": 100.0, "p50_ms": 5.0, "p99_ms": 90.0, "mean_batch": 1.0}
SLOW = {"images_per_s": 60.0, "p50_ms": 9.0, "p99_ms": 40.0, "mean_batch": 1.0}


def test_a_winner_that_loses_is_never_written(tmp_path: Path) -> None:
    """Beyond the SLO, slower than what is there, or the same: there is a reason, and it is said."""
    config = TuneConfig(repository=build_repository(tmp_path / "r"))
    own, other = own_settings(config), Settings(num_instances=1, num_threads=1, max_batch_size=2)
    assert why_not(config, {own: [SLOW], other: [FAST]}, other, own) is None
    assert "own settings are the best" in (why_not(config, {own: [FAST], other: [SLOW]}, own, own) or "")
    assert "missed: winner" in (why_not(config, {own: [FAST], other: [SLOW]}, other, own) or "")
    strict = dataclasses.replace(config, slo_p99_ms=50.0)
    assert "p99" in (why_not(strict, {own: [FAST], other: [FAST]}, other, own) or "")
    assert why_not(strict, {own: [FAST], other: [SLOW]}, other, own) is None  # own settings miss the SLO
    other_file = dataclasses.replace(config, file="model_int8.onnx")
    assert "does not serve" in (why_not(other_file, {own: [SLOW], other: [FAST]}, other, own) or "")


def test_a_search_leaves_out_what_does_not_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One candidate that fails is noted; the winner is named with its settings, and a repository not of export is left alone."""
    repository = build_repository(tmp_path / "r", config=small_config(num_instances=2))
    config = TuneConfig(
        repository=repository, batch_sizes=(-2, 4), delays_us=(0,), slice_s=0.3, num_finalists=1, num_rounds=1,
        callers=2, write=False, out=tmp_path / "t",
    )  # fmt: skip
    assert tune.main(config) in (0, 1)
    assert "left out:" in capsys.readouterr().out
    shape, point = winner_of(read_result(tmp_path / "t.json"))
    assert shape.max_batch_size in (4, 8)
    assert point.samples["images_per_s"]


def test_what_was_measured_elsewhere_is_not_taken_up(tmp_path: Path) -> None:
    """Another configuration or another quota of cores is another search."""
    config = TuneConfig(repository=build_repository(tmp_path / "a"))
    other = TuneConfig(repository=build_repository(tmp_path / "b", config=small_config(num_instances=3)))
    assert stamp_of(config) == stamp_of(config) != stamp_of(other)
    assert stamp_of(config) != stamp_of(dataclasses.replace(config, callers=3))
