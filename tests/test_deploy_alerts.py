"""The shipped Prometheus rules, evaluated by the real Prometheus over real servers: each alert fires for its fault and clears."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.dashboard import DASHBOARD, draw, legend, read_panels
from tests.deployed import DEPLOY, ROOT, read_yaml
from tests.incident import Story, run
from tests.prometheus import SHORTER, Prometheus, shortened
from tests.watched_site import Site, free_port

RULES = DEPLOY / "prometheus" / "rules.yaml"
ALERTS = [rule["alert"] for group in read_yaml(RULES)["groups"] for rule in group["rules"] if "alert" in rule]
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="needs prometheus and promtool (Debian package prometheus)"
)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """Let everything go wrong once; Prometheus stays up for the tests' questions."""
    site = Site(tmp_path_factory.mktemp("site"))
    try:
        site.start()
        with Prometheus(site.targets(), free_port()) as prometheus:
            yield run(site, prometheus)
    finally:
        site.stop()


@needs_prometheus
def test_nothing_fires_while_all_is_well(story: Story) -> None:
    """Two healthy replicas and the usual pictures: no alert; and every rule can be evaluated."""
    assert story.calm == set()
    assert story.prometheus.unhealthy_rules() == {}


@needs_prometheus
@pytest.mark.parametrize("alert", ALERTS)
def test_alert_fires(story: Story, alert: str) -> None:
    """The alert fired when its fault was there."""
    assert alert in story.fired


@needs_prometheus
def test_alerts_clear(story: Story) -> None:
    """After the repair no alert fires."""
    assert story.cleared, story.prometheus.firing()


@needs_prometheus
def test_failures_are_seen_from_both_sides(story: Story) -> None:
    """Failures that the server counts, and those that only its callers know, reach the series behind the alerts."""
    for expression in (
        'moderation:error_ratio{model="moderation"}',
        'moderation:rejected_ratio{model="moderation_encoded"}',
        'moderation:client_error_ratio{error="OverloadedError"}',
        'moderation:client_error_ratio{error="ServerFailedError"}',
    ):
        (series,) = story.prometheus.query_range(expression, back_s=story.back_s)
        assert max(float(value) for _, value in series["values"]) > 0.01, expression


@needs_prometheus
def test_drift_is_that_of_the_shift(story: Story) -> None:
    """The deliberate shift shows as a large index against training and against the week before; all is small in the end."""
    for against in ("training", "last_week"):
        expression = f'moderation:score_psi{{label="weapon", against="{against}"}}'
        (series,) = story.prometheus.query_range(expression, back_s=story.back_s)
        values = [float(value) for _, value in series["values"]]
        assert max(values) > 1.0
    (series,) = story.prometheus.query_range(
        'moderation:score_psi{label="weapon", against="training"}', back_s=story.back_s
    )
    assert min(float(value) for _, value in series["values"]) < 0.1


@needs_prometheus
def test_every_query_of_the_dashboard_returns_data(story: Story) -> None:
    """No panel is empty: each of its queries has values somewhere in the story, and each series a name for the legend."""
    panels = read_panels(DASHBOARD, "weapon")
    assert len(panels) > 10
    for panel in panels:
        for expression, text in panel.targets:
            found = story.prometheus.query_range(shortened(expression), back_s=story.back_s)
            assert found, (panel.title, expression)
            assert all(legend(text, each["metric"]).strip() for each in found)


@needs_prometheus
def test_dashboard_is_drawn_without_grafana(story: Story, tmp_path: Path) -> None:
    """The picture of the docs comes from the panels' own queries."""
    panels = read_panels(DASHBOARD, "weapon")
    query = functools.partial(story.prometheus.query_range, back_s=story.back_s)
    assert draw(panels, lambda each: query(shortened(each)), tmp_path / "dashboard.png") > len(panels)
    assert (tmp_path / "dashboard.png").stat().st_size > 20_000


@needs_prometheus
def test_autoscaler_metrics_have_values(story: Story) -> None:
    """The adapter's queries, with its placeholders filled in as it does, give a value for each replica."""
    for rule in read_yaml(DEPLOY / "kubernetes" / "prometheus-adapter.yaml")["rules"]["custom"]:
        expression = rule["metricsQuery"].replace("<<.GroupBy>>", "instance")
        expression = shortened(expression.replace("<<.LabelMatchers>>", 'job="moderation"'))
        replicas = story.prometheus.query_range(expression, back_s=story.back_s)
        assert len(replicas) == 2
        assert max(float(value) for _, value in replicas[0]["values"]) > 0.0


@needs_prometheus
@pytest.mark.parametrize("command", [["rules", "rules.yaml"], ["config", "prometheus.yml"]])
def test_promtool_accepts_the_shipped_files(command: list[str]) -> None:
    """Rules and configuration pass Prometheus' own check."""
    done = subprocess.run(
        ["promtool", "check", *command], cwd=RULES.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_test_copy_differs_in_durations_only() -> None:
    """What is tested is what is shipped: putting the long durations back gives the shipped file."""
    shipped = RULES.read_text()
    pieces = re.split(r"(?<![\w.])\d+[smhdw]\b", shipped)
    short = shortened(shipped)
    assert all(piece in short for piece in pieces)
    assert set(re.findall(r"(?<![\w.])\d+[smhdw]\b", shipped)) <= set(SHORTER)


def test_every_alert_is_explained() -> None:
    """The runbook has a section for each alert, where the alert's link points."""
    headings = re.findall(r"^#+ (\w+)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    assert set(ALERTS) <= set(headings)
    for group in read_yaml(RULES)["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                link = rule["annotations"]["runbook_url"]
                assert link == f"docs/operations.md#{rule['alert'].lower()}"
