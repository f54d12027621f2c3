"""Every call of the server, without a token, with a wrong one and the right one, directly and through the proxies; and certificates.

The outcomes are asserted here and printed in docs/threat_model.md; `WRITE_DOCS=1 python -m pytest tests/test_serve_exposure.py`
writes them there.
"""

from __future__ import annotations

import datetime
import os
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from moderation_client import ModerationClient
from serve.command import TOKEN_HEADER
from serve.server import TritonServer
from tests.api_calls import (
    ABSENT,
    ANSWERED,
    HTTP_CALLS,
    REFUSED,
    call_grpc,
    call_http,
    grpc_calls,
    printed,
    table,
    write,
)
from tests.proxies import KINDS, Proxy, running_proxy
from tests.serving import coloured

DOCUMENT = Path(__file__).parent.parent / "docs" / "threat_model.md"
OPEN_HTTP = {path for _, path in HTTP_CALLS if path.startswith(("/v2/health", "/v2/models/moderation"))} | {
    "/v2"
}
OPEN_HTTP -= {path for path in OPEN_HTTP if path.endswith(("/stats", "/trace/setting"))}
NOT_PROXIED = ("/generate", "/generate_stream", "/versions/1/ready")
OPEN_GRPC = (
    "Server",
    "ModelReady",
    "ModelMetadata",
    "ModelConfig",
    "ModelInfer",
    "ModelStreamInfer",
    "Health/",
)
Outcomes = dict[str, tuple[str, ...]]


def _headers(server: TritonServer) -> tuple[dict[str, str], ...]:
    """No token, a wrong one, the right one; under the names of HTTP and of gRPC."""
    wrong = dict.fromkeys(server.admin_headers, "wrong")
    return {}, wrong, server.admin_headers


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, trustme.CA]:
    """An authority and a folder with its certificate."""
    folder, ca = tmp_path_factory.mktemp("tls"), trustme.CA()
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    return folder, ca


def _certificate(folder: Path, name: str, cert: trustme.LeafCert) -> tuple[Path, Path]:
    files = folder / f"{name}.pem", folder / f"{name}.key"
    cert.cert_chain_pems[0].write_to_path(str(files[0]))
    cert.private_key_pem.write_to_path(str(files[1]))
    return files


def _self_signed(host: str, begin: datetime.datetime, end: datetime.datetime) -> Any:
    """A certificate that its own key has signed, in the form of trustme's."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), begin, end)
    hosts = x509.SubjectAlternativeName([x509.DNSName(host)])
    cert = builder.add_extension(hosts, critical=False).sign(key, hashes.SHA256())
    form = Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    return SimpleNamespace(
        cert_chain_pems=[trustme.Blob(cert.public_bytes(Encoding.PEM))],
        private_key_pem=trustme.Blob(key.private_bytes(*form)),
    )


StartProxy = Callable[..., Proxy]


@pytest.fixture
def start_proxy(triton: TritonServer, tls: tuple[Path, trustme.CA]) -> Iterator[StartProxy]:
    """Run a proxy before the session's server, with any certificate."""
    import contextlib

    ports = {"http": triton.ports.http, "grpc": triton.ports.grpc, "health": triton.ports.http}
    with contextlib.ExitStack() as running:

        def start(kind: str, cert: trustme.LeafCert, name: str, *, callers: Path | None = None) -> Proxy:
            file, key = _certificate(tls[0], f"{kind}-{name}", cert)
            found = running_proxy(
                kind, tls[0], servers=[ports], cert=file, key=key, health="/v2/health/ready", callers=callers
            )
            return running.enter_context(found)

        yield start


def _http_outcomes(http: httpx.Client, server: TritonServer) -> Outcomes:
    return {
        f"{method} {path}": tuple(call_http(http, method, path, headers) for headers in _headers(server))
        for method, path in HTTP_CALLS
    }


def _grpc_outcomes(channel: grpc.Channel, server: TritonServer) -> Outcomes:
    return {
        name: tuple(call_grpc(channel, name, headers) for headers in _headers(server))
        for name in grpc_calls()
    }


def _direct(server: TritonServer) -> Outcomes:
    with (
        httpx.Client(base_url=f"http://{server.http_url}", trust_env=False) as http,
        grpc.insecure_channel(server.grpc_url) as channel,
    ):
        return {**_http_outcomes(http, server), **_grpc_outcomes(channel, server)}


def _proxied(server: TritonServer, proxy: Proxy, ca_file: Path) -> Outcomes:
    context = ssl.create_default_context(cafile=str(ca_file))
    credentials = grpc.ssl_channel_credentials(ca_file.read_bytes())
    with (
        httpx.Client(
            base_url=f"https://localhost:{proxy.https_port}", verify=context, trust_env=False, timeout=20.0
        ) as http,
        grpc.secure_channel(f"localhost:{proxy.grpc_port}", credentials) as channel,
    ):
        return {**_http_outcomes(http, server), **_grpc_outcomes(channel, server)}


def test_every_call_is_open_or_behind_the_token(triton: TritonServer) -> None:
    """Inference, health, metadata and the read-only configuration are open; everything else needs the right token."""
    for call, outcomes in _direct(triton).items():
        path = call.rpartition(" ")[2]
        is_open = path in OPEN_HTTP or any(name in path for name in OPEN_GRPC)
        wanted = (ANSWERED,) * 3 if is_open else (REFUSED, REFUSED, ANSWERED)
        assert outcomes == ((ABSENT,) * 3 if path == "/metrics" else wanted), call


def test_nothing_but_open_calls_passes_a_proxy(
    triton: TritonServer, start_proxy: StartProxy, tls: tuple[Path, trustme.CA]
) -> None:
    """Through nginx and HAProxy even the right token opens nothing. What is printed in the documentation is what happens."""
    direct = _direct(triton)
    seen = []
    for kind in KINDS:
        proxy = start_proxy(kind, tls[1].issue_cert("localhost"), "good")
        seen.append(_proxied(triton, proxy, tls[0] / "ca.pem"))
    assert seen[0] == seen[1]
    for call, outcomes in seen[0].items():
        path = call.rpartition(" ")[2]
        hidden = direct[call][0] != ANSWERED  # what is guarded, and what is not there
        hidden |= path.endswith(NOT_PROXIED[:2]) or "Health/" in path
        assert outcomes == ((REFUSED if hidden else ANSWERED),) * 3, call
    header = ("call", "no token", "wrong token", "right token", "through a proxy, any token")
    rows = [(f"`{call}`", *outcomes, seen[0][call][2]) for call, outcomes in direct.items()]
    _check_document("calls", table(header, rows))


def test_certificates_that_are_not_right_are_refused(
    start_proxy: StartProxy, tls: tuple[Path, trustme.CA]
) -> None:
    """A server that shows an expired, another host's, a stranger's or a self-signed certificate is not believed, over gRPC and HTTPS."""
    folder, ca = tls
    now, day = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(1)
    certificates = {
        "valid": ca.issue_cert("localhost"),
        "expired": ca.issue_cert("localhost", not_before=now - 9 * day, not_after=now - day),
        "of another host": ca.issue_cert("moderation.example"),
        "of an unknown authority": trustme.CA().issue_cert("localhost"),
        "self-signed": _self_signed("localhost", now - day, now + day),
    }
    rows = []
    for name, cert in certificates.items():
        proxy = start_proxy("nginx", cert, name.replace(" ", "-"))
        outcomes = []
        for url in (f"grpcs://localhost:{proxy.grpc_port}", f"https://localhost:{proxy.https_port}"):
            with ModerationClient(url, ca_file=str(folder / "ca.pem"), timeout_s=20.0) as client:
                (verdict,) = client.moderate([coloured((255, 0, 0))[0]], on_error="verdict")
            outcomes.append(ANSWERED if verdict.error is None else verdict.error.kind)
        rows.append((name, *outcomes))
        wanted = ANSWERED if name == "valid" else "AuthenticationError"
        assert outcomes == [wanted, wanted], name
    _check_document("certificates", table(("the server's certificate", "gRPC", "HTTPS"), rows))


@pytest.mark.parametrize("kind", KINDS)
def test_mutual_tls_at_a_proxy(start_proxy: StartProxy, tls: tuple[Path, trustme.CA], kind: str) -> None:
    """As the configurations explain it: callers with a certificate of the authority are answered, others are not."""
    folder, ca = tls
    file, key = _certificate(folder, "caller", ca.issue_cert("caller"))
    stranger = _certificate(folder, "stranger", trustme.CA().issue_cert("caller"))
    proxy = start_proxy(kind, ca.issue_cert("localhost"), "mutual", callers=folder / "ca.pem")
    for url in (f"grpcs://localhost:{proxy.grpc_port}", f"https://localhost:{proxy.https_port}"):
        for pair, wanted in (((file, key), True), ((None, None), False), (stranger, False)):
            names = [None if each is None else str(each) for each in pair]
            with ModerationClient(
                url, ca_file=str(folder / "ca.pem"), cert_file=names[0], key_file=names[1], timeout_s=3.0
            ) as client:
                (verdict,) = client.moderate([coloured((255, 0, 0))[0]], on_error="verdict")
            assert (verdict.error is None) is wanted, (url, verdict.error)


def _check_document(name: str, content: str) -> None:
    """The documentation shows these outcomes."""
    if os.environ.get("WRITE_DOCS"):
        write(DOCUMENT, name, content)
    assert printed(DOCUMENT, name) == content, f"WRITE_DOCS=1 python -m pytest {__file__} writes it anew"


def test_token_header_is_the_one_that_the_proxies_remove() -> None:
    """The configurations of the proxies name the header that opens the guarded calls."""
    for name in ("nginx.conf", "haproxy.cfg"):
        text = (DOCUMENT.parent.parent / "deploy" / "proxy" / name).read_text()
        assert f"{TOKEN_HEADER}" in text
        assert f"triton-grpc-protocol-{TOKEN_HEADER}" in text
