"""OpenTelemetry: a span a request under the caller's, W3C context on the wire, counts; without it nothing is loaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from moderation_client import MissingDependencyError, ModerationClient
from moderation_client.testing import Fail, FakeServer
from tests.client_shells import Kind, plain


@pytest.fixture(scope="module")
def collected() -> Iterator[tuple[InMemorySpanExporter, InMemoryMetricReader]]:
    """An application's own OpenTelemetry set-up (it can be set once a process)."""
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracing = TracerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(tracing)
    metrics.set_meter_provider(MeterProvider([reader]))
    yield spans, reader
    tracing.shutdown()


def test_requests_are_spans_of_the_callers_trace(
    kind: Kind, server: FakeServer, collected: tuple[InMemorySpanExporter, InMemoryMetricReader]
) -> None:
    """The span has the caller's as its parent, says what happened, and its context reaches the server."""
    spans, reader = collected
    spans.clear()
    with kind.connect(server, telemetry=True) as client:
        with trace.get_tracer("app").start_as_current_span("upload") as parent:
            client.moderate([plain(255)])
        server.always(Fail("INVALID_ARGUMENT"))
        client.moderate(plain(), on_error="verdict")
    good, bad = [span for span in spans.get_finished_spans() if span.name == "moderation.request"]
    assert good.parent is not None
    assert good.parent.span_id == parent.get_span_context().span_id
    assert good.attributes is not None
    assert good.attributes["moderation.model_version"] == "1"
    assert f"{good.context.trace_id:032x}" in server.requests[0].headers["traceparent"]
    assert bad.status.status_code is trace.StatusCode.ERROR
    data = reader.get_metrics_data()
    assert data is not None
    names = {each.name for scope in data.resource_metrics[0].scope_metrics for each in scope.metrics}
    assert {"moderation.verdicts", "moderation.request.duration"} <= names


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an extra the error has the pip line."""
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(MissingDependencyError, match=r"moderation-client\[otel\]"):
        ModerationClient("localhost:1", telemetry=True)
    monkeypatch.setitem(sys.modules, "httpx", None)
    with (
        ModerationClient("http://localhost:1") as client,
        pytest.raises(MissingDependencyError, match=r"moderation-client\[http\]"),
    ):
        client.moderate(plain())
