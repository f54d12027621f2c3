"""Who may call what: inference is open, control needs the token, gRPC speaks TLS when told to, and bad certificates are refused."""

from __future__ import annotations

import datetime
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import psutil
import pytest
import trustme
from tritonclient import grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from serve.command import TOKEN_HEADER
from serve.errors import CertificateError, RepositoryError, UnsupportedPlatformError
from serve.preflight import check_certificates
from serve.server import TritonServer
from tests.conftest import StartServer
from tests.serving import coloured
from tests.small_model import SIZE

OPEN_GET = (
    "/v2/health/live",
    "/v2/health/ready",
    "/v2",
    "/v2/models/moderation",
    "/v2/models/moderation/ready",
    "/v2/models/moderation/config",
)
GUARDED = (
    ("GET", "/v2/models/moderation/stats"),
    ("POST", "/v2/repository/index"),
    ("POST", "/v2/repository/models/nothing/load"),
    ("POST", "/v2/repository/models/nothing/unload"),
    ("GET", "/v2/trace/setting"),
    ("POST", "/v2/trace/setting"),
    ("GET", "/v2/logging"),
    ("POST", "/v2/logging"),
    ("GET", "/v2/systemsharedmemory/status"),
    ("POST", "/v2/systemsharedmemory/region/x/register"),
    ("POST", "/v2/systemsharedmemory/unregister"),
    ("GET", "/v2/cudasharedmemory/status"),
)
REFUSED = "is restricted, expecting header"


def test_open_http_calls(triton: TritonServer) -> None:
    """Health, metadata and the read-only configuration are open to everybody."""
    with httpx.Client(base_url=f"http://{triton.http_url}", trust_env=False) as http:
        assert {path: http.get(path).status_code for path in OPEN_GET} == dict.fromkeys(OPEN_GET, 200)


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_guarded_http_calls(triton: TritonServer, method: str, path: str) -> None:
    """Control, statistics, trace, log and shared memory answer neither without a token nor to a wrong one."""
    with httpx.Client(base_url=f"http://{triton.http_url}", trust_env=False) as http:
        for headers in ({}, {TOKEN_HEADER: "wrong"}, {TOKEN_HEADER: triton.token[:-1]}):
            answer = http.request(method, path, headers=headers, content=b"{}" if method == "POST" else None)
            assert (answer.status_code, REFUSED in answer.text) == (403, True), answer.text
        answer = http.request(
            method, path, headers=triton.admin_headers, content=b"{}" if method == "POST" else None
        )
        assert REFUSED not in answer.text


GUARDED_GRPC: tuple[tuple[str, Callable[[Any, dict[str, str]], Any]], ...] = (
    ("statistics", lambda client, headers: client.get_inference_statistics(headers=headers)),
    ("repository index", lambda client, headers: client.get_model_repository_index(headers=headers)),
    ("trace", lambda client, headers: client.get_trace_settings(headers=headers)),
    ("log", lambda client, headers: client.get_log_settings(headers=headers)),
    ("shared memory", lambda client, headers: client.get_system_shared_memory_status(headers=headers)),
    ("cuda shared memory", lambda client, headers: client.get_cuda_shared_memory_status(headers=headers)),
)


@pytest.mark.parametrize("call", [call for _, call in GUARDED_GRPC], ids=[name for name, _ in GUARDED_GRPC])
def test_guarded_grpc_calls(triton: TritonServer, call: Callable[[Any, dict[str, str]], Any]) -> None:
    """The same over gRPC."""
    with triton_grpc.InferenceServerClient(triton.grpc_url) as client:
        for token in ("", "wrong"):
            with pytest.raises(InferenceServerException, match=REFUSED):
                call(client, {f"triton-grpc-protocol-{TOKEN_HEADER}": token} if token else {})
        said = ""
        try:
            call(client, triton.admin_headers)
        except InferenceServerException as error:  # there is no CUDA here
            said = str(error)
        assert REFUSED not in said


def test_load_and_unload_need_the_token_over_grpc(triton: TritonServer) -> None:
    """A caller without the token can neither unload a model nor load one."""
    with triton_grpc.InferenceServerClient(triton.grpc_url) as client:
        for call in (client.unload_model, client.load_model):
            with pytest.raises(InferenceServerException, match=REFUSED):
                call("moderation")
        assert client.is_model_ready("moderation")


def test_metrics_are_on_their_own_address_only(triton: TritonServer) -> None:
    """The callers' port does not give metrics."""
    assert httpx.get(f"http://{triton.http_url}/metrics", trust_env=False).status_code in {400, 404}
    assert "nv_inference_count" in httpx.get(f"http://{triton.metrics_url}/metrics", trust_env=False).text


def test_token_file_is_the_owners(triton: TritonServer) -> None:
    """The token lies in a file that only its owner can read, in a folder that only its owner can enter."""
    assert triton.token_file.read_text().strip() == triton.token
    assert stat.S_IMODE(triton.token_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(triton.token_file.parent.stat().st_mode) == 0o700


def test_token_is_not_in_the_process_list(triton: TritonServer) -> None:
    """Triton takes its token on the command line only; it is blanked there once the server has read it."""
    assert triton.token not in " ".join(
        word for pid in triton.pids() for word in psutil.Process(pid).cmdline()
    )
    assert triton.token not in "\n".join(triton.log_lines())


def test_own_token_file_is_used_and_checked(
    start_triton: StartServer, repository: Path, tmp_path: Path
) -> None:
    """A token of one's own opens the guarded calls; one that could be guessed or break the command line is refused."""
    file = tmp_path / "token"
    file.write_text("a" * 20 + "\n")
    server = start_triton(repository, load_models=("moderation",), token_file=file)
    url = f"http://{server.http_url}/v2/logging"
    assert httpx.get(url, headers={TOKEN_HEADER: "a" * 20}, trust_env=False).status_code == 200
    assert file.exists()
    file.write_text("short")
    with pytest.raises(RepositoryError, match="at least 16 letters and digits"):
        start_triton(repository, token_file=file)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, Path]:
    """A certificate authority, and a folder with its certificate and one for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    _write(ca.issue_cert("127.0.0.1", "localhost"), folder, "server")
    return ca, folder


def _write(cert: trustme.LeafCert, folder: Path, name: str) -> None:
    cert.cert_chain_pems[0].write_to_path(str(folder / f"{name}.pem"))
    cert.private_key_pem.write_to_path(str(folder / f"{name}.key"))


def _outcome(
    server: TritonServer, *, trusted: bytes, name: str = "127.0.0.1", caller: trustme.LeafCert | None = None
) -> str:
    """What a caller with these certificates gets: scores, or refused."""
    credentials = grpc.ssl_channel_credentials(
        root_certificates=trusted,
        private_key=caller.private_key_pem.bytes() if caller else None,
        certificate_chain=caller.cert_chain_pems[0].bytes() if caller else None,
    )
    options = [("grpc.ssl_target_name_override", name)] if name != "127.0.0.1" else []
    tensor = triton_grpc.InferInput("image", [1, SIZE, SIZE, 3], "UINT8")
    tensor.set_data_from_numpy(coloured((255, 0, 0)))
    with triton_grpc.InferenceServerClient(
        server.grpc_url, ssl=True, creds=credentials, channel_args=options or None
    ) as client:
        try:
            scores = client.infer("moderation", [tensor], client_timeout=10.0).as_numpy("scores")
        except InferenceServerException:
            return "refused"
    return "scores" if np.isfinite(scores).all() else "nothing"


def test_tls(start_triton: StartServer, repository: Path, authority: tuple[trustme.CA, Path]) -> None:
    """Over TLS a caller that trusts the authority is answered; plain text, another authority and another host are not."""
    ca, folder = authority
    server = start_triton(
        repository, load_models=("moderation",), tls_cert=folder / "server.pem", tls_key=folder / "server.key"
    )
    trusted = ca.cert_pem.bytes()
    assert _outcome(server, trusted=trusted) == "scores"
    assert _outcome(server, trusted=trusted, name="moderation.example") == "refused"
    assert _outcome(server, trusted=trustme.CA().cert_pem.bytes()) == "refused"
    with triton_grpc.InferenceServerClient(server.grpc_url) as plain, pytest.raises(InferenceServerException):
        plain.is_server_live(client_timeout=5.0)


def test_mutual_tls(start_triton: StartServer, repository: Path, authority: tuple[trustme.CA, Path]) -> None:
    """With mutual TLS only callers with a certificate of the authority that is valid now are answered."""
    ca, folder = authority
    server = start_triton(
        repository,
        load_models=("moderation",),
        tls_cert=folder / "server.pem",
        tls_key=folder / "server.key",
        tls_client_ca=folder / "ca.pem",
    )
    trusted, now = ca.cert_pem.bytes(), datetime.datetime.now(datetime.UTC)
    expired = ca.issue_cert(
        "caller", not_before=now - datetime.timedelta(9), not_after=now - datetime.timedelta(1)
    )
    assert _outcome(server, trusted=trusted, caller=ca.issue_cert("caller")) == "scores"
    assert _outcome(server, trusted=trusted) == "refused"
    assert _outcome(server, trusted=trusted, caller=trustme.CA().issue_cert("caller")) == "refused"
    assert _outcome(server, trusted=trusted, caller=expired) == "refused"


def test_certificates_are_checked_before_the_start(
    authority: tuple[trustme.CA, Path], tmp_path: Path
) -> None:
    """A certificate that is missing, no certificate, expired, not yet valid, or of another key is named with what to do."""
    ca, folder = authority
    now = datetime.datetime.now(datetime.UTC)
    old = ca.issue_cert(
        "127.0.0.1", not_before=now - datetime.timedelta(9), not_after=now - datetime.timedelta(1)
    )
    early = ca.issue_cert(
        "127.0.0.1", not_before=now + datetime.timedelta(1), not_after=now + datetime.timedelta(9)
    )
    _write(old, tmp_path, "old")
    _write(early, tmp_path, "early")
    (tmp_path / "text.pem").write_text("hello")
    good = folder / "server.pem"
    for cert, key, words in (
        (tmp_path / "none.pem", folder / "server.key", "No such file"),
        (tmp_path / "text.pem", folder / "server.key", "not a PEM certificate"),
        (tmp_path / "old.pem", tmp_path / "old.key", "expired on .*renew it"),
        (tmp_path / "early.pem", tmp_path / "early.key", "this machine's clock says"),
        (good, tmp_path / "old.key", "is not the key of"),
        (good, tmp_path / "text.pem", "not an unencrypted PEM private key"),
    ):
        with pytest.raises(CertificateError, match=words):
            check_certificates(cert, key, None)
    check_certificates(good, folder / "server.key", folder / "ca.pem")


def test_metrics_of_the_old_server_stay_on_loopback_too(start_triton: StartServer, repository: Path) -> None:
    """The wheel's server does not offer metrics to a network either."""
    with pytest.raises(UnsupportedPlatformError, match="loopback only"):
        start_triton(repository, metrics_host="0.0.0.0", server="embedded")
