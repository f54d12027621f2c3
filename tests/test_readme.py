"""README is true: its commands parse, its example runs, its tree exists, its tables are the committed results."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from moderation_client.testing import FakeServer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    """Every shell line of the page as words, continued lines joined, remarks dropped."""
    text = "".join(block for language, block in BLOCKS if language == "console").replace("\\\n", " ")
    lines = [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]
    return [shlex.split(line, comments=True) for line in lines]


def programs() -> dict[tuple[str, ...], set[str]]:
    """Program (with its sub-command) -> the options that README gives it."""
    found: dict[tuple[str, ...], set[str]] = {}
    for words in commands():
        if words[0] == "python":
            program = tuple(words[:3] if words[1] == "-m" else words[:2])
            rest = words[len(program) :]
            subcommand = tuple(rest[:1]) if rest[:1] and re.fullmatch("[a-z]+", rest[0]) else ()
            options = {word for word in rest if word.startswith("--")}
            found.setdefault(program + subcommand, set()).update(options)
    return found


def test_make_targets_exist() -> None:
    """Every `make X` of the page is a target."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)\b", README)) - {"it"}
    assert {"demo", "test"} <= named
    assert named <= targets


@pytest.mark.parametrize("program", sorted(programs()), ids=" ".join)
def test_commands_know_their_options(program: tuple[str, ...]) -> None:
    """Every program of the page starts, and has the options it is shown with."""
    done = subprocess.run(
        [sys.executable, *program[1:], "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert [option for option in programs()[program] if option not in done.stdout] == []


def test_example_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The Python example prints a line for each image, also for files that are not there."""
    (example,) = [block for language, block in BLOCKS if language == "python"]
    with FakeServer() as server:
        code = example.replace("localhost:8001", server.url)
        for name in ("upload.png", "sticker.webp"):
            code = code.replace(name, str(tmp_path / name))
        exec(compile(code, "README.md", "exec"), {})  # running README's code is the test
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_tree_exists() -> None:
    """The tree names the folders that are tracked at the top, and no others."""
    (tree,) = [block for language, block in BLOCKS if not language]
    folders = {line.split()[0].split("/")[0] for line in tree.splitlines() if line}
    tracked = subprocess.run(
        ["git", "ls-files"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split("\n")
    assert folders == {path.split("/")[0] for path in tracked if "/" in path and path[0] != "."}


def test_links_lead_somewhere() -> None:
    """Every relative link of the page is a file."""
    links = re.findall(r"\]\(([^)#]+)", README)
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_tables_are_current() -> None:
    """The tables are those of the committed results."""
    done = subprocess.run(
        [sys.executable, "benchmarks/readme_tables.py", "--check"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
