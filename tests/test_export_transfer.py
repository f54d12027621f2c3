"""Push and pull: the store shows a whole state or none, and what arrives is what was sent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export import listing, session
from export.errors import RepositoryError, TransferError
from export.publish import publish
from export.pull import main
from export.transfer import INDEX, pull, push
from tests.small_export import quick_config, small_source


@pytest.fixture
def pushed(tmp_path: Path) -> tuple[Path, str]:
    """Publish a version and push it to a folder that stands for an object store."""
    publish(small_source(tmp_path / "s"), quick_config(tmp_path / "r"))
    url = f"file://{tmp_path / 'store'}"
    push(tmp_path / "r", url)
    return tmp_path / "r", url


def test_pulled_repository_is_the_pushed_one(pushed: tuple[Path, str], tmp_path: Path) -> None:
    """Every file arrives, and a second push sends nothing again."""
    repository, url = pushed
    assert push(repository, url) == 0
    pull(url, tmp_path / "elsewhere")
    assert listing.verify(tmp_path / "elsewhere") == []
    files = {
        path.relative_to(repository): path.read_bytes() for path in repository.rglob("*") if path.is_file()
    }
    for relative, content in files.items():
        assert (tmp_path / "elsewhere" / relative).read_bytes() == content


def test_new_version_replaces_the_old_state_in_one_swap(pushed: tuple[Path, str], tmp_path: Path) -> None:
    """Only new files travel; the puller sees the new active version."""
    repository, url = pushed
    pull(url, tmp_path / "elsewhere")
    publish(small_source(tmp_path / "s", seed=1), quick_config(repository))
    assert 0 < push(repository, url) < 15
    pull(url, tmp_path / "elsewhere")
    assert [row.active for row in listing.rows(tmp_path / "elsewhere")] == [False, True]


def test_push_that_is_cut_short_leaves_the_old_state(
    pushed: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index is written last."""
    repository, url = pushed
    publish(small_source(tmp_path / "s", seed=1), quick_config(repository))

    def fail(*_: object) -> int:
        raise OSError("the network went away")

    monkeypatch.setattr("export.transfer._send", fail)
    with pytest.raises(TransferError, match="went away"):
        push(repository, url)
    pull(url, tmp_path / "elsewhere")
    assert len(listing.rows(tmp_path / "elsewhere")) == 1


def test_damaged_or_hostile_store_changes_nothing(pushed: tuple[Path, str], tmp_path: Path) -> None:
    """A changed object, a path that leads out, a missing index: told, and the repository is as it was."""
    _, url = pushed
    store = tmp_path / "store"
    index = json.loads((store / INDEX).read_text())
    digest = next(iter(index["files"].values()))
    content = (store / "objects" / digest).read_bytes()
    (store / "objects" / digest).write_bytes(content + b"x")
    with pytest.raises(TransferError, match="damaged"):
        pull(url, tmp_path / "elsewhere")
    (store / "objects" / digest).write_bytes(content)
    index["files"]["../../escaped"] = digest
    (store / INDEX).write_text(json.dumps(index))
    with pytest.raises(TransferError, match="leads out"):
        pull(url, tmp_path / "elsewhere")
    (store / INDEX).unlink()
    with pytest.raises(TransferError, match="nothing was pushed"):
        pull(url, tmp_path / "elsewhere")
    assert not list((tmp_path / "elsewhere").iterdir())
    with pytest.raises(TransferError, match="nosuchstore"):
        pull("nosuchstore://bucket", tmp_path / "elsewhere")
    with pytest.raises(RepositoryError, match="no model"):
        push(tmp_path / "empty", url)


def test_container_fits_a_pulled_repository_to_its_cpus(
    pushed: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`python -m export.pull` rewrites the instances that were chosen on another machine, and keeps what was set."""
    monkeypatch.setattr("export.serving.cpu_quota", lambda: 7)
    assert session.cpu_quota() < 7  # the machine that published
    assert main([pushed[1], str(tmp_path / "pod" / "models")]) == 0
    assert "7 x 1 threads" in capsys.readouterr().out
    config = (tmp_path / "pod" / "models" / "moderation" / "config.pbtxt").read_text()
    assert "count: 7" in config
    assert listing.verify(tmp_path / "pod" / "models") == []
    assert main([f"file://{tmp_path / 'nothing'}", str(tmp_path / "pod" / "models")]) == 1
    assert "nothing was pushed" in capsys.readouterr().err
