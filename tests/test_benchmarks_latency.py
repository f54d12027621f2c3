"""`python benchmarks/latency.py` as a user meets it: files, tables, exit codes, clear errors."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.environment import ROOT
from benchmarks.latency import LatencyConfig, main
from benchmarks.latency_page import knee
from benchmarks.machine import wait_until
from benchmarks.perf_analyzer import PerfAnalyzerError, read_profile
from benchmarks.results import Point, read_result
from benchmarks.target import Address, Target
from serve.server import TritonServer
from tests.small_model import build_repository, small_config

QUICK = LatencyConfig(
    concurrency=(1, 4), batch_size=(1,), num_images=2, warmup_s=0.1, window_s=0.2, max_windows=3
)


def test_sweep_writes_json_and_page(
    triton: TritonServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One run gives the table, the raw samples and a page that needs nothing else."""
    config = dataclasses.replace(
        QUICK, url=triton.grpc_url, token_file=triton.token_file, out=tmp_path / "latency"
    )
    assert main(config) == 0
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith(f"{tmp_path / 'latency.json'}\n{tmp_path / 'latency.html'}")
    result = read_result(tmp_path / "latency.json")
    assert [point.settings["concurrency"] for point in result.points] == [1, 4]
    for point in result.points:
        assert len(point.samples["latency_ms"]) == point.values["num_images"]
        assert point.number("mean_batch") >= 1
    assert result.environment.server["version"]
    assert result.environment.model["config_sha256"]
    page = (tmp_path / "latency.html").read_text()
    assert page.count("<svg") == 4
    assert "src=" not in page
    assert 'href="http' not in page


def test_client_route_sends_files_through_the_product(triton: TritonServer, tmp_path: Path) -> None:
    """`--via client --input encoded` measures what a caller of `moderate` sees."""
    config = dataclasses.replace(
        QUICK, url=triton.grpc_url, via="client", input=("encoded",), concurrency=(2,), out=tmp_path / "c"
    )
    assert main(config) == 0
    point = read_result(tmp_path / "c.json").points[0]
    assert point.values["num_errors"] == 0
    assert point.number("num_images") > 0


def test_in_process_ratio_is_of_the_same_file(tmp_path: Path) -> None:
    """`--serve --in-process` gives a bar and a goal for the ratio; exit 1 says that the bar is missed."""
    repository = build_repository(tmp_path / "repository", config=small_config(num_instances=2))
    config = dataclasses.replace(
        QUICK,
        serve=True,
        repository=repository,
        in_process=True,
        rounds=1,
        concurrency=(1,),
        out=tmp_path / "r",
    )
    code = main(config)
    result = read_result(tmp_path / "r.json")
    assert [(bar.limit, bar.goal) for bar in result.bars] == [(0.93, False), (0.97, True)]
    assert code == (1 if result.missed else 0)
    assert {point.settings.get("mode") for point in result.points} >= {"b1", "b8", "served"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"url": "127.0.0.1:9"}, "no Triton server answers"),
        ({"images": Path("nowhere")}, "no such folder"),
        ({"serve": True, "repository": Path("nowhere")}, "nowhere"),
    ],
)
def test_mistakes_are_named(
    change: dict[str, object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong address, no images, no repository: exit 2 and one line that says what to do."""
    with pytest.raises(SystemExit) as caught:
        main(dataclasses.replace(QUICK, **change))  # type: ignore[arg-type]
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_ctrl_c_keeps_what_was_measured(triton: TritonServer, tmp_path: Path) -> None:
    """Interrupted in its first window, the program still writes what it has, says so, and exits with 130."""
    out = tmp_path / "cut"
    command = ["env", "--default-signal=INT"]  # what runs the tests may ignore it, and children inherit that
    command += [sys.executable, "benchmarks/latency.py", "--url", triton.grpc_url, "--out", str(out)]
    command += ["--concurrency", "1", "--window-s", "60", "--warmup-s", "0.1", "--num-images", "1"]
    with Target(Address(url=triton.grpc_url, headers=triton.admin_headers)) as target:
        before = target.statistics().num_images
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        measuring = wait_until(
            lambda: True if target.statistics().num_images > before + 50 else None, timeout_s=120, poll_s=0.2
        )
    time.sleep(0.5)  # past the warm-up, however slow the machine
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert measuring
    assert process.returncode == 130
    assert b"interrupted" in printed
    assert read_result(out.with_suffix(".json")).interrupted


def test_knee_is_where_throughput_stops_growing() -> None:
    """Doubling callers for four percent more throughput is past the knee."""
    rates = {1: 20.0, 2: 38.0, 4: 60.0, 8: 62.0, 16: 62.5}
    points = [
        Point(settings={"concurrency": callers, "batch_size": 1}, values={"images_per_s": rate})
        for callers, rate in rates.items()
    ]
    assert knee(points).settings["concurrency"] == 4


def test_a_profile_of_perf_analyzer_becomes_the_same_kind_of_point(tmp_path: Path) -> None:
    """Time stamps in nanoseconds become raw latencies; a file of another form is a clear error."""
    requests = [
        {"timestamp": start, "response_timestamps": [start + 5_000_000]} for start in range(0, 10**9, 10**8)
    ]
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({"experiments": [{"requests": requests}]}))
    point = read_profile(path, {"batch_size": 2, "concurrency": 1}, {})
    assert point.samples["latency_ms"] == [5.0] * 10
    assert point.number("num_images") == 20
    assert point.number("images_per_s") == pytest.approx(20 / 0.905)
    path.write_text("{}")
    with pytest.raises(PerfAnalyzerError, match="not readable"):
        read_profile(path, {}, {})


def test_perf_analyzer_that_is_not_there_is_named(
    triton: TritonServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message says what to install."""
    if shutil.which("perf_analyzer"):
        pytest.skip("perf_analyzer is installed here")
    with pytest.raises(SystemExit):
        main(dataclasses.replace(QUICK, url=triton.grpc_url, engine="perf_analyzer"))
    assert "pip install perf-analyzer" in capsys.readouterr().err
