"""The command line: which files, how to print, which exit code. Results go to stdout, everything else to stderr.

Exit code 0: nothing flagged. 1: something flagged (`--fail-on block`: something blocked). 2: an image or the service failed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from moderation_client._client import ModerationClient
from moderation_client._errors import ModerationError
from moderation_client.policy import Decision
from moderation_client.results import Verdict

SUFFIXES = frozenset(
    f".{ending}"
    for ending in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff"),
        *("avif", "avifs", "heic", "heif", "hif"),
    )
)
"""Files that a folder is searched for; a file that is named itself is always tried."""


def parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog="python -m moderation_client",
        description="Ask a moderation service whether to allow, review or block images.",
        epilog="Exit code: 0 nothing flagged, 1 something flagged, 2 an image could not be judged or the service failed. "
        "A bearer token is read from the environment variable MODERATION_TOKEN.",
    )
    add = parser.add_argument
    add(
        "files",
        nargs="+",
        metavar="FILE",
        help="images, folders (searched recursively), or - for a list on stdin",
    )
    add(
        "--server",
        action="append",
        metavar="URL",
        help="host:port, grpcs://, http://, https://; may be repeated (default: $MODERATION_SERVER or localhost:8001)",
    )
    add("--policy", metavar="FILE", help="policy file (default: the server's)")
    add("--model-version", metavar="N", help="pin a model version (default: the server's newest)")
    add("--timeout-s", type=float, default=30.0, metavar="S", help="deadline of each image (default: 30)")
    add("--json", action="store_true", help="print one JSON object a line: the whole verdict")
    add(
        "--fail-on",
        choices=("review", "block"),
        default="review",
        help="lowest decision that makes the exit code 1 (default: review)",
    )
    add("--ca-file", metavar="PEM", help="certificate authority for grpcs:// and https://")
    add("--cert-file", metavar="PEM", help="client certificate")
    add("--key-file", metavar="PEM", help="key of the client certificate")
    return parser


def find_files(names: Iterable[str], stdin: TextIO, skipped: list[str]) -> Iterator[str]:
    """Paths that the arguments mean: folders searched in order of name, `-` replaced by the lines of stdin.

    Files of a folder that are not named like a picture go to `skipped`.
    """
    for name in names:
        if name == "-":
            yield from find_files((line.rstrip("\n") for line in stdin if line.strip()), stdin, skipped)
        elif Path(name).is_dir():
            for path in sorted(Path(name).rglob("*")):
                if not path.is_file():
                    continue
                if path.suffix.lower() in SUFFIXES:
                    yield str(path)
                else:
                    skipped.append(str(path))
        else:
            yield name


def row(verdict: Verdict) -> str:
    """One line of the table."""
    if verdict.error is not None:
        return f"{verdict.decision!s:<7} {'-':>6}  {verdict.error.code:<18}  {verdict.id}  ({verdict.error.message})"
    score = f"{verdict.score:.4f}" if verdict.score is not None else "-"
    reason = f"  ({verdict.reason})" if verdict.reason else ""
    return f"{verdict.decision!s:<7} {score:>6}  {verdict.label or '-':<18}  {verdict.id}{reason}"


def exit_code(verdicts: Sequence[tuple[Decision, bool]], fail_on: Decision) -> int:
    """Code for (decision, could not be judged) of every image."""
    if any(failed for _, failed in verdicts):
        return 2
    return int(any(decision >= fail_on for decision, _ in verdicts))


class Progress:
    """A counter on stderr that is only there when a person looks at it."""

    def __init__(self, stream: TextIO, *, shown: bool) -> None:
        self._stream, self._shown, self._done = stream, shown and stream.isatty(), 0

    def step(self, total: int) -> None:
        """One more image is done."""
        self._done += 1
        if self._shown:
            width = 30
            filled = width * self._done // max(total, 1)
            self._stream.write(f"\r[{'#' * filled}{'.' * (width - filled)}] {self._done}/{total}")
            self._stream.flush()

    def clear(self) -> None:
        """Make room for a line of output, or for the end."""
        if self._shown and self._done:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def run(options: argparse.Namespace, stdin: TextIO, stdout: TextIO, stderr: TextIO) -> int:
    """Judge and print. Raises ModerationError or ValueError."""
    skipped: list[str] = []
    files = list(find_files(options.files, stdin, skipped))
    if skipped:
        print(
            f"skipped in folders: {len(skipped)} not named like a picture (name a file itself to have it judged)",
            file=stderr,
        )
    servers = options.server or os.environ.get("MODERATION_SERVER", "localhost:8001").split(",")
    seen: list[tuple[Decision, bool]] = []
    progress = Progress(stderr, shown=not stdout.isatty())
    with ModerationClient(
        servers,
        policy=options.policy,
        timeout_s=options.timeout_s,
        token=os.environ.get("MODERATION_TOKEN"),
        ca_file=options.ca_file,
        cert_file=options.cert_file,
        key_file=options.key_file,
    ) as client:
        for verdict in client.moderate_stream(files, ids=files, model_version=options.model_version):
            print(json.dumps(verdict.to_dict()) if options.json else row(verdict), file=stdout, flush=True)
            seen.append((verdict.decision, verdict.error is not None))
            progress.step(len(files))
    progress.clear()
    return exit_code(seen, Decision.parse(options.fail_on))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    options = parser().parse_args(arguments)
    try:
        return run(options, sys.stdin, sys.stdout, sys.stderr)
    except (ModerationError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
