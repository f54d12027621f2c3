"""The command line: what it finds, what it prints, and its exit code."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from moderation_client._cli import main
from moderation_client.testing import FakeServer
from tests.client_shells import plain


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures in a folder and one below it, and a file that is no picture."""
    (tmp_path / "deep").mkdir()
    Image.fromarray(plain(10)).save(tmp_path / "harmless.png")
    Image.fromarray(plain(180)).save(tmp_path / "deep" / "doubtful.png")
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


@pytest.fixture(autouse=True)
def address(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server that the commands ask."""
    monkeypatch.setenv("MODERATION_SERVER", server.url)


def test_folders_are_searched_and_exit_codes_say_what_was_found(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """0 nothing flagged, 1 flagged, 2 an image could not be judged; `--fail-on block` raises the bar."""
    assert main([str(folder / "harmless.png")]) == 0
    assert main([str(folder)]) == 1
    assert main([str(folder), "--fail-on", "block"]) == 0
    assert main([str(folder / "notes.txt"), str(folder)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] == "allow"
    assert "doubtful.png" in lines[1]
    assert "unsupported_format" in lines[-3]


def test_files_that_a_folder_search_passes_over_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of pictures without endings is not silently fine."""
    for name in ("first", "second"):
        Image.fromarray(plain(250)).save(tmp_path / name, "PNG")
    assert main([str(tmp_path)]) == 0
    assert "skipped in folders: 2" in capsys.readouterr().err
    assert main([str(tmp_path / "first")]) == 1


def test_json_lines_are_whole_verdicts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object a line, as `Verdict.to_dict` gives it."""
    main(["--json", str(folder)])
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(record["id"]).name for record in records] == ["doubtful.png", "harmless.png"]
    assert records[0]["decision"] == "review"


def test_list_comes_from_stdin(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`-` reads names, a line each."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{folder / 'harmless.png'}\n\n{folder / 'deep'}\n"))
    assert main(["-"]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_trouble_is_told_on_stderr_without_a_traceback(
    folder: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that is down, a bad address and a bad policy file are one line and exit code 2."""
    server.stop()
    assert main([str(folder), "--timeout-s", "0.3"]) == 2
    assert main([str(folder), "--server", "ftp://x"]) == 2
    assert main([str(folder), "--policy", "nowhere.json"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in errors if "skipped" not in line] == [
        "ServerUnavailableError",
        "ValueError",
        "PolicyError",
    ]


def test_nothing_but_results_without_a_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No progress bar where nobody looks."""
    main([str(folder / "harmless.png"), str(folder / "deep")])
    assert capsys.readouterr().err == ""


def test_token_comes_from_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret on a command line could be read by everybody on the machine."""
    with FakeServer(token="secret") as server:
        monkeypatch.setenv("MODERATION_TOKEN", "secret")
        assert main(["--server", server.url, str(folder / "harmless.png")]) == 0
