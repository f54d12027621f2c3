"""A process of its own for whatever must not share an interpreter with what is measured: load generators, in-process references.

`Worker.call(function, ...)` runs an importable function over there and brings its result back. Ctrl-C does not reach it: the
parent sets the function's stop event instead, so that what was measured so far still comes back.
"""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import IO, Any, Concatenate, ParamSpec, TypeVar, cast

from benchmarks.environment import ROOT

P = ParamSpec("P")
T = TypeVar("T")
STOP = "stop"
EXIT_TIMEOUT_S = 10.0


class WorkerError(Exception):
    """The function over there failed; the message is its own, `trace` where it happened."""

    def __init__(self, message: str, trace: str = "") -> None:
        """Keep the other process' traceback as text."""
        super().__init__(message)
        self.trace = trace


class Interrupted(Exception):  # noqa: N818  not an error: it carries what was measured before Ctrl-C
    """Ctrl-C came while the worker was measuring; `partial` is what it had."""

    def __init__(self, partial: Any) -> None:
        """Keep the part that was measured."""
        super().__init__("interrupted")
        self.partial = partial


class Worker:
    """One process; `with Worker() as worker: worker.call(function, ...)`."""

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        """Start it. `env` is added to the environment: thread counts must be set before libraries load."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Process id, for reading its CPU time and memory."""
        return self._process.pid

    def call(
        self, function: Callable[Concatenate[threading.Event, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run `function(stop, *args, **kwargs)` there and wait for its result.

        Raises WorkerError when it failed, Interrupted when Ctrl-C came (the function was told to stop).
        """
        if function.__module__ == "__main__":
            raise WorkerError(
                f"{function.__name__} is of the program itself: over there nobody can import it"
            )
        self._send((function, args, kwargs))
        try:
            return cast("T", self._receive())
        except KeyboardInterrupt:
            self._send(STOP)
            raise Interrupted(self._receive()) from None

    def _send(self, message: object) -> None:
        assert self._process.stdin is not None
        try:
            pickle.dump(message, self._process.stdin)
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise WorkerError(f"the process ended with exit status {self._process.wait()}") from error

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        try:
            succeeded, answer = pickle.load(self._process.stdout)  # noqa: S301  our own process' words
        except EOFError as error:
            raise WorkerError(f"the process ended with exit status {self._process.wait()}") from error
        if not succeeded:
            raise WorkerError(*answer)
        return answer

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Worker:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process, whatever happened."""
        self.close()


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Run what is asked, one after another, until the parent closes its end."""
    jobs: queue.Queue[Any] = queue.Queue()
    stop = threading.Event()
    threading.Thread(target=_read, args=(requests, jobs, stop), daemon=True).start()
    while (job := jobs.get()) is not None:
        function, args, kwargs = job
        stop.clear()
        try:
            answer: tuple[bool, Any] = (True, function(stop, *args, **kwargs))
        except Exception as error:  # noqa: BLE001  it is the parent's to handle
            answer = (False, (f"{type(error).__name__}: {error}", traceback.format_exc()))
        try:
            pickle.dump(answer, answers)
            answers.flush()
        except BrokenPipeError:
            os._exit(1)  # the parent is gone: nobody wants the answer, and closing the pipe would fail again


def _read(requests: IO[bytes], jobs: queue.Queue[Any], stop: threading.Event) -> None:
    while True:
        try:
            message = pickle.load(requests)  # noqa: S301  our own process' words
        except EOFError:
            stop.set()
            jobs.put(None)
            return
        except Exception:  # noqa: BLE001  whatever it is, the parent must not wait for an answer
            traceback.print_exc()
            os._exit(1)
        if message == STOP:
            stop.set()
        else:
            jobs.put(message)


def main() -> None:
    """Serve the parent over a private copy of stdout, so that a library that prints cannot break the protocol."""
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        _serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
