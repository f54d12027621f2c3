"""What tests of deploy/ share: its files read, a Dockerfile as instructions, arguments of `python -m serve` understood."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
import yaml

from serve.__main__ import Serve

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002, "health": 8003}
"""Where `python -m serve` listens unless it is told otherwise; a test compares them with its own defaults."""


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile: `COPY`, the flags before its words, its words."""

    name: str
    flags: tuple[str, ...]
    words: tuple[str, ...]


def instructions(path: Path) -> list[Instruction]:
    """Read a Dockerfile; lists in JSON become words."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    found = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            name, rest = line.split(maxsplit=1)
            words = json.loads(rest) if rest.startswith("[") else shlex.split(rest)
            flags = tuple(word for word in words if word.startswith("--")) if rest[0] != "[" else ()
            found.append(Instruction(name, flags, tuple(word for word in words if word not in flags)))
    return found


def read_yaml(path: Path) -> Any:
    """One YAML document."""
    return yaml.safe_load(path.read_text())


def serve_options(command: list[str]) -> Serve:
    """Understand a command line with `-m serve` in it as the program does; an unknown flag fails the test."""
    arguments = command[command.index("serve") + 1 :] if "serve" in command else command
    return tyro.cli(Serve, args=arguments)


def image_command() -> list[str]:
    """Entry point of the serving image."""
    (found,) = [list(each.words) for each in instructions(DEPLOY / "Dockerfile") if each.name == "ENTRYPOINT"]
    return found


def seconds(duration: str) -> float:
    """`90s`, `5m`, `1h` or `1d` in seconds."""
    return float(duration[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[duration[-1]]
