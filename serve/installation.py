"""Which tritonserver runs: the one on PATH (NVIDIA's container) or the one inside the `nvidia-pytriton` wheel.

The wheel's server (Triton 2.51.0) predates the security fixes of 2025: a malformed chunked HTTP request can crash it. It is
therefore bound to loopback addresses only.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import platform
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from serve.config import ServerChoice
from serve.errors import ServerNotFoundError, UnsupportedPlatformError

_WHEEL = "nvidia-pytriton==0.7.0"
_MIN_GLIBC = (2, 35)


@dataclass(frozen=True, kw_only=True)
class Installation:
    """A tritonserver and what lies around it."""

    binary: Path
    backends: Path
    """Directory of the backends that came with it."""
    caches: Path
    """Directory of the response-cache libraries that came with it."""
    stub: Path | None
    """Program that runs Python models, where it does not lie beside the Python backend already."""
    library_path: tuple[Path, ...]
    """Directories that its programs need on LD_LIBRARY_PATH."""
    embedded: bool
    """Whether it is the wheel's."""


def find_server(choice: ServerChoice) -> Installation:
    """Find the server to run.

    Raises ServerNotFoundError when there is none and UnsupportedPlatformError when the wheel's cannot run here.
    """
    if choice != "embedded":
        found = shutil.which("tritonserver")
        if found is not None:
            return _on_path(Path(found))
        if choice == "path":
            raise ServerNotFoundError(
                "no tritonserver on PATH; run inside NVIDIA's container (nvcr.io/nvidia/tritonserver), "
                "or use the embedded server: --server embedded"
            )
    return _embedded()


def _on_path(binary: Path) -> Installation:
    """Describe NVIDIA's layout: bin, backends and caches beside each other."""
    root = binary.resolve().parent.parent
    return Installation(
        binary=binary,
        backends=root / "backends",
        caches=root / "caches",
        stub=None,
        library_path=(),
        embedded=False,
    )


def _embedded() -> Installation:
    """Describe the wheel's layout."""
    check_platform()
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise ServerNotFoundError(
            "no tritonserver: none on PATH, and the wheel that brings one is not installed in "
            f"{sys.prefix}; run `make install`, or `pip install {_WHEEL}`"
        )
    package = Path(next(iter(spec.submodule_search_locations)))
    root = package / "tritonserver"
    minor = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / minor / "triton_python_backend_stub"
    binary = root / "bin" / "tritonserver"
    for needed in (binary, root / "backends" / "python" / "libtriton_python.so", stub):
        if not needed.is_file():
            raise ServerNotFoundError(
                f"{needed} is missing: install the wheel again with `pip install --force-reinstall {_WHEEL}`"
            )
    return Installation(
        binary=binary,
        backends=root / "backends",
        caches=root / "caches",
        stub=stub,
        library_path=(_python_library_folder(), package.parent / "nvidia_pytriton.libs"),
        embedded=True,
    )


def check_platform() -> None:
    """Raise UnsupportedPlatformError where the wheel's server cannot run, naming what was found and what is needed."""
    system, machine = platform.system(), platform.machine()
    libc, version = platform.libc_ver()
    if (system, machine) != ("Linux", "x86_64"):
        found = f"{system} {machine}"
    elif libc != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < _MIN_GLIBC:
        found = f"{libc or 'no glibc'} {version}".strip()
    elif not (3, 11) <= sys.version_info[:2] <= (3, 12):
        found = f"Python {platform.python_version()}"
    else:
        return
    raise UnsupportedPlatformError(
        f"the embedded server needs Linux x86-64 with glibc >= 2.35 and Python 3.11 or 3.12; this is {found}. "
        "Serve the same repository in NVIDIA's container instead (README, 'NVIDIA's container')"
    )


def _python_library_folder() -> Path:
    """Folder of libpython, which the stub is linked against. Raises UnsupportedPlatformError."""
    name = sysconfig.get_config_var("INSTSONAME") or ""
    folders = [
        sysconfig.get_config_var("LIBDIR"),
        f"{sys.base_prefix}/lib",
        sysconfig.get_config_var("LIBPL"),
    ]
    wanted = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    for folder in [*filter(None, folders), "/usr/lib/x86_64-linux-gnu", "/usr/lib64"]:
        if (Path(folder) / wanted).is_file():
            return Path(folder)
    raise UnsupportedPlatformError(
        f"this Python ({sys.base_prefix}) was built without a shared library ({name or 'no libpython'}), and Triton's "
        f"Python stub needs {wanted}; use a Python with one (Debian: apt install libpython3-dev)"
    )


def check_host(installation: Installation, host: str) -> None:
    """Refuse to put the wheel's old server on a network. Raises UnsupportedPlatformError."""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if installation.embedded and not loopback:
        raise UnsupportedPlatformError(
            f"the embedded server (Triton 2.51.0) has known security holes and listens on loopback only, not on {host}; "
            "put a proxy before it, or use NVIDIA's container"
        )


def default_config_name(found: Installation) -> str:
    """Which configuration of a model to use: `gpu` where the server can use one, else `cpu`."""
    return "gpu" if not found.embedded and Path("/proc/driver/nvidia/version").exists() else "cpu"


def server_environment(installation: Installation) -> dict[str, str]:
    """Environment for tritonserver: this Python's packages for the stub, the wheel's libraries for the loader."""
    environment = {key: value for key, value in os.environ.items() if key not in {"PYTHONHOME", "PYTHONPATH"}}
    environment["PATH"] = os.pathsep.join(
        [str(Path(sys.prefix) / "bin"), environment.get("PATH", os.defpath)]
    )
    folders = [*map(str, installation.library_path), environment.get("LD_LIBRARY_PATH", "")]
    environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, folders))
    return environment
