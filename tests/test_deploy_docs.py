"""The pages of docs/ about running it: commands are understood by the programs, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import tyro

from export.command import COMMANDS
from export.pull import Pull
from tests.deployed import ROOT, serve_options

PAGES = [
    ROOT / "docs" / name for name in ("operations.md", "monitoring.md", "kubernetes.md", "torchserve.md")
]


def commands(page: Path) -> list[list[str]]:
    """Every `$ python -m ...` of the page's console blocks, as words."""
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL)
    lines = [line[2:].split(" | ")[0] for block in blocks for line in block.splitlines() if line[:2] == "$ "]
    return [words for line in lines if (words := shlex.split(line, comments=True))[:2] == ["python", "-m"]]


def understood(words: list[str]) -> Any:
    """Parse a command without running it; SystemExit for one that the program refuses."""
    module, arguments = words[2], words[3:]
    if module == "serve":
        return serve_options(arguments)
    if module == "export.pull":
        return tyro.cli(Pull, args=arguments)
    assert module == "export", words
    if arguments[0] not in COMMANDS:
        arguments = ["publish", *arguments]
    return tyro.extras.subcommand_cli_from_dict(COMMANDS, args=arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_are_understood(page: Path) -> None:
    """No command of a page has an option that its program does not know."""
    for words in commands(page):
        assert understood(words) is not None


def test_runbook_has_commands_and_a_wrong_one_is_noticed() -> None:
    """The check finds commands, and refuses a misspelt option."""
    assert len(commands(PAGES[0])) >= 8
    with pytest.raises(SystemExit):
        understood(["python", "-m", "serve", "--replica-count", "2"])


def test_trace_flags_reach_the_server() -> None:
    """The command of the page on monitoring hands tritonserver every flag of tracing."""
    (words,) = [each for each in commands(ROOT / "docs" / "monitoring.md") if each[2] == "serve"]
    given = understood(words).server.extra_args
    assert [flag.partition("=")[0] for flag in given] == ["--trace-config"] * 4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link is a file, and its anchor a heading of that file."""
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
            assert anchor in slugs, target
