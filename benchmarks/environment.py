"""What a figure was measured on: machine, quota, versions, commit, server, and the hashes of model and configuration.

Nothing that names a person, a host or a folder is recorded: result files are published.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

PACKAGES = (
    "grpcio", "lightning", "moderation-client", "numpy", "nvidia-pytriton", "onnx", "onnxruntime",
    "onnxruntime-gpu", "pillow", "torch", "torchvision", "tritonclient",
    "fastapi", "uvicorn", "litserve",
)  # fmt: skip
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where and with what a benchmark ran."""

    machine: str
    """Short slug for file names: `amd-epyc-2c`, with the GPU when there is one."""
    cpu_model: str
    cpu_flags: tuple[str, ...]
    """Those that decide the speed of a network: avx2, avx512f, avx512_vnni, amx_int8, ..."""
    num_cpus: int
    """Cores that this process may run on."""
    cpu_quota: float
    """Cores that the container's quota allows; equals `num_cpus` where there is none."""
    memory_bytes: int
    gpus: tuple[str, ...]
    os: str
    python: str
    versions: Mapping[str, str]
    """Installed distribution -> version."""
    commit: str | None
    dirty: bool | None
    """Whether the working tree differed from `commit`; None outside a checkout."""
    load_average: float
    """One-minute load before the run: above ~0.5 somebody else was working too."""
    server: Mapping[str, str] = field(default_factory=dict)
    """Name and version that the server gave of itself, and whether it shared the machine with the load."""
    model: Mapping[str, str] = field(default_factory=dict)
    """Name, version, file, `model_sha256` and `config_sha256` of what answered."""


def capture_environment(
    *, server: Mapping[str, str] | None = None, model: Mapping[str, str] | None = None
) -> Environment:
    """Read the machine and the installed versions; `server` and `model` come from whoever asked the server."""
    gpus = gpu_names()
    commit, dirty = _commit()
    return Environment(
        machine=_slug(gpus),
        cpu_model=cpu_model(),
        cpu_flags=_cpu_flags(),
        num_cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        cpu_quota=cpu_quota(),
        memory_bytes=psutil.virtual_memory().total,
        gpus=gpus,
        os=f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
        python=platform.python_version(),
        versions=installed_versions(),
        commit=commit,
        dirty=dirty,
        load_average=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0,
        server=dict(server or {}),
        model=dict(model or {}),
    )


def installed_versions() -> dict[str, str]:
    """Versions of the packages that matter for speed, those that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cpu_model() -> str:
    """CPU's own name, as the kernel gives it."""
    match = re.search(r"^model name\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    return match.group(1).strip() if match else platform.processor() or platform.machine()


def _cpu_flags() -> tuple[str, ...]:
    match = re.search(r"^flags\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    flags = match.group(1).split() if match else []
    return tuple(sorted(flag for flag in flags if flag.startswith(("avx", "amx", "fma"))))


@functools.cache
def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def cpu_quota() -> float:
    """Cores this process may use: the smaller of its affinity and its control group's quota (v2, then v1)."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    limits = [cores]
    for quota_path, period_path in (
        ("/sys/fs/cgroup/cpu.max", None),
        ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
    ):
        words = _words(quota_path) + (_words(period_path) if period_path else [])
        if len(words) == 2 and words[0].isdigit() and int(words[0]) > 0:
            limits.append(int(words[0]) / int(words[1]))
    return round(min(limits), 2)


def num_cores() -> int:
    """Whole cores of the quota, at least one: as many workers or threads are worth starting."""
    return max(1, int(cpu_quota()))


def _words(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").split()
    except OSError:
        return []  # no such control group here


def gpu_names() -> tuple[str, ...]:
    """Names of the NVIDIA GPUs, none where there is no driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    command = [program, "--query-gpu=name", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return (
        tuple(line.strip() for line in answer.stdout.splitlines() if line.strip())
        if not answer.returncode
        else ()
    )


def _slug(gpus: tuple[str, ...]) -> str:
    words = re.sub(r"\(.*?\)|\b(cpu|processor|\d+-core)\b|@.*", " ", cpu_model().lower())
    cores = f"{cpu_quota():g}c"
    parts = [re.sub(r"[^a-z0-9]+", "-", words).strip("-"), cores]
    parts += [re.sub(r"[^a-z0-9]+", "-", gpus[0].lower()).strip("-")] if gpus else []
    return "-".join(part for part in parts if part)


def _commit() -> tuple[str | None, bool | None]:
    git = shutil.which("git")
    if git is None:
        return None, None
    head = _git(git, "rev-parse", "HEAD")
    changes = _git(git, "status", "--porcelain", "--untracked-files=no")
    return (head.strip() if head else None), (bool(changes.strip()) if changes is not None else None)


def _git(git: str, *arguments: str) -> str | None:
    answer = subprocess.run(
        [git, "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=20, check=False
    )
    return answer.stdout if answer.returncode == 0 else None


def sha256_of(path: Path) -> str:
    """Hash of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
