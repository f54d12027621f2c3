"""The command line: which commands there are, and how a mistake reads on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from export.commands_repository import Configure, Lint, List, Prune, Pull, Push, Recover, Rollback, Verify
from export.commands_source import Import, Publish
from moderation_client import ModerationError
from train.errors import TrainError

COMMANDS: dict[str, Callable[..., Any]] = {
    "publish": Publish,
    "import": Import,
    "list": List,
    "rollback": Rollback,
    "configure": Configure,
    "verify": Verify,
    "prune": Prune,
    "recover": Recover,
    "lint": Lint,
    "push": Push,
    "pull": Pull,
}
DESCRIPTION = (
    "Verified ONNX variants in a Triton model repository. `python -m export RUN` is short for `publish RUN`."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status. A path in the place of a command means `publish`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] not in COMMANDS and not words[0].startswith("-"):
        words.insert(0, "publish")
    try:
        command = tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="python -m export", description=DESCRIPTION, args=words or ["--help"]
        )
        return int(command.run())
    except (ModerationError, TrainError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
