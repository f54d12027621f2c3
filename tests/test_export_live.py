"""A running server under load takes new versions, old versions and refuses bad ones, without one failed or mislabelled answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from export import listing, operations
from export.errors import ServerError
from export.live import LiveServer
from export.publish import publish
from export.repository import ModelFolder, State, stage_model
from export.source import Pixels, Scores
from export.version import Version
from tests.conftest import StartServer
from tests.small_export import pictures, quick_config, small_source

RATE_PER_S = 20.0


@dataclass
class Load:
    """Sends one image 20 times a second and keeps every answer."""

    url: str
    image: Pixels
    answers: list[tuple[str, float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Send until stopped, on time whatever the answers do."""
        client = triton.InferenceServerClient(self.url)
        part = triton.InferInput("image", self.image.shape, "UINT8")
        part.set_data_from_numpy(self.image)
        while not self.stopped.wait(1 / RATE_PER_S):
            try:
                answer = client.infer("moderation", [part], client_timeout=20)
                score = float(answer.as_numpy("scores")[0, 0])
                self.answers.append((answer.get_response().model_version, score))
            except InferenceServerException as error:
                self.failures.append(str(error))
        client.close()


def spoil(target: Path, versions: Mapping[int, Version], state: State) -> None:
    """Stage a version that no server can load."""
    stage_model(target, versions, state)
    for path in [target / "config.pbtxt", *target.glob("configs/*.pbtxt")]:
        path.write_text(path.read_text().replace('name: "scores"', 'name: "marks"'))


def test_changes_under_load_fail_no_answer(
    tmp_path: Path, start_triton: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Publish, roll back, publish something bad: every answer is right for the version that it names."""
    repository, scratch = tmp_path / "repository", tmp_path / "s"
    sources = [small_source(scratch, seed=seed) for seed in (0, 5)]
    publish(sources[0], quick_config(repository))
    server = start_triton(repository)
    live = LiveServer(server=server.grpc_url, token_file=server.token_file)
    image = pictures(1, seed=9)
    load = Load(url=server.grpc_url, image=image)
    thread = threading.Thread(target=load.run, daemon=True)
    thread.start()
    try:
        time.sleep(0.5)
        publish(sources[1], quick_config(repository, live=live))
        time.sleep(0.5)
        assert operations.rollback(repository, live=live) == 1
        time.sleep(0.5)
        monkeypatch.setattr("export.operations.stage_model", spoil)
        with pytest.raises(ServerError, match="did not take version 3"):
            publish(sources[0], quick_config(repository, live=live))
        time.sleep(0.5)
    finally:
        load.stopped.set()
        thread.join(30)
    expected: dict[str, Scores] = {
        str(number): source.reference(image) for number, source in zip((1, 2), sources, strict=True)
    }
    assert load.failures == []
    assert {version for version, _ in load.answers} == {"1", "2"}
    for version, score in load.answers:
        assert abs(score - float(expected[version][0, 0])) < 1e-4, f"version {version} answered {score}"
    assert np.abs(expected["1"] - expected["2"]).max() > 0.01
    assert [row.version for row in listing.rows(repository)] == [1, 2]
    state = ModelFolder(repository).state
    assert state is not None
    assert state.active == 1


def test_server_that_is_not_there_leaves_the_repository_as_it_was(tmp_path: Path) -> None:
    """The new state is taken back when nobody can load it."""
    repository = tmp_path / "repository"
    publish(small_source(tmp_path / "s"), quick_config(repository))
    nobody = LiveServer(server="127.0.0.1:1")
    with pytest.raises(ServerError, match=r"127\.0\.0\.1:1"):
        publish(small_source(tmp_path / "s", seed=1), quick_config(repository, live=nobody))
    assert [row.version for row in listing.rows(repository)] == [1]
