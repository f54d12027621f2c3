"""The fake server's sockets: gRPC from Triton's own service definition, HTTP from the standard library, both on loopback."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from moderation_client._fake_model import POLICY, SPEC, FakeModel, FakeRequest, Step, channel_means
from moderation_client._faults import HTTP_STATUS, Fault
from moderation_client._protocol import InferReply

if TYPE_CHECKING:
    from moderation_client._fake_model import Scores
    from moderation_client.contract import ModelSpec
    from moderation_client.policy import Policy

RUNNING: dict[str, FakeServer] = {}
"""Servers of this process by address, so that a check can find the one behind a client."""


class FakeServer:
    """A server to test against; use it as a context manager.

    `url` is for gRPC, `http_url` for HTTP; both are free loopback ports that stay the same over `stop` and `start`.
    """

    def __init__(
        self,
        *,
        spec: ModelSpec = SPEC,
        policy: Policy | None = POLICY,
        scores: Scores = channel_means,
        max_batch: int = 8,
        token: str | None = None,
        latency_s: float = 0.0,
    ) -> None:
        """`scores` maps pixels uint8 [N, H, W, 3] to float32 [N, num_labels]; `token` makes it ask for a bearer token."""
        self.model = FakeModel(
            spec=spec, policy=policy, scores=scores, max_batch=max_batch, token=token, latency_s=latency_s
        )
        self._grpc_port = self._http_port = 0
        self._grpc: Any = None
        self._http: _HttpServer | None = None

    @property
    def url(self) -> str:
        """Address for gRPC."""
        return f"127.0.0.1:{self._grpc_port}"

    @property
    def http_url(self) -> str:
        """Address for HTTP."""
        return f"http://127.0.0.1:{self._http_port}"

    @property
    def requests(self) -> list[FakeRequest]:
        """Inference requests seen so far."""
        return list(self.model.requests)

    def script(self, *steps: Step) -> None:
        """Answer the next requests like this, one step each; after that as usual."""
        with self.model.lock:
            self.model.steps.extend(steps)

    def always(self, step: Step | None) -> None:
        """Answer every request without a scripted step like this; None for the usual answer."""
        self.model.always = step

    def publish(self, spec: ModelSpec, policy: Policy | None = None) -> None:
        """Put another version live; its spec must say which (`version`)."""
        self.model.publish(spec, policy)

    def start(self) -> None:
        """Listen."""
        self._grpc = _grpc_server(self.model)
        self._grpc_port = self._grpc.add_insecure_port(f"127.0.0.1:{self._grpc_port}")
        self._grpc.start()
        self._http = _HttpServer(("127.0.0.1", self._http_port), _handler(self.model))
        self._http_port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, args=(0.02,), name="fake-http", daemon=True).start()
        RUNNING[self.url] = RUNNING[self.http_url.removeprefix("http://")] = self

    def stop(self) -> None:
        """Drop every connection, as a killed server does; `start` brings it back at the same addresses."""
        if self._http is not None:
            RUNNING.pop(self.url, None)
            RUNNING.pop(self.http_url.removeprefix("http://"), None)
            self._grpc.stop(grace=None).wait(5)
            self._http.shutdown()
            self._http.server_close()
            self._http = None

    def __enter__(self) -> FakeServer:
        """Start listening."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()


def _grpc_server(model: FakeModel) -> Any:
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  only for tests

    import grpc  # noqa: PLC0415  heavy: only for tests
    from tritonclient.grpc import service_pb2_grpc  # noqa: PLC0415  heavy: only for tests

    options = (("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0))
    server = grpc.server(ThreadPoolExecutor(32, thread_name_prefix="fake-grpc"), options=options)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_servicer(model), server)
    return server


def _servicer(model: FakeModel) -> Any:
    import grpc  # noqa: PLC0415  heavy: only for tests
    from google.protobuf import json_format  # noqa: PLC0415  heavy: only for tests
    from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc  # noqa: PLC0415

    def guarded(answer: Callable[[Any, dict[str, str]], Any]) -> Callable[[Any, Any, Any], Any]:
        def handle(_self: Any, request: Any, context: Any) -> Any:
            headers = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
            try:
                return answer(request, headers)
            except Fault as fault:
                return context.abort(grpc.StatusCode[fault.status], fault.message)

        return handle

    def infer(request: Any, headers: dict[str, str]) -> Any:
        seen = FakeRequest(
            model=request.model_name,
            version=request.model_version,
            shape=tuple(request.inputs[0].shape),
            parameters={key: value.int64_param for key, value in request.parameters.items()},
            headers=headers,
        )
        reply = model.infer(seen, request.raw_input_contents[0])
        message = service_pb2.ModelInferResponse(
            model_name=reply.model_name, model_version=reply.model_version
        )
        for name, output in reply.outputs.items():
            message.outputs.add(name=name, datatype=output.datatype, shape=output.shape)
            message.raw_output_contents.append(bytes(output.data))
        return message

    def config(request: Any, headers: dict[str, str]) -> Any:
        model.check_headers(headers)
        model.check_ready(request.name)
        parsed = json_format.ParseDict(model.config(request.name), model_config_pb2.ModelConfig())
        return service_pb2.ModelConfigResponse(config=parsed)

    def ready(_request: Any, _headers: dict[str, str]) -> Any:
        return service_pb2.ModelReadyResponse(ready=model.ready)

    def live(_request: Any, _headers: dict[str, str]) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    methods = {"ModelInfer": infer, "ModelConfig": config, "ModelReady": ready, "ServerLive": live}
    base = service_pb2_grpc.GRPCInferenceServiceServicer
    return type("FakeServicer", (base,), {name: guarded(each) for name, each in methods.items()})()


class _HttpServer(ThreadingHTTPServer):
    """Drops open connections when it stops, as a killed server does."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._open: set[Any] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection."""
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget it."""
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that give up are part of tests."""

    def server_close(self) -> None:
        """Drop everybody."""
        super().server_close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(2)


def _handler(model: FakeModel) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1  # head and body in one segment: no waiting for a delayed acknowledgement

        def log_message(self, *arguments: Any) -> None:
            """Keep tests quiet."""

        def do_GET(self) -> None:
            self._answer(self._get)

        def do_POST(self) -> None:
            self._answer(self._post)

        def _answer(self, act: Callable[[dict[str, str]], tuple[bytes, dict[str, str]]]) -> None:
            codes = {status: code for code, status in reversed(HTTP_STATUS.items())} | {"UNAVAILABLE": 503}
            try:
                body, headers = act({name.lower(): value for name, value in self.headers.items()})
                code = 200
            except Fault as fault:
                body, headers = json.dumps({"error": fault.message}).encode(), {}
                code = codes.get(fault.status, 500)
            self.send_response(code)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def _get(self, headers: dict[str, str]) -> tuple[bytes, dict[str, str]]:
            pieces = self.path.strip("/").split("/")
            if pieces[-1] == "config":
                model.check_headers(headers)
                model.check_ready(pieces[2])
                return json.dumps(model.config(pieces[2])).encode(), {}
            if pieces[1] == "models" and not model.ready:
                raise Fault("INVALID_ARGUMENT", "model is not ready")  # 400, as Triton says it
            return b"", {}

        def _post(self, headers: dict[str, str]) -> tuple[bytes, dict[str, str]]:
            body = self.rfile.read(int(headers.get("content-length", 0)))
            length = int(headers["inference-header-content-length"])
            head = json.loads(body[:length])
            pieces = self.path.strip("/").split("/")
            seen = FakeRequest(
                model=pieces[2],
                version=pieces[4] if pieces[3] == "versions" else "",
                shape=tuple(head["inputs"][0]["shape"]),
                parameters=head.get("parameters", {}),
                headers=headers,
            )
            return _http_reply(model.infer(seen, body[length:]))

    return Handler


def _http_reply(reply: InferReply) -> tuple[bytes, dict[str, str]]:
    outputs = [
        {
            "name": name,
            "datatype": output.datatype,
            "shape": list(output.shape),
            "parameters": {"binary_data_size": len(output.data)},
        }
        for name, output in reply.outputs.items()
    ]
    head = json.dumps(
        {"model_name": reply.model_name, "model_version": reply.model_version, "outputs": outputs}
    ).encode()
    body = head + b"".join(bytes(output.data) for output in reply.outputs.values())
    return body, {
        "Inference-Header-Content-Length": str(len(head)),
        "Content-Type": "application/octet-stream",
    }
