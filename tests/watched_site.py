"""What a Prometheus watches in tests: two real replicas of a model that can fail, and a process that moderates all the time."""

from __future__ import annotations

import dataclasses
import json
import socket
import subprocess
import sys
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from moderation_client.contract import MODEL_NAME, SCORE_EDGES, ModelSpec, spec_parameter
from serve.config import ServerConfig
from serve.server import TritonServer
from tests.deployed import ROOT
from tests.failing_model import make_failing
from tests.serving import coloured
from tests.small_model import (
    LABELS,
    build_repository,
    encoded_config,
    expected_scores,
    small_config,
    small_spec,
)

USUAL = {"black": 0.8, "grey": 0.15, "pink": 0.05}
COLOURS = {"black": (0, 0, 0), "grey": (110, 110, 110), "pink": (140, 60, 60)}


def training_record() -> ModelSpec:
    """Spec of the small model that remembers the usual mixture of pictures."""
    counts = {label: [0] * len(SCORE_EDGES) for label in LABELS}
    for name, share in USUAL.items():
        for label, score in zip(LABELS, expected_scores(coloured(COLOURS[name]))[0], strict=True):
            place = next(index for index, edge in enumerate(SCORE_EDGES) if score <= edge)
            counts[label][place] += round(1000 * share)
    return dataclasses.replace(
        small_spec(), score_counts={label: tuple(each) for label, each in counts.items()}
    )


def make_repository(path: Path, *, patience_us: int) -> Path:
    """The small model with a short queue; `moderation_encoded` waits 0.4 s for company and refuses who waited `patience_us`."""
    encoded = encoded_config()
    encoded.dynamic_batching.max_queue_delay_microseconds = 400_000
    encoded.dynamic_batching.preferred_batch_size.append(8)
    encoded.dynamic_batching.default_queue_policy.default_timeout_microseconds = patience_us
    config = small_config()
    config.dynamic_batching.default_queue_policy.max_queue_size = 1
    build_repository(path, config=config, encoded=encoded)
    make_failing(path, 1)
    file = path / MODEL_NAME / "config.pbtxt"
    config = text_format.Parse(file.read_text(), pb.ModelConfig())
    config.parameters[spec_parameter(1)].string_value = training_record().to_json()
    file.write_text(text_format.MessageToString(config))
    return path


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Site:
    """Two replicas and a moderating process."""

    def __init__(self, folder: Path) -> None:
        """Prepare; `start` starts."""
        configs = [
            ServerConfig(
                repository=make_repository(folder / f"replica-{index}", patience_us=(0, 50_000)[index]),
                http_port=free_port(),
                grpc_port=free_port(),
                metrics_port=free_port(),
                exit_timeout_s=2.0,
            )
            for index in range(2)
        ]
        self.servers = [TritonServer(config) for config in configs]
        self.client_port = free_port()
        self._client: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start all."""
        for server in self.servers:
            server.start()
        self._client = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.moderating_process",
                self.servers[0].grpc_url,
                str(self.client_port),
            ],
            cwd=ROOT,
            env={"PYTHONPATH": f"{ROOT}:{ROOT / 'client'}", "PATH": "/usr/bin:/bin"},
            stdin=subprocess.PIPE,
            text=True,
        )

    def stop(self) -> None:
        """Stop all."""
        if self._client is not None:
            self._client.kill()
            self._client.communicate()
        for server in self.servers:
            server.stop(timeout_s=0)

    def moderate(self, mixture: dict[str, float]) -> None:
        """Change what the process moderates."""
        assert self._client is not None
        assert self._client.stdin is not None
        self._client.stdin.write(json.dumps(mixture) + "\n")
        self._client.stdin.flush()

    def targets(self) -> dict[str, list[str]]:
        """What Prometheus scrapes."""
        return {
            "moderation": [f"127.0.0.1:{server.config.metrics_port}" for server in self.servers],
            "moderation-client": [f"127.0.0.1:{self.client_port}"],
        }
