"""Who may import whom, what the client may load, and how large a file may grow."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"moderation_client", "train", "export", "serve", "bulk", "benchmarks", "tests"}
ALLOWED = {
    "client": {"moderation_client"},
    "train": {"train", "moderation_client"},
    "serve": {"serve", "moderation_client"},
    "bulk": {"bulk", "moderation_client"},
    "export": {"export", "train", "moderation_client"},
    "benchmarks": {"benchmarks", "export", "train", "serve", "bulk", "moderation_client"},
}
CLIENT_MODULES = {"contract", "images", "policy"}
"""Modules of the client that the applications may name; everything else through `moderation_client` itself."""
FORBIDDEN_IN_CLIENT = ("torch", "torchvision", "onnx", "onnxruntime", "pytriton", "lightning", "grpc", "PIL")
"""Packages that must not be loaded by `import moderation_client` alone."""


def sources(folder: str) -> list[Path]:
    """Python files below a folder of ours; none when it does not exist."""
    return [path for path in sorted((ROOT / folder).rglob("*.py")) if "__pycache__" not in path.parts]


def imported(path: Path) -> list[str]:
    """Every dotted name that a file imports, at any depth."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def violations(path: Path, folder: str) -> list[str]:
    """Names that a file of `folder` imports against the arrows."""
    found = []
    for name in imported(path):
        top, *rest = name.split(".")
        if top in OURS and top not in ALLOWED[folder]:
            found.append(name)
        elif top == "moderation_client" and folder != "client" and rest:
            private = rest[0].startswith("_") and rest[0] != "__version__"
            module = (ROOT / "client" / "moderation_client" / f"{rest[0]}.py").exists()
            if private or (module and rest[0] not in CLIENT_MODULES | {"testing"}):
                found.append(name)
    return found


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_imports_follow_the_arrows(folder: str) -> None:
    """No folder imports what it may not, nor a private module of the client."""
    wrong = {
        str(path.relative_to(ROOT)): names for path in sources(folder) if (names := violations(path, folder))
    }
    assert wrong == {}


def test_planted_violation_is_caught(tmp_path: Path) -> None:
    """The walker itself works: an import of export in train, and a private name of the client, are seen."""
    planted = tmp_path / "planted.py"
    planted.write_text(
        "def f():\n    import export.config\n    from moderation_client._errors import ModerationError\n"
    )
    assert violations(planted, "train") == ["export.config", "moderation_client._errors.ModerationError"]


def test_client_imports_without_heavy_packages() -> None:
    """`import moderation_client` loads neither torch nor onnx nor a server nor a trainer nor grpc."""
    code = (
        "import sys, moderation_client\n"
        f"print([name for name in {FORBIDDEN_IN_CLIENT!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_serve_loads_numpy_beside_tritonserver(tmp_path: Path) -> None:
    """Not before it is started, and no client at all: a replica that was restarted would be back so much later."""
    config = tmp_path / "config.pbtxt"
    config.write_text('name: "moderation"')
    code = (
        "import sys, serve.__main__\n"
        "from pathlib import Path\n"
        "from serve.repository import read_config\n"
        "assert read_config(Path(sys.argv[1])).name == 'moderation'\n"
        "print([each for each in ('numpy', 'httpx', 'grpc') if each in sys.modules])\n"
        "import tritonclient.grpc\n"
        "ours = sys.modules['tritonclient.grpc.model_config_pb2']\n"
        "assert tritonclient.grpc.model_config_pb2 is ours\n"
    )
    command = [sys.executable, "-c", code, str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_client_needs_only_its_declared_packages() -> None:
    """Every third-party package that the client imports is a dependency or an extra of the distribution."""
    declared = {
        "numpy",
        "PIL",
        "tritonclient",
        "grpc",
        "google",
        "httpx",
        "opentelemetry",
        "pillow_heif",
        "prometheus_client",
    }
    tops = {name.split(".")[0] for path in sources("client") for name in imported(path)}
    assert tops - set(sys.stdlib_module_names) - declared == {"moderation_client"}


def test_files_stay_small() -> None:
    """A source file has at most 300 lines."""
    long = {
        str(path.relative_to(ROOT)): num_lines
        for folder in [*ALLOWED, "tests"]
        for path in sources(folder)
        if (num_lines := len(path.read_text(encoding="utf-8").splitlines())) > 300
    }
    assert long == {}


def test_exported_names_are_sorted_and_complete() -> None:
    """`__all__` is the sorted list of what the package offers."""
    import moderation_client

    assert moderation_client.__all__ == sorted(moderation_client.__all__)
    for name in moderation_client.__all__:
        assert getattr(moderation_client, name).__name__ == name
