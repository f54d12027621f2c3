"""How a comparison is judged: bars from paired rounds, words for what is not significant, and `moderate()` against its parts."""

from __future__ import annotations

from pathlib import Path

from benchmarks import compare_page
from benchmarks.compare import CompareConfig, Measured
from benchmarks.corpus import photograph
from benchmarks.moderate import ModerateConfig, main
from benchmarks.results import Point, make_result, read_result
from tests.small_model import build_repository, small_config

NAMES = {
    "c": "FastAPI + PyTorch in the handler",
    "d": "FastAPI + ORT INT8, a worker a core",
    "e": "LitServe + ORT FP32, batch 8",
    "g": "ours FP32",
    "h": "ours INT8",
}


def _points(rates: dict[str, float], num_rounds: int = 5) -> list[Point]:
    return [
        Measured(
            key=key,
            name=NAMES[key],
            images_per_s=[rate * (1 + 0.01 * index) for index in range(num_rounds)],
            latency_ms=[[16000 / rate] * 20] * num_rounds,
            errors=[0] * num_rounds,
        ).point()
        for key, rate in rates.items()
    ]


def test_bars_are_ratios_of_the_same_rounds() -> None:
    """Five times as fast with a twelfth of the tail passes what it should and misses the goal."""
    bars = compare_page.bars(_points({"c": 12, "d": 60, "e": 20, "g": 21, "h": 66}), "jpeg", "resnet50")
    words = {(bar.name, bar.goal): bar.word for bar in bars}
    assert words["ours INT8 ÷ tutorial server, images/s", False] == "pass"
    assert words["ours INT8 ÷ tutorial server, images/s", True] == "miss"
    assert words["ours INT8 ÷ tutorial server, p99 of latency", False] == "miss"
    assert words["ours FP32 ÷ LitServe + ONNX Runtime, images/s", False] == "pass"


def test_rounds_with_errors_or_without_answers_are_not_compared() -> None:
    """A round that failed neither counts nor shifts the others; errors of ours are a missed bar of their own."""
    points = _points({"c": 12, "g": 21, "h": 66})
    tutorial = points[0]
    tutorial.samples["p99_ms"][1] = 0.0  # type: ignore[index]
    points[1].samples["errors"][0] = 2.0  # type: ignore[index]
    found = compare_page.paired(points[2], tutorial, "p99_ms")
    assert found is not None
    assert found.num_rounds == 4
    found = compare_page.paired(points[1], tutorial)
    assert found is not None
    assert found.num_rounds == 4
    failed = Measured(key="h", name="ours INT8", images_per_s=[60.0], latency_ms=[[]], errors=[3]).point()
    assert failed.samples["p99_ms"] == [0.0]
    missed = [bar for bar in compare_page.bars([tutorial, failed], "jpeg", "resnet50") if not bar.met]
    assert [bar.name for bar in missed] == ["errors of ours INT8"]


def test_a_ratio_around_one_is_called_no_difference() -> None:
    """Ours at the speed of the best simple server passes its bar, and the verdict says that there is no difference."""
    points = _points({"d": 60, "h": 60.5})
    points[1].samples["images_per_s"][2] = 50.0  # type: ignore[index]
    bar = next(bar for bar in compare_page.bars(points, "jpeg", "resnet50") if not bar.goal)
    assert bar.verdict == "pass, not significant"


def test_other_networks_and_inputs_are_not_judged() -> None:
    """The bars are of one network, from files."""
    points = _points({"c": 12, "h": 66})
    assert compare_page.bars(points, "pixels", "resnet50") == []
    assert compare_page.bars(points, "jpeg", "vgg16") == []


def test_few_rounds_are_not_significant_and_the_page_says_so() -> None:
    """Three rounds give a ratio and the words that it proves nothing."""
    points = _points({"c": 12, "g": 21}, num_rounds=3)
    result = make_result("compare", CompareConfig(), points)
    assert "not significant" in compare_page.text(result)


def test_moderate_is_compared_with_its_parts(tmp_path: Path) -> None:
    """Decoding, inference and the whole are measured on the same files."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(2):
        (folder / f"{index}.jpg").write_bytes(photograph(index, 320, 240))
    config = ModerateConfig(
        serve=True,
        repository=build_repository(tmp_path / "r", config=small_config(num_instances=2)),
        images=folder,
        num_images=6,
        rounds=1,
        slice_s=0.1,
        out=tmp_path / "m",
    )
    assert main(config) in (0, 1)
    samples = read_result(tmp_path / "m.json").points[0].samples
    assert samples["wall_s"][0] > 0
    assert samples["decoding_cpu_s"][0] > 0
