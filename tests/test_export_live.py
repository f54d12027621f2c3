"""A running server under load takes new versions, old versions and refuses bad ones, without one failed or mislabelled answer."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from export import listing, operations
from export.errors import ProbeError, ServerError
from export.live import LiveServer
from export.publish import publish
from export.repository import ModelFolder, State, stage_model
from export.source import Pixels, Source
from export.version import Version, sha256_of
from moderation_client import ModerationClient
from tests.conftest import StartServer
from tests.serving import eventually
from tests.small_export import pictures, quick_config, small_graph, small_source

RATE_PER_S = 20.0


@dataclass
class Load:
    """Sends one image 20 times a second and keeps every answer."""

    url: str
    image: Pixels
    num_sent: int = 0
    answers: list[tuple[str, float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Send until stopped, each at its own time from the start on, whatever the answers before it do."""
        client = triton.InferenceServerClient(self.url)
        part = triton.InferInput("image", self.image.shape, "UINT8")
        part.set_data_from_numpy(self.image)
        start = time.monotonic()
        while not self.stopped.wait(max(0.0, start + self.num_sent / RATE_PER_S - time.monotonic())):
            client.async_infer("moderation", [part], callback=self._keep, client_timeout=20)
            self.num_sent += 1
        eventually(lambda: len(self.answers) + len(self.failures) == self.num_sent, what="every answer")
        client.close()

    def _keep(self, result: triton.InferResult | None, error: InferenceServerException | None) -> None:
        if error is not None or result is None:
            self.failures.append(str(error))
        else:
            score = float(result.as_numpy("scores")[0, 0])
            self.answers.append((result.get_response().model_version, score))


@contextlib.contextmanager
def under_load(url: str) -> Iterator[Load]:
    """Send from half a second before the body until half a second after it; afterwards every answer is there."""
    load = Load(url=url, image=pictures(1, seed=9))
    thread = threading.Thread(target=load.run, daemon=True)
    started = time.monotonic()
    thread.start()
    try:
        time.sleep(0.5)
        yield load
        time.sleep(0.5)
        assert load.num_sent >= RATE_PER_S * (time.monotonic() - started) - 2, "the sender fell behind"
    finally:
        load.stopped.set()
        thread.join(30)


def unloadable(target: Path, versions: Mapping[int, Version], state: State) -> None:
    """Stage a version that no server can load."""
    stage_model(target, versions, state)
    for path in [target / "config.pbtxt", *target.glob("configs/*.pbtxt")]:
        path.write_text(path.read_text().replace('name: "scores"', 'name: "marks"'))


def wrong(target: Path, versions: Mapping[int, Version], state: State) -> None:
    """Stage a version that loads well, its checksums included, and scores as another model does."""
    stage_model(target, versions, state)
    folder = target / str(state.active)
    (folder / "model.onnx").unlink()
    onnx.save(small_graph(seed=77), folder / "model.onnx")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model.onnx"] = sha256_of(folder / "model.onnx")
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_changes_under_load_fail_no_answer(
    tmp_path: Path, start_triton: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Publish, roll back, publish two bad ones: every answer is right for the version that it names."""
    repository, scratch = tmp_path / "repository", tmp_path / "s"
    sources = [small_source(scratch, seed=seed) for seed in (0, 5)]
    publish(sources[0], quick_config(repository))
    server = start_triton(repository)
    live = LiveServer(server=server.grpc_url, token_file=server.token_file)
    with under_load(server.grpc_url) as load:
        publish(sources[1], quick_config(repository, live=live))
        time.sleep(0.5)
        assert operations.rollback(repository, live=live) == 1
        time.sleep(0.5)
        monkeypatch.setattr("export.operations.stage_model", unloadable)
        with pytest.raises(ServerError, match="did not take version 3"):
            publish(sources[0], quick_config(repository, live=live))
        monkeypatch.setattr("export.operations.stage_model", wrong)
        with pytest.raises(ProbeError, match="golden scores differ"):
            publish(sources[0], quick_config(repository, live=live, probe="server"))
    check_answers(load, {"1": sources[0], "2": sources[1]})
    assert [row.version for row in listing.rows(repository)] == [1, 2]
    assert active(repository) == 1


def test_picture_size_changes_under_load(tmp_path: Path, start_triton: StartServer) -> None:
    """A version that takes larger pictures is published and taken back, and no call of the client fails."""
    repository, scratch = tmp_path / "repository", tmp_path / "s"
    small, large = small_source(scratch), small_source(scratch, size=48)
    publish(small, quick_config(repository))
    server = start_triton(repository)
    live = LiveServer(server=server.grpc_url, token_file=server.token_file)
    versions: list[int | str | None] = []
    stop = threading.Event()
    with (
        ModerationClient(server.grpc_url, policy=small.policy) as client,
        ThreadPoolExecutor(4) as callers,
    ):

        def ask() -> None:
            while not stop.is_set():
                (verdict,) = client.moderate(pictures(1, size=96))
                versions.append(verdict.model_version)

        def answered_by(version: str) -> None:
            eventually(lambda: versions[-1:] == [version], what=f"version {version}")

        asking = [callers.submit(ask) for _ in range(4)]
        try:
            answered_by("1")
            publish(large, quick_config(repository, live=live))
            answered_by("2")
            assert operations.rollback(repository, live=live) == 1
            answered_by("1")
        finally:
            stop.set()
        for each in asking:
            each.result()


def check_answers(load: Load, sources: Mapping[str, Source]) -> None:
    """None failed, each scores as its version does, and every version answered."""
    expected = {number: source.reference(load.image) for number, source in sources.items()}
    assert load.failures == []
    assert {version for version, _ in load.answers} == set(sources)
    for version, score in load.answers:
        assert abs(score - float(expected[version][0, 0])) < 1e-4, f"version {version} answered {score}"
    first, second = expected.values()
    assert np.abs(first - second).max() > 0.01


def active(repository: Path) -> int:
    """Version that answers, as the repository has it."""
    state = ModelFolder(repository).state
    assert state is not None
    return state.active


def test_first_version_that_answers_wrongly_is_unloaded(
    tmp_path: Path, start_triton: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing to go back to, so the server must not go on answering with what is not in the repository."""
    repository, source = tmp_path / "repository", small_source(tmp_path / "s")
    other = dataclasses.replace(source, spec=dataclasses.replace(source.spec, name="other"))
    publish(other, quick_config(repository, encoded=False))
    server = start_triton(repository)
    live = LiveServer(server=server.grpc_url, token_file=server.token_file)
    monkeypatch.setattr("export.operations.stage_model", wrong)
    monkeypatch.setattr("export.operations.probe", lambda *_: None)
    with pytest.raises(ServerError, match="golden scores differ"):
        publish(source, quick_config(repository, live=live))
    assert [each.name for each in repository.iterdir()] == ["other"]
    client = triton.InferenceServerClient(server.grpc_url)
    eventually(lambda: not client.is_model_ready("moderation"), what="unloaded model")
    assert client.is_model_ready("other")
    client.close()


def test_interrupt_while_the_server_loads_takes_everything_back(
    tmp_path: Path, start_triton: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C leaves files and server at the old version."""
    repository, source = tmp_path / "repository", small_source(tmp_path / "s")
    publish(source, quick_config(repository))
    server = start_triton(repository)
    live = LiveServer(server=server.grpc_url, token_file=server.token_file)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("export.live.check_golden", interrupt)
    with pytest.raises(KeyboardInterrupt):
        publish(small_source(tmp_path / "s", seed=1), quick_config(repository, live=live))
    assert [row.version for row in listing.rows(repository)] == [1]
    assert (repository / "moderation_encoded").is_dir()
    client = triton.InferenceServerClient(server.grpc_url)
    eventually(lambda: client.is_model_ready("moderation", "1"), what="old version")
    assert not client.is_model_ready("moderation", "2")
    client.close()


def test_server_gives_up_the_encoded_model_with_the_policy(tmp_path: Path, start_triton: StartServer) -> None:
    """A version without a policy is taken, and nobody is answered by a model that is not in the repository any more."""
    repository, source = tmp_path / "repository", small_source(tmp_path / "s")
    publish(source, quick_config(repository))
    server = start_triton(repository)
    live = LiveServer(server=server.grpc_url, token_file=server.token_file)
    publish(source, quick_config(repository, live=live, carry_policy=False))
    client = triton.InferenceServerClient(server.grpc_url)
    assert client.is_model_ready("moderation", "2")
    eventually(lambda: not client.is_model_ready("moderation_encoded"), what="unloaded model")
    client.close()


def test_server_that_is_not_there_leaves_the_repository_as_it_was(tmp_path: Path) -> None:
    """The new state is taken back when nobody can load it."""
    repository = tmp_path / "repository"
    publish(small_source(tmp_path / "s"), quick_config(repository))
    nobody = LiveServer(server="127.0.0.1:1")
    with pytest.raises(ServerError, match=r"127\.0\.0\.1:1"):
        publish(small_source(tmp_path / "s", seed=1), quick_config(repository, live=nobody))
    assert [row.version for row in listing.rows(repository)] == [1]
