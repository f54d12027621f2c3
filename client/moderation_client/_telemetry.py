"""OpenTelemetry, if asked for and installed: a span a request under the caller's, its W3C context sent along, counts and durations.

Without it the same calls do nothing, and opentelemetry is never imported.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moderation_client._errors import MissingDependencyError, ModerationError

if TYPE_CHECKING:
    from moderation_client.contract import ModelSpec
    from moderation_client.results import Verdict

NAME = "moderation_client"


class Trace:
    """One request that is not traced."""

    headers: Mapping[str, str] = {}

    def end(self, attempts: int, error: ModerationError | None, version: str | None = None) -> None:
        """The request is over."""


class Telemetry:
    """Does nothing."""

    def context(self) -> Any:
        """Trace context of the calling code."""
        return None

    def request(self, context: Any, model: str, batch_size: int) -> Trace:  # noqa: ARG002  the other one needs them
        """Begin a request."""
        return Trace()

    def verdict(self, verdict: Verdict) -> None:
        """Count a verdict."""

    def model(self, spec: ModelSpec) -> None:
        """Take note of a version that answers."""


class OtelTelemetry(Telemetry):
    """Spans and metrics through the application's own OpenTelemetry set-up."""

    def __init__(self) -> None:
        """Find the API. Raises MissingDependencyError with the pip line."""
        try:
            from opentelemetry import context, metrics, propagate, trace  # noqa: PLC0415  an extra
        except ImportError as error:
            raise MissingDependencyError(
                'telemetry=True needs OpenTelemetry: pip install "moderation-client[otel]"'
            ) from error
        self.trace, self.propagate, self._context = trace, propagate, context
        self.tracer = trace.get_tracer(NAME)
        meter = metrics.get_meter(NAME)
        self._verdicts = meter.create_counter(
            "moderation.verdicts", unit="{image}", description="Verdicts by decision and error"
        )
        self.durations = meter.create_histogram(
            "moderation.request.duration", unit="s", description="Inference requests, retries included"
        )

    def context(self) -> Any:
        """Trace context of the calling code."""
        return self._context.get_current()

    def request(self, context: Any, model: str, batch_size: int) -> Trace:
        """Begin a request: a client span under the caller's."""
        return OtelTrace(self, context, model, batch_size)

    def verdict(self, verdict: Verdict) -> None:
        """Count a verdict. Neither ids nor file names are recorded: they can be personal data."""
        error = verdict.error.code if verdict.error else ""
        self._verdicts.add(1, {"moderation.decision": str(verdict.decision), "error.type": error})


class OtelTrace(Trace):
    """One request as a span."""

    def __init__(self, telemetry: OtelTelemetry, context: Any, model: str, batch_size: int) -> None:
        attributes: dict[str, Any] = {"moderation.model": model, "moderation.batch_size": batch_size}
        self._telemetry = telemetry
        self._started = time.monotonic()
        self._model = model
        self._span = telemetry.tracer.start_span(
            "moderation.request", context=context, kind=telemetry.trace.SpanKind.CLIENT, attributes=attributes
        )
        headers: dict[str, str] = {}
        telemetry.propagate.inject(headers, telemetry.trace.set_span_in_context(self._span, context))
        self.headers = headers

    def end(self, attempts: int, error: ModerationError | None, version: str | None = None) -> None:
        """Close the span and record the duration."""
        kind = type(error).__name__ if error is not None else ""
        self._span.set_attribute("moderation.attempts", attempts)
        if version is not None:
            self._span.set_attribute("moderation.model_version", version)
        if error is not None:
            self._span.set_status(self._telemetry.trace.StatusCode.ERROR, kind)
            self._span.set_attribute("error.type", kind)
        self._span.end()
        self._telemetry.durations.record(
            time.monotonic() - self._started, {"moderation.model": self._model, "error.type": kind}
        )
