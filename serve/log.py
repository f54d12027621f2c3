"""The server's log: read line by line, kept, forwarded, and asked for reasons.

Triton says why a model was refused only here (a configuration that does not parse leaves the model in the index without
state and without reason), so the end of the log is what a start-up error is made of.
"""

from __future__ import annotations

import collections
import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_LINE = re.compile(
    r"^(?P<time>\d{4}-\d\d-\d\dT\S+) (?P<severity>[IWEFV]) (?P<pid>\d+) (?P<source>\S+?)\] (?P<message>.*)$"
)
_SEVERITIES = {"I": "info", "W": "warning", "E": "error", "F": "fatal", "V": "verbose"}
_REFUSALS = (
    re.compile(r"failed to load '(?P<model>[^']+)' version \d+: (?P<reason>.*)$", re.DOTALL),
    re.compile(r"[Pp]oll failed for model directory '(?P<model>[^']+)': (?P<reason>.*)$", re.DOTALL),
    re.compile(r"failed to load model '(?P<model>[^']+)': (?P<reason>.*)$", re.DOTALL),
)
_PARSE_ERROR = re.compile(r"Error parsing text-format inference\.ModelConfig: (?P<reason>.*)$")
_STUB_NOISE = re.compile(r"^(Internal: )?(TritonModelException: )?")
_NOT_ERRORS = ("CudaDriverHelper has not been initialized",)
_SOCKET_IN_USE = re.compile(r"[Ss]ocket '[^']*:(?P<port>\d+)' already in use")
_OF_THE_SERVER = re.compile(r"\.(cc|h):\d+$")
"""What models of the Python backend say comes from a `.py`."""
_NUM_LINES_KEPT = 4000


@dataclass(frozen=True)
class _Listener:
    """Somebody who waits for lines."""

    pattern: re.Pattern[str]
    heard: list[str]
    quietly: bool

    def takes(self, line: str) -> bool:
        """Hear a line; whether nobody else is to."""
        self.heard.extend(self.pattern.findall(line))
        found = _LINE.match(line) if self.quietly else None
        return (
            found is not None
            and found["severity"] == "I"
            and _OF_THE_SERVER.search(found["source"]) is not None
        )


class LogReader:
    """Reads a server's output on a thread until it ends; keeps the last lines and passes each one on."""

    def __init__(
        self, stream: IO[bytes], *, file: Path | None, sinks: Iterable[Callable[[str], None]] = ()
    ) -> None:
        """Start reading. `file` is appended to; each of `sinks` is called with every line."""
        self._lines: collections.deque[str] = collections.deque(maxlen=_NUM_LINES_KEPT)
        self._sinks = tuple(sinks)
        self._listener: _Listener | None = None
        self._file = file.open("a", encoding="utf-8") if file is not None else None
        self._thread = threading.Thread(target=self._read, args=(stream,), name="server-log", daemon=True)
        self._thread.start()

    def lines(self) -> tuple[str, ...]:
        """Return the last lines, oldest first."""
        return tuple(self._lines)

    @contextlib.contextmanager
    def listen(self, pattern: re.Pattern[str], *, quietly: bool) -> Iterator[list[str]]:
        """Collect what a pattern with one group finds; `quietly` keeps the server's own lines of severity info out of the log meanwhile.

        For a server that is made to say more than anybody wants to keep.
        """
        heard: list[str] = []
        self._listener = _Listener(pattern, heard, quietly)
        try:
            yield heard
        finally:
            self._listener = None

    def close(self, *, timeout_s: float = 5.0) -> None:
        """Wait for the end of the output."""
        self._thread.join(timeout_s)
        if self._file is not None:
            self._file.close()

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            for raw in stream:
                line = raw.decode("utf-8", "replace").rstrip("\n")
                listener = self._listener
                if listener is None or not listener.takes(line):
                    self._lines.append(line)
                    self._pass_on(line)

    def _pass_on(self, line: str) -> None:
        """Write and forward a line; a full disk or a closed terminal must not block the server's output."""
        try:
            if self._file is not None and not self._file.closed:
                self._file.write(line + "\n")
                self._file.flush()
            for sink in self._sinks:
                sink(line)
        except OSError as error:
            self._lines.append(f"this line could not be passed on: {error}")


def as_json(line: str) -> str:
    """Turn a line of the server's log into one JSON object: time, severity, source and message where it has them."""
    found = _LINE.match(line)
    if found is None:
        return json.dumps({"severity": "info", "message": line})
    return json.dumps(
        {
            "time": found["time"],
            "severity": _SEVERITIES[found["severity"]],
            "source": found["source"],
            "message": _unquoted(found["message"]),
        }
    )


def load_failures(lines: Iterable[str]) -> dict[str, str]:
    """Model name -> why it was refused, in the server's words; for a file that does not parse also where."""
    reasons: dict[str, str] = {}
    parse_error = ""
    for line in lines:
        parsed = _PARSE_ERROR.search(line)
        if parsed is not None:
            parse_error = parsed["reason"]  # the parser speaks just before the server names the model
        text = _message(line)
        for refusal in _REFUSALS:
            found = refusal.search(text)
            if found is not None:
                reason = _reason(found["reason"])
                reasons.setdefault(found["model"], f"{reason} ({parse_error})" if parse_error else reason)
                parse_error = ""
    return reasons


def sockets_in_use(lines: Iterable[str]) -> list[int]:
    """Ports that the server could not listen on."""
    return [int(found["port"]) for found in map(_SOCKET_IN_USE.search, lines) if found is not None]


def lacks_shared_memory(lines: Iterable[str]) -> bool:
    """Whether the Python backend could not get or grow its shared memory."""
    said = [line.lower() for line in lines]
    return any("shared memory" in line and ("unable" in line or "failed" in line) for line in said)


def errors(lines: Iterable[str]) -> list[str]:
    """Messages of severity error or worse."""
    matches = filter(None, map(_LINE.match, lines))
    said = [_unquoted(found["message"]) for found in matches if found["severity"] in "EF"]
    return [message for message in said if not message.startswith(_NOT_ERRORS)]


def _message(line: str) -> str:
    found = _LINE.match(line)
    return _unquoted(found["message"]) if found is not None else line


def _reason(text: str) -> str:
    """Drop the stub's traceback and the repetitions of a reason that holds for every instance."""
    head = _STUB_NOISE.sub("", text.split("\n\nAt:", maxsplit=1)[0]).strip().rstrip(";")
    return "; ".join(dict.fromkeys(part.strip() for part in head.split(";")))


def _unquoted(message: str) -> str:
    """Triton writes messages as C strings in quotes."""
    if len(message) > 1 and message.startswith('"') and message.endswith('"'):
        try:
            return str(json.loads(message))
        except ValueError:
            return message[1:-1]
    return message.lstrip('"')
