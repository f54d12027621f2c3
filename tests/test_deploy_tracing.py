"""Triton's own OpenTelemetry spans join the client's trace: one trace from the upload to the model, in a collector of this test's."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from moderation_client import ModerationClient
from tests.conftest import StartServer
from tests.serving import coloured, eventually

Span = dict[str, str]


class Collector:
    """Takes OTLP over HTTP, in protobuf or JSON, and keeps the spans."""

    def __init__(self) -> None:
        """Listen on a free port."""
        self.spans: list[Span] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1/traces"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def take(self, body: bytes, *, is_json: bool) -> None:
        """Keep what is needed of each span."""
        if is_json:
            found = json.loads(body)
            spans = [
                span
                for each in found["resourceSpans"]
                for scope in each["scopeSpans"]
                for span in scope["spans"]
            ]
            self.spans += [
                {
                    "name": s["name"],
                    "trace": s["traceId"],
                    "span": s["spanId"],
                    "parent": s.get("parentSpanId", ""),
                }
                for s in spans
            ]
            return
        request = ExportTraceServiceRequest.FromString(body)
        for each in request.resource_spans:
            for scope in each.scope_spans:
                self.spans += [
                    {
                        "name": span.name,
                        "trace": span.trace_id.hex(),
                        "span": span.span_id.hex(),
                        "parent": span.parent_span_id.hex(),
                    }
                    for span in scope.spans
                ]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            """One export."""

            def do_POST(self) -> None:  # the base class calls it so
                """Take the spans."""
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.take(body, is_json="json" in self.headers["Content-Type"])
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        return Handler


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector of this test's own."""
    running = Collector()
    yield running
    running.close()


def test_server_spans_are_children_of_the_clients(
    collector: Collector, start_triton: StartServer, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the flags of docs/monitoring.md Triton exports a span whose parent is the client's request span."""
    server = start_triton(
        repository,
        load_models=("moderation",),
        extra_args=(
            "--trace-config=mode=opentelemetry",
            "--trace-config=level=TIMESTAMPS",
            "--trace-config=rate=1",
            f"--trace-config=opentelemetry,url={collector.url}",
            "--trace-config=opentelemetry,bsp_schedule_delay=200",
        ),
    )
    spans_of_ours = InMemorySpanExporter()
    provider = TracerProvider()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)  # the official way works once a process
    provider.add_span_processor(SimpleSpanProcessor(spans_of_ours))
    uploads: list[str] = []

    def joined() -> list[Span]:
        """Ask once more; in two whole runs the span of a single request never arrived. Server spans of any upload's trace."""
        with trace.get_tracer("upload").start_as_current_span("upload") as upload:
            (verdict,) = client.moderate([coloured((255, 0, 0))[0]])
        assert verdict.error is None
        uploads.append(f"{upload.get_span_context().trace_id:032x}")
        time.sleep(0.5)
        return [
            each for each in collector.spans if each["trace"] in uploads and each["name"] == "InferRequest"
        ]

    with ModerationClient(server.grpc_url, telemetry=True) as client:
        server_span = eventually(joined, what="the server's span in the client's trace")[0]
    provider.shutdown()
    requests = {
        f"{each.context.trace_id:032x}": each
        for each in spans_of_ours.get_finished_spans()
        if each.name == "moderation.request" and each.context is not None
    }
    request = requests[server_span["trace"]]
    assert request.context is not None
    assert server_span["parent"] == f"{request.context.span_id:016x}"
    names = {each["name"] for each in collector.spans if each["trace"] == server_span["trace"]}
    assert {"InferRequest", "moderation", "compute"} <= names
