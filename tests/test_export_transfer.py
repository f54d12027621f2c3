"""Push and pull: the store shows a whole state or none, and what arrives is what was sent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from export import listing, session
from export.config_pbtxt import read_config, to_text
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


@pytest.mark.parametrize(
    "path",
    [
        "moderation/libtriton_onnxruntime.so",
        "moderation/1/model.py",
        "moderation/configs/other.pbtxt",
        "moderation_encoded/1/model.py",
        "moderation_encoded/libtriton_moderation_encoded.so",
        "other/config.pbtxt",
        "README.md",
    ],
)
def test_file_that_nobody_published_is_neither_sent_nor_taken(
    pushed: tuple[Path, str], tmp_path: Path, path: str
) -> None:
    """Triton would load a library or a script that lies beside a model."""
    repository, url = pushed
    content = b"anything"
    index = json.loads((tmp_path / "store" / INDEX).read_text())
    digest = hashlib.sha256(content).hexdigest()
    index["files"][path] = digest
    (tmp_path / "store" / "objects" / digest).write_bytes(content)
    (tmp_path / "store" / INDEX).write_text(json.dumps(index))
    with pytest.raises(TransferError, match="no file of a published model"):
        pull(url, tmp_path / "elsewhere")
    assert not list((tmp_path / "elsewhere").glob("*"))
    if path.startswith("moderation"):
        (repository / path).write_bytes(content)
        with pytest.raises((TransferError, RepositoryError), match=Path(path).name):
            push(repository, url)


def rewrite(store: Path, path: str, change: Callable[[bytes], bytes]) -> None:
    """Replace one file of the store, its checksum in the index included, as somebody who may write there can."""
    index = json.loads((store / INDEX).read_text())
    content = change((store / "objects" / index["files"][path]).read_bytes())
    index["files"][path] = hashlib.sha256(content).hexdigest()
    (store / "objects" / index["files"][path]).write_bytes(content)
    (store / INDEX).write_text(json.dumps(index))


def test_pulled_files_are_those_of_the_manifest_and_run_by_our_backends(
    pushed: tuple[Path, str], tmp_path: Path
) -> None:
    """Another model file than was published, or a configuration with another backend, changes nothing here."""
    _, url = pushed
    before = (tmp_path / "store" / INDEX).read_text()
    rewrite(tmp_path / "store", "moderation/1/model.onnx", lambda content: content[:-1] + b"\x00")
    with pytest.raises(TransferError, match=r"model\.onnx is not what was published"):
        pull(url, tmp_path / "elsewhere")
    (tmp_path / "store" / INDEX).write_text(before)
    words = (b'backend: "onnxruntime"', b'backend: "python"')
    rewrite(tmp_path / "store", "moderation/configs/cpu.pbtxt", lambda content: content.replace(*words))
    with pytest.raises(TransferError, match="backend"):
        pull(url, tmp_path / "elsewhere")
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"model": "../outside"},
        {"model": "moderation_encoded"},
        {"model": 7},
        {"files": []},
        {"files": {"a": "../b"}},
    ],
)
def test_index_of_another_form_is_refused(
    pushed: tuple[Path, str], tmp_path: Path, change: dict[str, object]
) -> None:
    """Names and checksums are what they should be before any of them becomes a path."""
    index = json.loads((tmp_path / "store" / INDEX).read_text())
    (tmp_path / "store" / INDEX).write_text(json.dumps({**index, **change}))
    with pytest.raises(TransferError, match="index"):
        pull(pushed[1], tmp_path / "elsewhere")
    (tmp_path / "store" / INDEX).write_text("[]")
    with pytest.raises(TransferError, match="index"):
        pull(pushed[1], tmp_path / "elsewhere")


def test_damaged_repository_is_not_pushed(pushed: tuple[Path, str]) -> None:
    """A checksum of what lies on a bad disk would make it look right everywhere."""
    repository, url = pushed
    file = repository / "moderation" / "1" / "model.onnx"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[:-1] + b"\x00")
    with pytest.raises(RepositoryError, match="is not what was published"):
        push(repository, url)


def test_pull_keeps_what_the_platform_set_by_hand(pushed: tuple[Path, str], tmp_path: Path) -> None:
    """The machine's own decision about broken pictures outlives a new version; a model without encoded files removes the folder."""
    repository, url = pushed
    here = tmp_path / "elsewhere"
    pull(url, here)
    path = here / "moderation_encoded" / "config.pbtxt"
    config = read_config(path)
    config.parameters["on_error"].string_value = "block"
    path.write_text(to_text(config))
    publish(small_source(tmp_path / "s", seed=1), quick_config(repository))
    push(repository, url)
    pull(url, here)
    assert read_config(path).parameters["on_error"].string_value == "block"
    publish(small_source(tmp_path / "s"), quick_config(repository, encoded=False))
    push(repository, url)
    pull(url, here)
    assert not path.exists()


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
