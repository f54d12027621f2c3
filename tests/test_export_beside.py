"""Versions that stay loaded beside the active one: for canaries and shadow runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from export import operations
from export.config_pbtxt import read_config
from export.errors import RepositoryError
from export.publish import publish
from export.serving import Serving
from tests.small_export import quick_config, small_source


def loaded(repository: Path) -> list[int]:
    """Versions that every configuration of the model loads."""
    model = repository / "moderation"
    found = [
        list(read_config(model / name).version_policy.specific.versions)
        for name in ("config.pbtxt", "configs/cpu.pbtxt", "configs/gpu.pbtxt")
    ]
    assert found[0] == found[1] == found[2]
    return sorted(found[0])


def test_older_version_stays_loaded_and_a_newer_one_never_takes_over(tmp_path: Path) -> None:
    """The live version outlives a publication; after a rollback the newer one is gone, because it would answer everybody."""
    repository = tmp_path / "repository"
    publish(small_source(tmp_path / "s"), quick_config(repository))
    operations.configure(repository, Serving(also_load=(1,)))
    assert loaded(repository) == [1]
    publish(small_source(tmp_path / "s", seed=5), quick_config(repository))
    assert loaded(repository) == [1, 2]
    operations.configure(repository, Serving(also_load=(1, 2)))
    operations.rollback(repository)
    assert loaded(repository) == [1]
    operations.rollback(repository, version=2)
    assert operations.prune(repository, keep=1) == []
    operations.configure(repository, Serving())
    assert loaded(repository) == [2]
    with pytest.raises(RepositoryError, match="version 9"):
        operations.configure(repository, Serving(also_load=(9,)))


def test_version_of_another_shape_is_refused_beside(tmp_path: Path) -> None:
    """One configuration cannot serve both, and the version that is published says so before anything changes."""
    repository = tmp_path / "repository"
    publish(small_source(tmp_path / "s"), quick_config(repository))
    operations.configure(repository, Serving(also_load=(1,)))
    other = small_source(tmp_path / "s", seed=5, labels=("circle", "square", "star"))
    with pytest.raises(RepositoryError, match="beside version 2"):
        publish(other, quick_config(repository))
    assert loaded(repository) == [1]
