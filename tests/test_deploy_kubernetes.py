"""The manifests are valid for every Kubernetes since 1.29, and what they name belongs together."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import kubernetes_validate
import pytest
import tyro

from export.pull import Pull
from export.serving import Serving
from tests.deployed import DEPLOY, PORTS, read_yaml, serve_options
from tests.manifests import (
    KUBERNETES,
    OVERLAYS,
    Manifest,
    built,
    container,
    cpus,
    kserve,
    one,
    pod,
    require_kubectl,
)

SCHEMAS = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
VERSIONS = sorted(
    {path.name.removeprefix("v").rsplit(".", 1)[0] for path in SCHEMAS.glob("v1.*-local-strict")},
    key=lambda version: int(version.split(".")[1]),
)
SINCE_1_29 = [version for version in VERSIONS if int(version.split(".")[1]) >= 29]
CUSTOM = {path.stem: json.loads(path.read_text()) for path in (KUBERNETES / "crds").glob("*.json")}


@pytest.fixture(autouse=True)
def _kubectl() -> None:
    require_kubectl()


def check_custom(manifest: Manifest) -> None:
    """Check against the published definition. Raises jsonschema.ValidationError."""
    schema = CUSTOM[manifest["kind"].lower()]
    assert manifest["apiVersion"] == schema["apiVersion"]
    jsonschema.validate(manifest, schema)


@pytest.mark.parametrize("version", SINCE_1_29)
def test_manifests_are_valid(version: str) -> None:
    """Each manifest of each overlay passes the strict schema of this Kubernetes, or that of its own definition."""
    seen = set()
    for overlay in OVERLAYS:
        for manifest in built(overlay):
            text = json.dumps(manifest, sort_keys=True)
            if text in seen:
                continue
            seen.add(text)
            if manifest["kind"].lower() in CUSTOM:
                check_custom(manifest)
            else:
                kubernetes_validate.validate(manifest, version, strict=True)
    assert len(seen) > 12


def test_kserve_manifests_are_valid() -> None:
    """Runtime and service pass KServe's own definitions."""
    for manifest in kserve():
        check_custom(manifest)


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("ServiceMonitor", ("spec", "endpoints", 0, "intervall")),
        ("PrometheusRule", ("spec", "groups", 0, "rules", 0, "fore")),
        ("ServingRuntime", ("spec", "containers", 0, "readynessProbe")),
        ("InferenceService", ("spec", "predictor", "scaleMetrik")),
    ],
)
def test_misspelt_field_is_refused(kind: str, path: tuple[Any, ...]) -> None:
    """The cut-down definitions still know which fields there are."""
    (manifest,) = [copy.deepcopy(each) for each in [*built("cpu"), *kserve()] if each["kind"] == kind]
    *way, last = path
    place = manifest
    for step in way:
        place = place[step]
    place[last] = "x"
    with pytest.raises(jsonschema.ValidationError, match=str(last)):
        check_custom(manifest)


def test_rules_are_the_shipped_ones() -> None:
    """What the operator reads is what Prometheus reads in compose."""
    assert one("cpu", "PrometheusRule")["spec"] == read_yaml(DEPLOY / "prometheus" / "rules.yaml")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_program_understands_its_arguments(overlay: str) -> None:
    """Server and puller take what the manifest gives them, and there is time for what they announce."""
    found = container(overlay)
    options = serve_options(found["args"])
    assert options.server.model_config_name == overlay.split(maxsplit=1)[0]
    assert (options.server.tls_cert is not None) == overlay.endswith("tls")
    (puller,) = pod(overlay)["spec"]["initContainers"]
    assert puller["command"][:3] == ["python3", "-m", "export.pull"]
    pulled = tyro.cli(Pull, args=puller["command"][3:])
    assert pulled.repository == options.server.repository
    probe = found["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > options.server.startup_timeout_s
    assert one(overlay, "Deployment")["spec"]["progressDeadlineSeconds"] > options.server.startup_timeout_s
    pause_s = int(found["lifecycle"]["preStop"]["exec"]["command"][-1])
    needed_s = pause_s + options.drain_s + options.server.exit_timeout_s
    assert pod(overlay)["spec"]["terminationGracePeriodSeconds"] > needed_s


def references(overlay: str) -> Iterator[tuple[str, str]]:
    """Where a port of the pods is named, and its name."""
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        yield probe, container(overlay)[probe]["httpGet"]["port"]
    for service in (each for each in built(overlay) if each["kind"] == "Service"):
        for port in service["spec"]["ports"]:
            yield service["metadata"]["name"], port["targetPort"]
    for rule in one(overlay, "NetworkPolicy")["spec"]["ingress"]:
        for port in rule["ports"]:
            yield "NetworkPolicy", port["port"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ports_and_labels_belong_together(overlay: str) -> None:
    """Every port that is named is one that the program listens on; every selector selects the pods."""
    ports = {each["name"]: each["containerPort"] for each in container(overlay)["ports"]}
    assert ports == PORTS
    for where, name in references(overlay):
        assert name in ports, where
    labels = pod(overlay)["metadata"]["labels"]
    spec = one(overlay, "Deployment")["spec"]
    selectors = [
        spec["selector"]["matchLabels"],
        *[each["spec"]["selector"] for each in built(overlay) if each["kind"] == "Service"],
        one(overlay, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one(overlay, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *[each["labelSelector"]["matchLabels"] for each in pod(overlay)["spec"]["topologySpreadConstraints"]],
    ]
    assert all(selector.items() <= labels.items() for selector in selectors)
    mounts = {each["name"] for each in container(overlay)["volumeMounts"]}
    assert mounts <= {each["name"] for each in pod(overlay)["spec"]["volumes"]}


def test_monitors_select_what_there_is_and_name_the_jobs_of_the_rules() -> None:
    """The ServiceMonitor selects the metrics Service and its port; the job's names are those in the rules."""
    monitor = one("cpu", "ServiceMonitor")["spec"]
    selected = [
        each
        for each in built("cpu")
        if each["kind"] == "Service"
        and monitor["selector"]["matchLabels"].items() <= each["metadata"]["labels"].items()
    ]
    assert [each["metadata"]["name"] for each in selected] == ["moderation-metrics"]
    assert selected[0]["spec"]["publishNotReadyAddresses"]
    assert {each["name"] for each in selected[0]["spec"]["ports"]} == {monitor["endpoints"][0]["port"]}
    jobs = {selected[0]["metadata"]["labels"][monitor["jobLabel"]]}
    (endpoint,) = one("cpu", "PodMonitor", "moderation-client")["spec"]["podMetricsEndpoints"]
    jobs |= {each["replacement"] for each in endpoint["relabelings"]}
    scrapes = read_yaml(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"]
    assert jobs == {each["job_name"] for each in scrapes}


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_threads_and_targets_follow_the_cpu_limit(overlay: str) -> None:
    """The puller sees the server's CPU limit, which gives the number of instances; the autoscaler's target is 0.7 of them."""
    limits = container(overlay)["resources"]["limits"]
    (puller,) = pod(overlay)["spec"]["initContainers"]
    assert puller["resources"]["limits"]["cpu"] == limits["cpu"]
    (threads,) = [each for each in container(overlay)["env"] if each["name"] == "OMP_NUM_THREADS"]
    assert threads["valueFrom"]["resourceFieldRef"]["resource"] == "limits.cpu"
    targets = {
        each["pods"]["metric"]["name"]: cpus(each["pods"]["target"]["averageValue"])
        for each in one(overlay, "HorizontalPodAutoscaler")["spec"]["metrics"]
    }
    instances = float(limits["cpu"]) if overlay == "cpu" else Serving().gpu_instances
    assert targets["moderation_busy_instances"] == pytest.approx(0.7 * instances)
    assert targets["moderation_queue_seconds"] > 2 * Serving().max_queue_delay_us / 1e6
    adapter = read_yaml(KUBERNETES / "prometheus-adapter.yaml")["rules"]["custom"]
    assert {each["name"]["as"] for each in adapter} == set(targets)
    assert all("rate(" in each["metricsQuery"] for each in adapter)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_locked_down(overlay: str) -> None:
    """Not root, read-only, no capabilities, no token of the cluster; what must be written to is a volume."""
    spec = pod(overlay)["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert not spec["automountServiceAccountToken"]
    for each in [*spec["initContainers"], *spec["containers"]]:
        assert each["securityContext"]["readOnlyRootFilesystem"]
        assert each["securityContext"]["capabilities"]["drop"] == ["ALL"]
        assert not each["securityContext"]["allowPrivilegeEscalation"]
        assert "/tmp" in {mount["mountPath"] for mount in each["volumeMounts"]}
        assert ":" in each["image"]
        assert not each["image"].endswith(":latest")


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_repository_comes_from_a_volume(name: str) -> None:
    """The puller finds what `export push` wrote to the claim, and has no need of HTTPS."""
    overlay = f"{name} with volume"
    (puller,) = pod(overlay)["spec"]["initContainers"]
    (config,) = [each for each in built(overlay) if each["kind"] == "ConfigMap"]
    assert puller["env"][0]["valueFrom"]["configMapKeyRef"]["name"] == config["metadata"]["name"]
    (mount,) = [each for each in puller["volumeMounts"] if each["name"] == "models"]
    assert config["data"]["repository-url"] == f"file://{mount['mountPath']}"
    assert mount["readOnly"]
    (volume,) = [each for each in pod(overlay)["spec"]["volumes"] if each["name"] == "models"]
    assert volume["persistentVolumeClaim"]["readOnly"]
    ports = [
        port["port"] for rule in one(overlay, "NetworkPolicy")["spec"]["egress"] for port in rule["ports"]
    ]
    assert ports == [53, 53]


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_traces_may_leave_the_pod(name: str) -> None:
    """Triton is told a collector, and the policy lets it be reached, and only with this component."""
    overlay = f"{name} with traces"
    extra = serve_options(container(overlay)["args"]).server.extra_args
    (url,) = [each.partition("url=")[2] for each in extra if "url=" in each]
    assert extra[0] == "--trace-config=mode=opentelemetry"
    allowed = {
        each: [
            port["port"] for rule in one(each, "NetworkPolicy")["spec"]["egress"] for port in rule["ports"]
        ]
        for each in (name, overlay)
    }
    assert urlsplit(url).port in allowed[overlay]
    assert urlsplit(url).port not in allowed[name]


def test_kserve_runs_the_same_program() -> None:
    """The runtime's arguments are understood, its probes ask the ports that the program listens on."""
    runtime, service = kserve()
    (found,) = runtime["spec"]["containers"]
    options = serve_options(found["args"])
    assert str(options.server.repository) == "/mnt/models"  # where KServe puts what storageUri names
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert found[name]["httpGet"] == {
            "path": container("cpu")[name]["httpGet"]["path"],
            "port": PORTS["health"],
        }
    assert found["ports"][0]["containerPort"] == PORTS["grpc"]
    assert service["spec"]["predictor"]["model"]["runtime"] == runtime["metadata"]["name"]
    assert runtime["spec"]["annotations"]["prometheus.kserve.io/port"] == str(PORTS["metrics"])
