"""`make demo`: the whole path on real pictures, one program after the other, as a newcomer would type them.

Labelled images -> training -> ONNX and Triton repository -> the real server -> verdicts for held-out pictures -> latency.
Each step is a program of its own and is printed as the command that it is; what is already there is used again.
"""

from __future__ import annotations

import csv
import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro

from moderation_client import ModerationClient, Verdict
from serve.config import ServerConfig
from serve.server import TritonServer

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Run the whole path once."""

    name: str = "demo"
    """Name of the run: everything that training writes goes to runs/NAME."""
    num_pictures: int = 4
    """Held-out pictures to show per label, and as many harmless ones."""
    retrain: bool = False
    """Train again although runs/NAME is complete."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A held-out picture with the labels that a person gave it."""

    path: Path
    name: str
    labels: str


def run(title: str, *command: str) -> None:
    """Print and run one of our programs; its failure ends the demo with its own message on the screen."""
    print(f"\n=== {title}\n$ python {' '.join(command)}", flush=True)
    started = time.monotonic()
    code = subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode
    if code:
        raise SystemExit(
            f"demo: `python {' '.join(command)}` failed with exit code {code}; its message stands above"
        )
    print(f"--- {time.monotonic() - started:.0f} s", flush=True)


def held_out(manifest: Path, per_label: int) -> list[Picture]:
    """Pictures of the test split, the same ones every time, chosen by the hash of their path and not by their score."""
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    rows.sort(key=lambda row: hashlib.sha256(row["path"].encode()).digest())
    chosen: dict[str, list[Picture]] = {}
    for row in rows:
        picture = Picture(
            path=manifest.parent / row["path"],
            name=f"{row['source']}/{row['name']}",
            labels=row["labels"].replace(";", " ") or "-",
        )
        bucket = chosen.setdefault(row["labels"].split(";")[0], [])
        if len(bucket) < per_label:
            bucket.append(picture)
    return [picture for label in sorted(chosen, reverse=True) for picture in chosen[label]]


def table(pictures: list[Picture], verdicts: list[Verdict]) -> Iterator[str]:
    """Lines of the verdict table."""
    yield f"{'picture':44} {'a person says':20} {'decision':9} {'because of':10} {'score':>6} {'threshold':>9}"
    for picture, verdict in zip(pictures, verdicts, strict=True):
        score = "-" if verdict.score is None else f"{verdict.score:.3f}"
        threshold = "-" if verdict.threshold is None else f"{verdict.threshold:.3f}"
        yield (
            f"{picture.name[:44]:44} {picture.labels:20} {verdict.decision!s:9} "
            f"{verdict.label or '-':10} {score:>6} {threshold:>9}"
        )


def ask(server: TritonServer, pictures: list[Picture]) -> None:
    """Ask the running service about the pictures and print what it says."""
    print("\n=== verdicts for held-out pictures\n>>> client.moderate(pictures)", flush=True)
    with ModerationClient(server.grpc_url) as client:
        verdicts = client.moderate([picture.path for picture in pictures])
    print("\n".join(table(pictures, verdicts)))
    first = verdicts[0]
    print(f"model {first.model_name} version {first.model_version}, policy {first.policy_version}")


def main(config: DemoConfig) -> None:
    """Run every step; what was built before is used again."""
    manifest = ROOT / "data" / "illustrated" / "manifest.csv"
    run_folder = ROOT / "runs" / config.name
    latency = run_folder / "latency"
    run("labelled images", "-m", "train.illustrated")
    if config.retrain or not (run_folder / "report.html").exists():
        run("training", "-m", "train", "--preset", "demo", "--name", config.name)
    else:
        print(f"\n=== training\nruns/{config.name} is complete and used again (--retrain trains anew)")
    run("export", "-m", "export", f"runs/{config.name}")
    print("\n=== serving\n$ python -m serve", flush=True)
    free_ports = ServerConfig(repository=ROOT / "model_repository", http_port=0, grpc_port=0, metrics_port=0)
    with TritonServer(free_ports) as server:
        print(f"the real tritonserver answers at grpc {server.grpc_url}, http {server.http_url}")
        ask(server, held_out(manifest, config.num_pictures))
        run(
            "latency",
            "benchmarks/latency.py",
            "--url",
            server.grpc_url,
            "--token-file",
            str(server.token_file),
            "--out",
            str(latency.relative_to(ROOT)),
        )
    print(f"\nPages to look at:\n  runs/{config.name}/report.html\n  {latency.relative_to(ROOT)}.html")


if __name__ == "__main__":
    main(tyro.cli(DemoConfig))
