"""What is done with versions after publishing: rolled back, pruned, verified, served by another machine than they were tuned on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from export import listing, operations, session
from export.command import main
from export.config_pbtxt import read_config
from export.errors import RepositoryError
from export.publish import publish
from export.serving import Serving
from export.version import verify_version
from moderation_client.contract import spec_parameter
from tests.small_export import quick_config, small_source


def test_second_version_answers_and_rollback_brings_the_first_back(tmp_path: Path) -> None:
    """Numbers grow, specs of both versions travel, an older version with other labels gets its own config back."""
    repository = tmp_path / "repository"
    publish(small_source(tmp_path / "s"), quick_config(repository))
    other = small_source(tmp_path / "s", seed=5, labels=("circle", "square", "star"))
    publish(other, quick_config(repository))
    config = read_config(repository / "moderation" / "config.pbtxt")
    assert config.version_policy.specific.versions == [2]
    assert config.output[0].dims == [3]
    assert {spec_parameter(1), spec_parameter(2)} <= set(config.parameters)
    assert operations.rollback(repository) == 1
    config = read_config(repository / "moderation" / "config.pbtxt")
    assert (config.version_policy.specific.versions, config.output[0].dims) == ([1], [2])
    encoded = read_config(repository / "moderation_encoded" / "config.pbtxt")
    assert encoded.output[0].dims == [-1], "it fits every version"
    assert [row.active for row in listing.rows(repository)] == [True, False]
    with pytest.raises(RepositoryError, match="version 7"):
        operations.rollback(repository, version=7)


def test_rollback_goes_further_back_each_time_and_never_to_what_was_given_up(tmp_path: Path) -> None:
    """Two rollbacks in a row do not bring back the version that the first one left; naming it does."""
    repository, source = tmp_path / "repository", small_source(tmp_path / "s")
    for _ in range(3):
        publish(source, quick_config(repository))
    assert [operations.rollback(repository), operations.rollback(repository)] == [2, 1]
    with pytest.raises(RepositoryError, match="no version was active before version 1"):
        operations.rollback(repository)
    publish(source, quick_config(repository))
    assert operations.rollback(repository) == 1, "versions 2 and 3 were given up"
    assert operations.rollback(repository, version=3) == 3
    publish(source, quick_config(repository))
    assert operations.rollback(repository) == 3, "somebody chose it again"


def test_numbers_of_removed_versions_are_not_given_again(tmp_path: Path) -> None:
    """Prune keeps the active version, and the next publish gets a new number."""
    repository = tmp_path / "repository"
    for seed in range(3):
        publish(small_source(tmp_path / "s", seed=seed), quick_config(repository))
    operations.rollback(repository, version=1)
    assert operations.prune(repository, keep=1) == [2]
    assert [row.version for row in listing.rows(repository)] == [1, 3]
    published = publish(small_source(tmp_path / "s", seed=9), quick_config(repository))
    assert published.version.number == 4


def test_damaged_version_is_found_and_not_rolled_back_to(tmp_path: Path) -> None:
    """A changed byte, a missing and a foreign file are each named."""
    repository = tmp_path / "repository"
    for seed in range(2):
        publish(small_source(tmp_path / "s", seed=seed), quick_config(repository))
    folder = repository / "moderation" / "1"
    data = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").write_bytes(data[:-1] + b"\x00")
    (folder / "policy.json").unlink()
    (folder / "extra.txt").write_text("?")
    problems = "\n".join(verify_version(folder))
    assert "model.onnx is not what was published" in problems
    assert "policy.json is missing" in problems
    assert "extra.txt was not published" in problems
    with pytest.raises(RepositoryError):
        operations.rollback(repository)


def test_settings_that_exceed_the_machine_are_refused() -> None:
    """Instances x threads above the CPU quota is an error that names both."""
    with pytest.raises(RepositoryError, match="64 instances x 64 threads"):
        Serving(instances=64, threads=64).check_quota()
    with pytest.raises(RepositoryError, match="instances must be 2 or more"):
        Serving(instances=1).check_quota()
    Serving(instances=2, threads=session.cpu_quota()).check_quota()


@pytest.mark.parametrize(
    ("cpus", "asked", "shape"),
    [
        (1, {}, (2, 1)),
        (4, {}, (4, 1)),
        (4, {"threads": 2}, (2, 2)),
        (4, {"threads": 8}, (2, 4)),
        (4, {"instances": 1}, (2, 4)),
    ],
)
def test_there_are_two_instances_at_least(
    cpus: int, asked: dict[str, int], shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on one CPU, and for a repository that was written with one: a single one would leave requests lying."""
    monkeypatch.setattr("export.serving.cpu_quota", lambda: cpus)
    chosen = Serving(**asked, encoded_instances=1).resolved()  # type: ignore[arg-type]
    assert (chosen.instances, chosen.threads) == shape
    assert chosen.encoded_instances == chosen.gpu_instances == 2
    written = {**Serving().to_dict(), "instances": 1, "gpu_instances": 1}
    Serving.from_dict(written).check_quota()  # what an earlier release wrote does not stand in the way


def test_repository_tuned_on_a_larger_machine_is_usable_on_a_smaller_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is listed and rolled back, and served with what this machine has; asking for more by hand is refused."""
    repository, source = tmp_path / "repository", small_source(tmp_path / "s")
    monkeypatch.setattr("export.serving.cpu_quota", lambda: 16)
    large = Serving(instances=4, threads=4)
    publish(source, quick_config(repository, serving=large))
    publish(source, quick_config(repository))
    monkeypatch.setattr("export.serving.cpu_quota", lambda: 3)
    assert len(listing.rows(repository)) == 2
    assert operations.rollback(repository) == 1
    config = read_config(repository / "moderation" / "config.pbtxt")
    assert config.instance_group[0].count == 2
    assert config.parameters["intra_op_thread_count"].string_value == "3"
    for act in (
        lambda: operations.configure(repository, large),
        lambda: publish(source, quick_config(repository, serving=large)),
    ):
        with pytest.raises(RepositoryError, match="4 instances x 4 threads"):
            act()


def test_verify_of_a_repository_that_is_not_there_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistyped path is not "as published"."""
    assert main(["verify", str(tmp_path / "nowhere")]) == 1
    assert "holds no model" in capsys.readouterr().err


def test_state_file_that_is_damaged_is_an_error_with_its_name(tmp_path: Path) -> None:
    """Half a JSON file is told as such."""
    publish(small_source(tmp_path / "s"), quick_config(tmp_path / "r"))
    state = tmp_path / "r" / "moderation" / "state.json"
    state.write_text(state.read_text()[:20])
    with pytest.raises(RepositoryError, match=r"state\.json"):
        listing.rows(tmp_path / "r")
    state.write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(RepositoryError, match="schema_version"):
        listing.rows(tmp_path / "r")
    shutil.rmtree(tmp_path / "r")
