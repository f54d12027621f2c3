"""Who may ask, and whom the client believes: tokens, headers, certificates, over gRPC and HTTPS."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from moderation_client import AuthenticationError, ModerationClient
from moderation_client._fake_server import _handler, _HttpServer, _servicer
from moderation_client.testing import FakeServer
from tests.client_shells import KINDS, AsyncShell, Kind, SyncShell, plain, reds


@dataclass(frozen=True)
class Certificates:
    """Files of one authority: for the server, for a client, and a stranger's authority."""

    authority: str
    stranger: str
    client_cert: str
    client_key: str
    server: trustme.LeafCert
    ca: trustme.CA


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Make them."""
    folder = tmp_path_factory.mktemp("certificates")
    ca, other = trustme.CA(), trustme.CA()
    client = ca.issue_cert("client@example.org")
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    other.cert_pem.write_to_path(str(folder / "other.pem"))
    client.cert_chain_pems[0].write_to_path(str(folder / "client.pem"))
    client.private_key_pem.write_to_path(str(folder / "client.key"))
    return Certificates(
        authority=str(folder / "ca.pem"),
        stranger=str(folder / "other.pem"),
        client_cert=str(folder / "client.pem"),
        client_key=str(folder / "client.key"),
        server=ca.issue_cert("localhost", "127.0.0.1"),
        ca=ca,
    )


def secure_grpc(fake: FakeServer, certificates: Certificates, *, mutual: bool) -> tuple[Any, int]:
    """The fake's service behind TLS."""
    from concurrent.futures import ThreadPoolExecutor

    from tritonclient.grpc import service_pb2_grpc

    server = grpc.server(ThreadPoolExecutor(8))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_servicer(fake.model), server)
    credentials = grpc.ssl_server_credentials(
        [(certificates.server.private_key_pem.bytes(), certificates.server.cert_chain_pems[0].bytes())],
        root_certificates=certificates.ca.cert_pem.bytes() if mutual else None,
        require_client_auth=mutual,
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    return server, port


@pytest.fixture(params=[False, True], ids=["tls", "mtls"])
def secured(
    request: pytest.FixtureRequest, certificates: Certificates
) -> Iterator[tuple[dict[bool, str], bool]]:
    """Addresses (keyed by whether HTTP) of a server behind TLS, and whether it wants a client certificate."""
    import threading

    mutual = bool(request.param)
    fake = FakeServer()
    grpc_server, port = secure_grpc(fake, certificates, mutual=mutual)
    http = _HttpServer(("127.0.0.1", 0), _handler(fake.model))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificates.server.configure_cert(context)
    if mutual:
        context.verify_mode = ssl.CERT_REQUIRED
        certificates.ca.configure_trust(context)
    http.socket = context.wrap_socket(http.socket, server_side=True)
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    yield {False: f"grpcs://localhost:{port}", True: f"https://localhost:{http.server_address[1]}"}, mutual
    grpc_server.stop(None).wait(5)
    http.shutdown()
    http.server_close()


def test_right_certificates_are_accepted_and_wrong_ones_refused(
    kind: Kind, secured: tuple[dict[bool, str], bool], certificates: Certificates
) -> None:
    """The named authority is trusted, another one is not; without the client's own certificate mTLS refuses."""
    urls, mutual = secured
    own = {"cert_file": certificates.client_cert, "key_file": certificates.client_key} if mutual else {}
    shell: SyncShell | AsyncShell
    for authority, options, good in (
        (certificates.authority, own, True),
        (certificates.stranger, own, False),
        (certificates.authority, {}, not mutual),
    ):
        shell = kind.shell(urls[kind.http], ca_file=authority, **options)
        try:
            if good:
                assert reds(shell.moderate(plain(9), timeout_s=10)) == [9]
            else:
                (verdict,) = shell.moderate(plain(9), timeout_s=1, on_error="verdict")
                assert verdict.error is not None
                assert verdict.error.code in ("authentication", "server_unavailable")
        finally:
            shell.close()


def test_stranger_certificate_is_authentication_error(
    secured: tuple[dict[bool, str], bool], certificates: Certificates
) -> None:
    """A server that cannot be trusted is told apart from one that is down, and at once."""
    urls, _ = secured
    for url in urls.values():
        with (
            ModerationClient(url, ca_file=certificates.stranger) as client,
            pytest.raises(AuthenticationError, match=r"(?i)certificate"),
        ):
            client.moderate(plain(), timeout_s=10)


@pytest.mark.parametrize("scheme", ["grpcs", "https"])
@pytest.mark.parametrize("name", ["ca_file", "cert_file"])
def test_unusable_certificate_files_are_named(tmp_path: Path, scheme: str, name: str) -> None:
    """A file that is not there, or no certificate, fails with its path, in either transport."""
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    for path in (str(broken), str(tmp_path / "nothing.pem")):
        with (
            ModerationClient(f"{scheme}://localhost:1", **{name: path}) as client,  # type: ignore[arg-type]
            pytest.raises(AuthenticationError, match=Path(path).name),
        ):
            client.moderate(plain(), timeout_s=5)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_token_function_that_raises_is_an_authentication_error(kind: Kind, server: FakeServer) -> None:
    """Its own exception is the cause, and other images of the call get verdicts as usual."""

    def token() -> str:
        raise KeyError("vault")

    with kind.connect(server, token=token) as client:
        with pytest.raises(AuthenticationError, match=r"token\(\) raised KeyError") as raised:
            client.moderate(plain(), timeout_s=5)
        assert isinstance(raised.value.__cause__, KeyError)
        (verdict,) = client.moderate(plain(), timeout_s=5, on_error="verdict")
    assert verdict.error is not None
    assert verdict.error.code == "authentication"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_tokens_and_headers_reach_the_server(kind: Kind) -> None:
    """A bearer token, one that changes, and any header; a wrong or missing token is AuthenticationError."""
    tokens = iter(["first", "second", *["right"] * 20])
    with FakeServer(token="right") as server:
        with kind.connect(server, token="right", headers={"X-Team": "Safety"}) as client:
            client.moderate(plain())
            assert server.requests[-1].headers["x-team"] == "Safety"
        with kind.connect(server, token=lambda: next(tokens)) as client:
            for _ in range(2):
                with pytest.raises(AuthenticationError):
                    client.spec()
            assert client.spec().labels
        for options in ({}, {"token": "wrong"}):
            with kind.connect(server, **options) as client, pytest.raises(AuthenticationError, match="token"):
                client.moderate(plain(), timeout_s=5)
