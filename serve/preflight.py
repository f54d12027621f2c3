"""What can be known to fail before a server is started: addresses, TLS files, shared memory, descriptors, the token."""

from __future__ import annotations

import datetime
import os
import resource
import secrets
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from serve.config import ServerConfig
from serve.errors import CertificateError, RepositoryError, ResourceError
from serve.installation import Installation, check_host
from serve.workspace import SHARED_MEMORY

_MIN_SHARED_MEMORY = 16 * 2**20
_MIN_DESCRIPTORS = 256
_MIN_TOKEN_LENGTH = 16


def check(config: ServerConfig, found: Installation) -> None:
    """Raise the ServeError that starting would end in."""
    check_host(found, config.host)
    check_host(found, config.metrics_host)
    check_certificates(config.tls_cert, config.tls_key, config.tls_client_ca)
    _check_resources()
    if config.log_file is not None and not config.log_file.resolve().parent.is_dir():
        raise ResourceError(
            f"log file {config.log_file}: its folder is not there; make it, or give another --log-file"
        )


def check_certificates(cert: Path | None, key: Path | None, client_ca: Path | None) -> None:
    """Raise CertificateError for a file that cannot be used, is out of its time, or does not fit the other."""
    if client_ca is not None:
        _certificate(client_ca)
    if cert is None or key is None:
        return
    certificate = _certificate(cert)
    try:
        private = load_pem_private_key(_read(key), password=None)
    except (ValueError, TypeError) as error:  # TypeError: it is encrypted
        raise CertificateError(f"{key} is not an unencrypted PEM private key: {error}") from error
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if private.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
        raise CertificateError(f"{key} is not the key of {cert}: give the pair that was made together")


def _certificate(path: Path) -> x509.Certificate:
    """Read the first certificate of a PEM file, when it is valid now."""
    try:
        certificate = x509.load_pem_x509_certificate(_read(path))
    except ValueError as error:
        raise CertificateError(f"{path} is not a PEM certificate: {error}") from error
    now = datetime.datetime.now(datetime.UTC)
    if now > certificate.not_valid_after_utc:
        raise CertificateError(
            f"{path} expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC: renew it"
        )
    if now < certificate.not_valid_before_utc:
        raise CertificateError(
            f"{path} is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC only, and this machine's clock "
            f"says {now:%Y-%m-%d %H:%M}: set the clock, or use the certificate that is valid now"
        )
    return certificate


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateError(f"{path} cannot be read: {error.strerror}") from error


def _check_resources() -> None:
    """Raise ResourceError for a machine that a server would start on and then fail at once."""
    space = os.statvfs(SHARED_MEMORY)
    free = space.f_bavail * space.f_frsize
    if free < _MIN_SHARED_MEMORY:
        raise ResourceError(
            f"{SHARED_MEMORY} has {free // 2**20} MiB left, model processes need at least {_MIN_SHARED_MEMORY // 2**20} "
            "MiB: remove what fills it, or give it more (Docker: --shm-size=1g)"
        )
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if limit != resource.RLIM_INFINITY and limit < _MIN_DESCRIPTORS:
        raise ResourceError(
            f"only {limit} open files are allowed, the server needs at least {_MIN_DESCRIPTORS}: raise `ulimit -Hn`"
        )


def token(file: Path | None, folder: Path) -> tuple[str, Path]:
    """Get the admin token: the owner's, or a new one in a file that only the owner can read. Raises RepositoryError, ResourceError."""
    try:
        return _token(file, folder)
    except (OSError, UnicodeDecodeError) as error:
        place = file or folder
        raise ResourceError(
            f"the token cannot be read from or written to {place}: {error}; see --token-file"
        ) from error


def _token(file: Path | None, folder: Path) -> tuple[str, Path]:
    if file is not None and file.exists():
        found = file.read_text(encoding="utf-8").strip()
        if not (found.isascii() and found.isalnum() and len(found) >= _MIN_TOKEN_LENGTH):
            raise RepositoryError(
                f"token file {file} must hold at least {_MIN_TOKEN_LENGTH} letters and digits"
            )
        return found, file
    made = secrets.token_hex(24)
    target = file or folder / "token"
    target.touch(mode=0o600)
    target.write_text(made + "\n", encoding="utf-8")
    return made, target
