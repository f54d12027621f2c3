"""nginx and HAProxy as kept in deploy/proxy: they balance, survive a lost server, and keep hostile requests away from Triton."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import trustme
from tritonclient.grpc import service_pb2

from benchmarks.fault_kinds import FAULTS, started
from benchmarks.fault_load import Load
from benchmarks.fault_replicas import Replica
from moderation_client import ModerationClient
from tests.api_calls import printed, table, write
from tests.proxies import KINDS, Proxy, raw_exchange, running_proxy
from tests.serving import eventually
from tests.small_model import SIZE
from tests.test_faults_replicas import known_images

PATIENCE_S, LITTLE_PATIENCE_S = 10, 3
"""As in the configurations, for honest callers on a busy machine; and less, where a test waits for it."""
DOCUMENT = Path(__file__).parent.parent / "docs" / "threat_model.md"


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ca.pem, and a certificate for localhost with its key."""
    folder = tmp_path_factory.mktemp("tls")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    cert = ca.issue_cert("localhost")
    cert.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    cert.private_key_pem.write_to_path(str(folder / "key.pem"))
    return folder


@pytest.fixture(scope="module")
def pair(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Replica]]:
    """Two supervised servers."""
    folder = tmp_path_factory.mktemp("pair")
    with started([Replica(repository, folder), Replica(repository, folder)]) as found:
        yield found


@pytest.fixture(scope="module", params=KINDS)
def proxy(
    request: pytest.FixtureRequest, pair: list[Replica], tls: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    """Each of the proxies before the two servers."""
    with _before(request.param, pair, tls, tmp_path_factory.mktemp(request.param), PATIENCE_S) as found:
        yield found


@pytest.fixture(scope="module", params=KINDS)
def impatient(
    request: pytest.FixtureRequest, pair: list[Replica], tls: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    """The same with little patience for slow requests."""
    folder = tmp_path_factory.mktemp(request.param)
    with _before(request.param, pair, tls, folder, LITTLE_PATIENCE_S) as found:
        yield found


def _before(
    kind: str, pair: list[Replica], tls: Path, folder: Path, patience_s: int
) -> AbstractContextManager[Proxy]:
    servers = [each.ports for each in pair]
    cert, key = tls / "cert.pem", tls / "key.pem"
    return running_proxy(kind, folder, servers=servers, cert=cert, key=key, patience_s=patience_s)


def _url(proxy: Proxy, kind: str) -> str:
    return (
        f"grpcs://localhost:{proxy.grpc_port}" if kind == "grpc" else f"https://localhost:{proxy.https_port}"
    )


@pytest.mark.parametrize(("name", "kind"), [("kill", "grpc"), ("stub", "http")])
def test_callers_of_a_proxy_see_no_failure(
    proxy: Proxy, pair: list[Replica], tls: Path, name: str, kind: str
) -> None:
    """With one address and two servers behind it, a killed server and a dead model process cost no call."""
    fault, victim = FAULTS[name], pair[0]
    with ModerationClient(_url(proxy, kind), ca_file=str(tls / "ca.pem")) as client:
        eventually(lambda: client.is_ready(timeout_s=1.0), what="the proxy to find its servers")
        with Load(client, known_images(), num_callers=4, rate_per_s=60.0) as load:
            load.wait(num_calls=20)
            fault.begin(victim)
            load.wait(seconds=1.5, num_calls=40)
            fault.end(victim)
            load.wait(num_calls=40)
    assert load.outcomes() == {"ok": load.num_asked}


def _post(path: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", *headers]
    lines += [f"Content-Length: {len(body) if length is None else length}"] if length != -1 else []
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


INFER = "/v2/models/moderation/infer"
CHUNKED = "Transfer-Encoding: chunked"
HOSTILE = {
    "larger than 33 MiB": (_post(INFER, b"", length=40 * 2**20), {"413"}),
    "no JSON": (_post(INFER, b"\x00\xff" * 50), {"400", "500"}),
    "head length beyond the body": (_post(INFER, b"{}", "Inference-Header-Content-Length: 999999"), {"400"}),
    "not HTTP": (b"\x16\x03\x01 hello\r\n\r\n", {"400"}),
    "negative content length": (_post(INFER, b"{}", length=-5), {"400"}),
    "two content lengths": (_post(INFER, b"{}", "Content-Length: 9"), {"400"}),
    "longer than its content length": (_post(INFER, b"{}" * 40, length=2), {"400", "500"}),
    "shorter than its content length": (_post(INFER, b"{}", length=4000), {"408", "closed"}),
    "length and chunks": (_post(INFER, b"0\r\n\r\n", CHUNKED), {"400", "411"}),
    "bad chunk size": (_post(INFER, b"zzzz\r\n", CHUNKED, length=-1), {"400", "411"}),
    "a million chunks of one byte": (
        _post(INFER, b"1\r\nx\r\n" * 10**6, CHUNKED, length=-1),
        {"411", "closed"},
    ),
    "neither length nor chunks": (_post(INFER, b"", length=-1), {"411"}),
    "head that never ends (slow-loris)": (b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nX-", {"408", "closed"}),
    "repository control": (_post("/v2/repository/index", b""), {"403"}),
    "path trick": (_post("/v2/models/moderation/../../repository/index", b""), {"400", "403"}),
    "encoded path trick": (
        _post("/v2/repository/index/..%2f..%2fmodels/moderation/infer", b"{}"),
        {"403"},
    ),
    "two dots for a model": (_post("/v2/models/../infer", b"{}"), {"400", "403"}),
    "two slashes": (_post("/v2//models/moderation/infer", b"{}"), {"403"}),
    "metrics": (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", {"403"}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_request_is_refused(impatient: Proxy, pair: list[Replica], tls: Path, name: str) -> None:
    """Oversize, malformed, endless and lying requests get an error or a closed connection, and the servers live on."""
    data, wanted = HOSTILE[name]
    before = {each.server().pid for each in pair}
    assert raw_exchange(impatient.https_port, data, trusted=tls / "ca.pem") in wanted
    assert {each.server().pid for each in pair} == before


def test_hostile_requests_are_documented() -> None:
    """The table in the documentation has what is sent and answered here."""
    rows: list[tuple[str, ...]] = [
        (name, " or ".join(sorted(wanted))) for name, (_, wanted) in HOSTILE.items()
    ]
    content = table(("request", "answer"), rows)
    if os.environ.get("WRITE_DOCS"):
        write(DOCUMENT, "hostile", content)
    assert printed(DOCUMENT, "hostile") == content, f"WRITE_DOCS=1 python -m pytest {__file__} writes it anew"


def _channel(proxy: Proxy, tls: Path) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials((tls / "ca.pem").read_bytes())
    options = (("grpc.max_send_message_length", -1),)
    return grpc.secure_channel(f"localhost:{proxy.grpc_port}", credentials, options=options)


RPC = "/inference.GRPCInferenceService/ModelInfer"


def test_oversize_grpc_message(impatient: Proxy, pair: list[Replica], tls: Path) -> None:
    """What nginx counts it refuses; HAProxy cannot and says so in its configuration: Triton refuses it then, and lives on."""
    before = {each.server().pid for each in pair}
    message = service_pb2.ModelInferRequest(model_name="moderation", raw_input_contents=[bytes(40 * 2**20)])
    with _channel(impatient, tls) as channel:
        # not as a stream: refused halfway, those hang in gRPC 1.85 now and then, whatever their deadline
        infer: Any = channel.unary_unary(RPC, None, None)
        with pytest.raises(grpc.RpcError) as caught:
            infer(message.SerializeToString(), timeout=60.0)
    error: Any = caught.value
    by_triton = error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert by_triton is (impatient.kind == "haproxy"), error
    assert {each.server().pid for each in pair} == before


def test_grpc_call_without_a_message_is_dropped(impatient: Proxy, tls: Path) -> None:
    """Who opens a call and sends nothing is given up long before the call's own deadline."""
    end = threading.Event()

    def nothing() -> Iterator[bytes]:
        end.wait(50.0)
        yield from ()

    with _channel(impatient, tls) as channel:
        infer: Any = channel.stream_unary(RPC, None, None)
        with pytest.raises(grpc.RpcError) as caught:
            infer(nothing(), timeout=60.0)
    end.set()
    error: Any = caught.value
    assert error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED, error


def test_token_opens_nothing_from_outside(proxy: Proxy, tls: Path) -> None:
    """A caller who knows the admin token still cannot reach what it opens through the proxy."""
    request = _post("/v2/repository/index", b"{}", "moderation-admin: whatever")
    assert raw_exchange(proxy.https_port, request, trusted=tls / "ca.pem") == "403"


def test_many_slow_callers_do_not_keep_others_out(impatient: Proxy, pair: list[Replica], tls: Path) -> None:
    """Forty callers who never finish their requests are dropped; meanwhile everybody else is answered."""
    context = ssl.create_default_context(cafile=str(tls / "ca.pem"))
    slow = []
    try:
        for _ in range(40):
            plain = socket.create_connection(("127.0.0.1", impatient.https_port), timeout=30)
            slow.append(context.wrap_socket(plain, server_hostname="localhost"))
            slow[-1].sendall(f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\n".encode())
        began = time.monotonic()
        with ModerationClient(_url(impatient, "http"), ca_file=str(tls / "ca.pem")) as client:
            (verdict,) = client.moderate([np.zeros((SIZE, SIZE, 3), np.uint8)])
        assert verdict.error is None
        assert all(each.recv(4096)[:12] in (b"HTTP/1.1 408", b"HTTP/1.0 408", b"") for each in slow)
        assert time.monotonic() - began < 30
    finally:
        for each in slow:
            each.close()
