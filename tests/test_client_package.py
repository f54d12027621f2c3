"""The distribution: twins, import cost, the wheel on its own, a typed user program, exit and fork without noise."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from moderation_client import AsyncModerationClient, ModerationClient
from moderation_client.testing import FakeServer

ROOT = Path(__file__).parent.parent


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in an interpreter of its own, warnings being errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


def public(kind: type) -> dict[str, inspect.Signature]:
    """Public methods with their parameters."""
    return {
        name: inspect.signature(method)
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_") or name == "__init__"
    }


def test_twins_have_equal_methods_and_parameters() -> None:
    """What one client can do the other can, with the same parameters and defaults."""
    sync, twin = public(ModerationClient), public(AsyncModerationClient)
    assert sync.keys() == twin.keys()
    for name in sync:
        ours = [(each.name, each.default, each.kind) for each in sync[name].parameters.values()]
        theirs = [(each.name, each.default, each.kind) for each in twin[name].parameters.values()]
        assert ours == theirs, name


def test_import_loads_nothing_heavy() -> None:
    """Neither numpy nor Pillow nor gRPC nor httpx, and no thread, before the first call."""
    code = (
        "import sys, threading, moderation_client\n"
        "moderation_client.ModerationClient('localhost:1')\n"
        "heavy = ['numpy', 'PIL', 'grpc', 'tritonclient', 'httpx', 'opentelemetry', 'torch', 'asyncio.runners']\n"
        "print([name for name in heavy[:-1] if name in sys.modules], threading.active_count())"
    )
    assert python(code).stdout.strip() == "[] 1"


def test_leaving_without_closing_is_quiet() -> None:
    """A program that forgets to close its clients ends with nothing on stderr."""
    code = (
        "import asyncio, sys, numpy as np\n"
        "from moderation_client import AsyncModerationClient, ModerationClient\n"
        "url = sys.argv[1]\n"
        "image = np.zeros((8, 8, 3), np.uint8)\n"
        "client = ModerationClient(url)\n"
        "print(client.moderate(image)[0].decision)\n"
        "stream = client.moderate_stream([image] * 50)\n"
        "next(stream)\n"
        "print(asyncio.run(AsyncModerationClient(url).moderate(image))[0].decision)\n"
    )
    with FakeServer() as server:
        done = python(code, server.url)
    assert done.stdout.split() == ["allow", "allow"]
    assert done.stderr == ""
    assert done.returncode == 0


@pytest.mark.parametrize("transport", ["grpc", "http"])
def test_forked_child_has_its_own_connections(transport: str) -> None:
    """A client that was used before a fork works in parent and child, each with connections of its own."""
    code = (
        "import os, sys, warnings, numpy as np\n"
        "warnings.simplefilter('ignore', DeprecationWarning)  # Python 3.12: fork beside threads\n"
        "from moderation_client import ModerationClient\n"
        "url = sys.argv[1]\n"
        "image = np.zeros((8, 8, 3), np.uint8)\n"
        "client = ModerationClient(url)\n"
        "client.moderate(image)\n"
        "child = os.fork()\n"
        "verdict = client.moderate(image, timeout_s=10)[0]\n"
        "if child == 0: os._exit(0 if str(verdict.decision) == 'allow' else 1)\n"
        "print(os.waitpid(child, 0)[1], verdict.decision)\n"
    )
    with FakeServer() as server:
        url = server.http_url if transport == "http" else server.url
        done = python(code, url)
    assert done.stdout.split() == ["0", "allow"], done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from the tree."""
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(out),
    ]
    subprocess.run([*command, str(ROOT)], check=True, timeout=300)
    (built,) = out.glob("*.whl")
    return built


def test_wheel_holds_the_client_and_nothing_else(wheel: Path) -> None:
    """One package, typed."""
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"moderation_client"}
    assert "moderation_client/py.typed" in names


def test_wheel_alone_judges_images_without_torch(wheel: Path, tmp_path: Path) -> None:
    """Installed away from the checkout it imports from there, works against the fake and never loads torch."""
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "-q", "--target", str(target), str(wheel)]
    subprocess.run(command, check=True, timeout=300)
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r})\n"
        "import json, numpy as np, moderation_client\n"
        "from moderation_client.testing import FakeServer, assert_never_fails_open\n"
        "with FakeServer() as server, moderation_client.ModerationClient(server.url) as client:\n"
        "    verdict = client.moderate(np.zeros((9, 9, 3), np.uint8))[0]\n"
        "print(json.dumps([moderation_client.__file__, str(verdict.decision), 'torch' in sys.modules]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True, cwd=tmp_path
    )
    file, decision, torch = json.loads(done.stdout)
    assert file.startswith(str(target))
    assert (decision, torch) == ("allow", False)


def test_user_program_type_checks_and_uses_every_public_name(tmp_path: Path) -> None:
    """`mypy --strict` accepts a program that uses the whole public interface."""
    import moderation_client

    program = ROOT / "tests" / "typing_client.py"
    used = program.read_text()
    assert [name for name in moderation_client.__all__ if name not in used] == []
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(program)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": "client"},
    )
    assert done.returncode == 0, done.stdout
