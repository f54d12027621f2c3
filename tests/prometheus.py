"""The real Prometheus on the shipped rules, in a hurry: every duration in them is shortened by one table, nothing else is changed."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.deployed import DEPLOY
from tests.serving import eventually

SCRAPE_S = 0.5
SHORTER = {"1m": "1s", "5m": "2500ms", "15m": "1s", "30m": "1s", "1h": "3s", "1d": "5s", "1w": "6s"}
"""Duration in the shipped rules -> in the test."""
_DURATION = re.compile(r"(?<![\w.])\d+[smhdw]\b")


def shortened(text: str) -> str:
    """Replace each duration. Raises KeyError for one that the table lacks."""
    return _DURATION.sub(lambda found: SHORTER[found.group()], text)


def write_config(folder: Path, targets: Mapping[str, Sequence[str]]) -> Path:
    """Write rules and a configuration with the shipped job names; the configuration's path."""
    (folder / "rules.yaml").write_text(shortened((DEPLOY / "prometheus" / "rules.yaml").read_text()))
    shipped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    jobs = [each["job_name"] for each in shipped["scrape_configs"]]
    pace = f"{int(SCRAPE_S * 1000)}ms"
    config = {
        "global": {"scrape_interval": pace, "scrape_timeout": pace, "evaluation_interval": pace},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": list(targets[job])}]} for job in jobs
        ],
    }
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


class Prometheus:
    """One server on a free port; use as a context manager."""

    def __init__(self, targets: Mapping[str, Sequence[str]], port: int) -> None:
        """`targets`: job -> addresses."""
        self._folder = Path(tempfile.mkdtemp(prefix="prometheus-"))
        self._config = write_config(self._folder, targets)
        self._address = f"127.0.0.1:{port}"
        self._http = httpx.Client(base_url=f"http://{self._address}", trust_env=False, timeout=10.0)
        self.seen: dict[str, float] = {}

    def __enter__(self) -> Prometheus:
        """Start, and wait until it answers."""
        command = [
            "prometheus",
            f"--config.file={self._config}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address={self._address}",
            "--log.level=warn",
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eventually(self._is_ready, what="Prometheus")
        return self

    def __exit__(self, *_: object) -> None:
        """Stop and remove its data."""
        self._http.close()
        self._process.terminate()
        self._process.wait(timeout=20)
        shutil.rmtree(self._folder)

    def _is_ready(self) -> bool:
        try:
            return self._http.get("/-/ready").status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Value of an expression now, one entry a series."""
        answer = self._http.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", answer
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def query_range(
        self, expression: str, *, back_s: float, step_s: float = SCRAPE_S
    ) -> list[dict[str, Any]]:
        """Values over the last `back_s` seconds, one entry a series."""
        now = int(time.time())  # whole seconds: the times of two queries are the same
        span = {"start": now - int(back_s), "end": now, "step": step_s}
        answer = self._http.get("/api/v1/query_range", params={"query": expression, **span}).json()
        assert answer["status"] == "success", answer
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def firing(self) -> set[str]:
        """Names of the alerts that fire now; each is remembered in `seen`."""
        alerts = self._http.get("/api/v1/alerts").json()["data"]["alerts"]
        names = {each["labels"]["alertname"] for each in alerts if each["state"] == "firing"}
        for name in names:
            self.seen.setdefault(name, time.monotonic())
        return names

    def unhealthy_rules(self) -> dict[str, str]:
        """Rule -> error of its last evaluation."""
        groups = self._http.get("/api/v1/rules").json()["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        return {rule["name"]: rule.get("lastError", "") for rule in rules if rule["health"] == "err"}
