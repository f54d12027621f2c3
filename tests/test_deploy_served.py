"""What the manifests name exists: the server is run with the manifest's own arguments, and asked on every path and for every metric."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serve.installation import find_server, server_environment
from tests.deployed import DEPLOY, ROOT, image_command
from tests.manifests import KUBERNETES, container, one, require_kubectl


@pytest.fixture(scope="module")
def served(repository: Path) -> Iterator[dict[str, str]]:
    """Run the image's command with the manifest's arguments; only addresses, ports and the choice of server are ours."""
    require_kubectl()
    command = [*image_command()[image_command().index("python3") + 1 :], *container("cpu")["args"]]
    command[command.index("--repository") + 1] = str(repository)
    command[command.index("--server") + 1] = "embedded"
    command = ["127.0.0.1" if word == "0.0.0.0" else word for word in command]
    ports = [word for name in ("http", "grpc", "metrics", "health") for word in (f"--{name}-port", "0")]
    process = subprocess.Popen(
        [sys.executable, *command, *ports],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        found: dict[str, str] = {}
        while "token" not in found:
            line = process.stdout.readline()
            assert line, "the command ended before it was ready"
            found[line.split()[0]] = line.split()[-1]
        yield found
    finally:
        process.kill()
        process.communicate()


def test_probes_are_answered(served: dict[str, str]) -> None:
    """Each probe's path answers 200 on the port that the manifest names, and a wrong one does not."""
    base = served["health"].removesuffix("/ready")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container("cpu")[probe]["httpGet"]
        assert asked["port"] == "health"
        assert httpx.get(base + asked["path"], trust_env=False).status_code == 200
    assert httpx.get(f"{base}/nothing", trust_env=False).status_code == 404


def series(text: str) -> dict[str, set[str]]:
    """Metric -> its labels, as the server shows them."""
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(\w+)\{([^}]*)\}", text, re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r"(\w+)=", labels))
    return found


def test_metrics_and_labels_exist(served: dict[str, str]) -> None:
    """Every metric of the server's that rules, dashboard and autoscaler name is on the page that the ServiceMonitor reads, with its labels."""
    path = one("cpu", "ServiceMonitor")["spec"]["endpoints"][0]["path"]
    assert served["metrics"].endswith(path)
    text = httpx.get(served["metrics"], trust_env=False).text
    shown = series(text)
    adapter = (KUBERNETES / "prometheus-adapter.yaml").read_text()
    rules = (DEPLOY / "prometheus" / "rules.yaml").read_text()
    dashboard = (DEPLOY / "grafana" / "dashboards" / "moderation.json").read_text()
    selectors = re.findall(r"\b(nv_\w+)(?:\{([^}]*)\})?", adapter + rules + dashboard)
    assert len(selectors) > 12
    added = {"job", "instance", "namespace", "pod"}
    for name, matchers in selectors:
        assert name in shown, name
        assert set(re.findall(r"(\w+)=", matchers)) <= shown[name] | added, (name, matchers)
    reasons = set(re.findall(r'reason="(\w+)"', text))
    named = re.findall(r'reason=~?\\?"([A-Z|]+)', rules)
    assert named
    assert {each for words in named for each in words.split("|")} <= reasons


def test_flags_exist() -> None:
    """The flags that `python -m serve` gives tritonserver, and those that the docs name, are in its own help."""
    found = find_server("embedded")
    done = subprocess.run(
        [str(found.binary), "--help"],
        env=server_environment(found),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    known = set(re.findall(r"--([a-z][a-z-]+)", done.stdout + done.stderr))
    used = set(re.findall(r'"--([a-z][a-z-]+)=', (ROOT / "serve" / "command.py").read_text()))
    used |= set(re.findall(r'f"--([a-z][a-z-]+)=', (ROOT / "serve" / "command.py").read_text()))
    used |= {"trace-config"}
    assert len(used) > 15
    assert used <= known


def test_client_metrics_exist() -> None:
    """Every metric of the client's that the rules name is one that it registers."""
    from moderation_client._prometheus import process_meters

    meters = process_meters()
    names = {meters.verdicts, meters.decisions, meters.scores, meters.reference, meters.durations}
    known = {each._name for each in names}
    rules = (DEPLOY / "prometheus" / "rules.yaml").read_text()
    used = {re.sub(r"_(total|count)$", "", name) for name in re.findall(r"\bmoderation_\w+(?=\{|\))", rules)}
    assert used <= known
    assert len(used) >= 4
