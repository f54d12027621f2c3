"""Shadow runs and the canary: two versions of a real model on one server, compared and shared out."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bulk.__main__ import main
from moderation_client import ModerationClient
from serve.config import ServerConfig
from serve.server import TritonServer
from tests.bulk_sources import BROKEN, folder
from tests.pictures import encoded, flat
from tests.small_model import add_version, build_repository, small_config, write_config

README = Path(__file__).parent.parent / "bulk" / "README.md"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server with two versions: the second one's scores are nearer to the middle."""
    repository = build_repository(tmp_path_factory.mktemp("both") / "repository")
    add_version(repository, 2, steepness=4.0)
    config = small_config()
    config.version_policy.specific.versions.extend([1, 2])
    write_config(repository, config, versions=(1, 2))
    server = TritonServer(ServerConfig(repository=repository, http_port=0, grpc_port=0, metrics_port=0))
    try:
        server.start()
        yield server.grpc_url
    finally:
        server.stop(timeout_s=0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Pictures from black to red, 26 of them, and a broken one."""
    reds = {f"red-{red:03d}.png": encoded(flat((red, 0, 0))) for red in range(0, 256, 10)}
    return folder(tmp_path / "in", {**reds, "broken.png": BROKEN})


def run(source: Path, out: Path, url: str, *words: str) -> tuple[int, dict[str, Any], str]:
    """Exit status, data and page of a shadow run."""
    status = main(["shadow", str(source), "--out", str(out), "--url", url, "--nice", "0", *words])
    return status, json.loads((out / "shadow.json").read_text()), (out / "shadow.html").read_text()


def test_shadow_counts_flips_and_shifts(both: str, source: Path, tmp_path: Path) -> None:
    """Scores between the block thresholds of the two versions flip, to the laxer side; the bound makes the exit status."""
    status, found, page = run(source, tmp_path / "out", both, "--live", "1", "--candidate", "2")
    blocked = [red for red in range(0, 256, 10) if score(red, 8.0) >= 0.9]
    assert not [red for red in range(0, 256, 10) if score(red, 4.0) >= 0.9]
    assert status == 1
    assert found["num_compared"] == 26
    assert found["laxer"] == {"weapon": len(blocked)}
    assert found["stricter"] == {}
    assert found["flip_share"] == found["laxer_share"] == pytest.approx(len(blocked) / 26)
    assert found["errors"] == {"both": 1}
    shifts = [score(red, 4.0) - score(red, 8.0) for red in range(0, 256, 10)]
    assert found["shifts"]["weapon"]["mean"] == pytest.approx(sum(shifts) / 26, abs=1e-3)
    assert found["shifts"]["weapon"]["p99"] == pytest.approx(max(shifts), abs=0.01)
    assert "red-250.png" not in json.dumps(found)
    assert "red-250.png" in page
    assert "<script" not in page
    assert not re.search(r"(src|href)=.https?:", page)
    assert "data:image" not in page


def score(red: int, steepness: float) -> float:
    """What the small model gives a red picture for `weapon`."""
    return float(1 / (1 + 2.718281828459045 ** (-steepness * (red / 255 - 0.5))))


def test_shadow_within_its_bounds_passes(both: str, source: Path, tmp_path: Path) -> None:
    """With bounds that allow it the status is 0; pictures are shown only when asked for, ids not at all when asked not to."""
    words = ["--live", "1", "--candidate", "2", "--max-flips", "0.5", "--max-laxer", "0.5"]
    status, _, page = run(source, tmp_path / "out", both, *words, "--thumbnails")
    assert status == 0
    assert page.count("data:image/jpeg") == page.count("red-") > 0
    _, _, bare = run(source, tmp_path / "out", both, *words, "--examples", "0")
    assert "red-" not in bare


def test_shadow_of_two_servers_needs_no_versions(both: str, source: Path, tmp_path: Path) -> None:
    """A candidate that has a server of its own is named by its address; the same model on both differs in nothing."""
    status, found, _ = run(source, tmp_path / "out", both, "--candidate-url", both)
    assert (status, found["flip_share"]) == (0, 0.0)
    assert found["shifts"]["weapon"]["p99"] == pytest.approx(0.0, abs=0.001)


def test_shadow_refuses_what_cannot_be_compared(both: str, source: Path, tmp_path: Path) -> None:
    """A version compared with itself, and a source that changed between the two sides."""
    words = [
        "shadow",
        str(source),
        "--out",
        str(tmp_path / "out"),
        "--url",
        both,
        "--nice",
        "0",
        "--live",
        "1",
    ]
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--candidate", "1"])
    assert (
        main(
            [
                str(source),
                "--out",
                str(tmp_path / "out" / "live"),
                "--url",
                both,
                "--nice",
                "0",
                "--model-version",
                "1",
            ]
        )
        == 0
    )
    (source / "red-000.png").rename(source / "red-001.png")
    assert main([*words, "--candidate", "2"]) == 1


def test_canary_of_the_readme(both: str) -> None:
    """The ten lines as they are printed: about the share asked for, the same version for an image every time, and it answers."""
    [code] = [
        each for each in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "CANARY" in each
    ]
    assert len(code.strip().splitlines()) <= 14
    names: dict[str, Any] = {"image_id": "upload-7", "image": encoded(flat((250, 0, 0)))}
    exec(code.replace("localhost:8001", both), names)
    version_for = names["version_for"]
    assert names["verdict"].model_version == version_for("upload-7")
    chosen = Counter(version_for(f"upload-{index}") for index in range(20_000))
    assert chosen[names["CANARY"]] / 20_000 == pytest.approx(names["SHARE"], abs=0.006)
    canaries = [
        f"upload-{index}" for index in range(200) if version_for(f"upload-{index}") == names["CANARY"]
    ]
    with ModerationClient(both) as client:
        pairs = [(image_id, names["image"]) for image_id in canaries]
        verdicts = client.moderate(pairs, model_version=names["CANARY"])
    assert {verdict.model_version for verdict in verdicts} == {names["CANARY"]}
    assert {str(verdict.decision) for verdict in verdicts} == {"review"}
