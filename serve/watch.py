"""Watches a running server as it cannot watch itself: dead model processes, silent models, wrong answers; and repairs them.

Triton goes on saying "ready" when the process behind a Python model has died, and never starts it again. Here such a process
is seen within `interval_s`, its model is reported unready and loaded again. A model that fails the golden question twice in a
row (once, when the server itself says that the process is not healthy), or gives no answer three times while it answers nobody
else either, is loaded again too; one that somebody unloaded is reported and left alone. "Full" is no answer: the queue of a model that
hangs is full as well. A server that was stopped itself is reported within two seconds, and ended when nobody continues it.
"""

from __future__ import annotations

import logging
import time
from collections import Counter

import psutil

from serve.admin import Admin
from serve.config import WatchConfig
from serve.errors import AdminError, AdminSilentError, RepositoryError, ServerDiedError
from serve.probe import Answer, Finding, Prober
from serve.repository import check_code
from serve.server import TritonServer

logger = logging.getLogger("serve")

_STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
_PATIENCE = {Answer.FAILED: 2, Answer.WRONG: 2, Answer.SILENT: 3}
"""So many in a row, and the model is loaded again."""
_CERTAIN = "is not healthy"
"""What Triton says of a model process that hangs: no second question is needed."""
_AGAIN_S = 0.5
"""A model that did not answer well is asked again so soon, until it is repaired or given up."""
_MIN_RELOAD_S, _RELOAD_FACTOR = 10.0, 4.0
"""A model that is not loaded again within this time, or this many times as long as the server took to start, hangs."""
_COLLECTED_AFTER_S = 0.05
_STILL_S = 0.2
"""A process that was found stopped and has not run for so long was stopped for good: samplers and `cpulimit` let it run in between."""
_STOPPED_S = 1.0
"""The server itself is reported after so long; it is not replaced so soon."""
_HELD_S = 15.0
"""A server that was stopped and that nobody continues for so long is ended and started again."""
_HELD = "the server was stopped"
_LINGER_S = 3.0
"""Processes of an instance that was replaced may take so long to end."""


class Watch:
    """The watch over one started server; call `check` every `interval_s`."""

    def __init__(self, server: TritonServer, config: WatchConfig) -> None:
        """Begin: models count as unready until they have answered."""
        self._server = server
        self._config = config
        self._prober = Prober(server.http_url, server.repository, timeout_s=config.probe_timeout_s)
        self._processes: dict[int, str] = {}
        self._abandoned: dict[int, float] = {}
        self._stopped_since: float | None = None
        self._strikes: Counter[str] = Counter()
        self._answered: dict[str, int] = {}
        self._heard_at: dict[str, float] = {}
        self._probed_at = float("-inf")
        self.problems: dict[str, str] = dict.fromkeys(server.models, "not asked yet")

    @property
    def ready(self) -> bool:
        """Whether every model answered its golden question when it was asked last, and no process has died since."""
        return not self.problems

    def check(self) -> None:
        """Look once, and repair what is broken. Raises ServerDiedError when the server itself has ended, or hung and was ended."""
        code = self._server.process.poll()
        if code is not None:
            self.problems = dict.fromkeys(self._server.models, "the server ended")
            raise ServerDiedError(
                f"tritonserver (process {self._server.pid}) ended with exit code {code}", exit_code=code
            )
        if self._is_held():
            return
        for model in sorted(self._dead_models()):
            self._repair(model, "its process died or was stopped")
        if time.monotonic() - self._probed_at >= self._pause_s():
            self._probed_at = time.monotonic()
            for model in self._server.models:
                self._probe(model)
                if self._is_held():
                    return  # every further question would be waited for in vain

    def _is_held(self) -> bool:
        """Whether the server itself was stopped. Raises ServerDiedError when that lasted too long, and it was ended."""
        pid, now = self._server.pid, time.monotonic()
        if psutil.Process(pid).status() not in _STOPPED:
            self._stopped_since = None
            return False
        if self._stopped_since is None:
            self._stopped_since = now
        if now - self._stopped_since > _STOPPED_S:
            if set(self.problems.values()) != {_HELD}:
                logger.error("tritonserver (process %d) was stopped", pid)
            self.problems = dict.fromkeys(self._server.models, _HELD)
            self._probed_at = float("-inf")  # asked at once when it is continued
        if now - self._stopped_since > _HELD_S:
            self._end()
            raise ServerDiedError(f"tritonserver was stopped for {_HELD_S:g} s", exit_code=None)
        return True

    def _end(self) -> None:
        self._server.process.kill()
        self._server.process.wait()

    def _pause_s(self) -> float:
        """Time between two rounds of questions: short while a model is in doubt."""
        doubtful = any(0 < strikes <= max(_PATIENCE.values()) for strikes in self._strikes.values())
        return min(_AGAIN_S, self._config.probe_interval_s) if doubtful else self._config.probe_interval_s

    def _dead_models(self) -> set[str]:
        """Models with a process that was stopped, or has ended without the server's notice: it would have collected it."""
        found = self._suspects()
        if found:
            # the first look can fall between a regular end and its collection, or into a sampler's short stop
            time.sleep(_STILL_S if any(found.values()) else _COLLECTED_AFTER_S)
            found = {pid: num for pid, num in self._suspects().items() if pid in found and found[pid] == num}
        return {self._processes.get(pid, "") for pid in found} & set(self._server.models)

    def _suspects(self) -> dict[int, int | None]:
        """Processes that have ended (None) or are stopped (how often they were switched), but for those of replaced instances."""
        found: dict[int, int | None] = {}
        for process in psutil.Process(self._server.pid).children():
            try:
                status = process.status()
                if status == psutil.STATUS_ZOMBIE:
                    found[process.pid] = None
                    continue
                if status in _STOPPED:
                    switches = process.num_ctx_switches()
                    found[process.pid] = switches.voluntary + switches.involuntary
                self._processes.setdefault(process.pid, _model_of(process, self._server))
                self._end_if_abandoned(process)
            except psutil.NoSuchProcess:
                continue
        return {pid: num for pid, num in found.items() if pid not in self._abandoned}

    def _end_if_abandoned(self, process: psutil.Process) -> None:
        """End a process of a replaced instance that its server never will."""
        since = self._abandoned.get(process.pid)
        if since is not None and time.monotonic() - since > _LINGER_S:
            process.kill()

    def _repair(self, model: str, why: str) -> None:
        """Load a model again."""
        began = time.monotonic()
        self.problems[model] = why
        logger.error("model %s is not ready: %s; loading it again", model, why)
        self._abandoned |= {pid: began for pid, owner in self._processes.items() if owner == model}
        try:
            check_code(self._server.repository / model)
            patience_s = max(_MIN_RELOAD_S, _RELOAD_FACTOR * self._server.startup_s)
            self._admin(patience_s).reload(model)
        except AdminSilentError as error:
            # Seen on Triton 24.10: replacing an instance that died with a request can hang and then crash the server.
            self.problems = dict.fromkeys(self._server.models, f"{why}, and the server hangs")
            self._end()
            raise ServerDiedError(
                f"tritonserver hung while it loaded {model}: {error}", exit_code=None
            ) from error
        except (AdminError, RepositoryError) as error:
            logger.error("model %s was not loaded: %s", model, error)
            self.problems[model] = f"{why}, and loading it again failed: {error}"
            return
        self._strikes[model] = 0
        self._heard_at[model] = time.monotonic()
        self._probe(model)
        if model not in self.problems:
            logger.info("model %s is ready again after %.2f s", model, time.monotonic() - began)

    def _probe(self, model: str) -> None:
        """Ask a model, and load it again when it has failed too often."""
        finding = self._judged(model, self._prober.ask(model))
        if finding.answer in {Answer.CORRECT, Answer.BUSY}:
            if self.problems.pop(model, None) is not None:
                logger.info("model %s is ready", model)
            self._strikes[model] = 0
            return
        if finding.answer is Answer.SILENT and self._quiet_s(model) < self._config.probe_timeout_s:
            return  # it refused at once, and answered a moment ago: neither well nor ill
        self._strikes[model] += 1
        why = f"{finding.answer.value}: {finding.detail}"
        logger.warning("model %s: golden question %s", model, why)
        if finding.answer is not Answer.SILENT or self._strikes[model] > 1:
            self.problems[model] = why
        patience = 1 if _CERTAIN in finding.detail else _PATIENCE[finding.answer]
        if finding.answer is Answer.SILENT and self._quiet_s(model) < patience * self._config.probe_timeout_s:
            return  # "full" comes at once: three times of it are no long silence
        if self._strikes[model] >= patience and self._is_wanted(model):
            self._strikes[model] = 0
            self._repair(model, why)

    def _judged(self, model: str, finding: Finding) -> Finding:
        """Tell a model that is busy with others from one that hangs behind a full queue."""
        if finding.answer is Answer.CORRECT:
            self._heard_at[model] = time.monotonic()
            self._answered.pop(model, None)  # as old as the last silence
        if finding.answer not in {Answer.SILENT, Answer.BUSY}:
            return finding
        answer = Answer.BUSY if self._answers_others(model) else Answer.SILENT
        return Finding(answer, finding.detail)

    def _quiet_s(self, model: str) -> float:
        """Time since it is known to have answered anybody."""
        return time.monotonic() - self._heard_at.get(model, float("-inf"))

    def _answers_others(self, model: str) -> bool:
        """Whether it answered anybody since it was last asked this: a long queue is no reason to load a model again."""
        try:
            now = self._admin(1.0).num_answered(model)
        except AdminError:
            return False
        before, self._answered[model] = self._answered.get(model, now), now
        if now > before:
            self._heard_at[model] = time.monotonic()
        return now > before

    def _is_wanted(self, model: str) -> bool:
        """False when somebody unloaded it on purpose."""
        try:
            return "READY" in self._admin(5.0).states(model).values()
        except AdminError:
            return True

    def _admin(self, timeout_s: float) -> Admin:
        return Admin(self._server.http_url, self._server.admin_headers, timeout_s=timeout_s)


def _model_of(process: psutil.Process, server: TritonServer) -> str:
    """Model whose instance a stub process is: its first argument is a path inside the model's folder."""
    arguments = process.cmdline()
    for model in server.models:
        if len(arguments) > 1 and f"{server.repository.resolve() / model}/" in arguments[1]:
            return model
    return ""
