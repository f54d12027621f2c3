"""Reads a model repository without a server and says what Triton would refuse, guess, ignore or expose.

For repositories of this program and of anybody else. Where a rule rests on observed behaviour of Triton rather than on its
documentation, the finding says what happens.
"""

from __future__ import annotations

from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from export.commit import JOURNAL, staging_path
from export.config_pbtxt import present_fields
from export.errors import RepositoryError
from export.findings import Finding, Findings
from export.lint_config import check_config, threads_of
from export.lint_files import check_exposure, check_versions
from export.lint_graph import check_graph
from export.lint_spec import check_specs
from export.releases import DEFAULT_TARGET, fields_unknown_to
from export.session import cpu_quota


def lint(repository: Path, *, target: str = DEFAULT_TARGET, cpus: int = 0) -> list[Finding]:
    """Check every model; findings, worst first. `cpus` is the quota to judge threads by, 0 this machine's.

    Raises RepositoryError when the folder is not there, TargetError for an unknown release.
    """
    repository = repository.resolve()
    if not repository.is_dir():
        raise RepositoryError(f"{repository} is not a folder")
    findings = Findings(repository)
    _check_staging(repository, findings)
    budget = cpus or cpu_quota()
    threads = 0
    models = [each for each in sorted(repository.iterdir()) if each.is_dir()]
    if not models:
        findings.error(repository, "", "there is no model in it", "publish one")
    for model in models:
        threads += _check_model(model, target, budget, findings)
    if threads > budget and len(models) > 1:
        findings.warning(
            repository,
            "",
            f"all models together run {threads} inference threads on {budget} CPUs",
            "lower instances or threads of one of them",
        )
    order = {"error": 0, "warning": 1, "note": 2}
    return sorted(findings.items, key=lambda finding: order[finding.severity])


def _check_model(model: Path, target: str, budget: int, findings: Findings) -> int:
    """Check one model folder; how many threads its CPU instances run."""
    configs = [
        path for path in [model / "config.pbtxt", *sorted(model.glob("configs/*.pbtxt"))] if path.is_file()
    ]
    if not (model / "config.pbtxt").is_file():
        findings.add(
            "warning" if configs else "error",
            model,
            "config.pbtxt",
            "there is none, so Triton guesses it from the model (batch size 4, batching on) or does not load it",
            "write one; a folder that is no model does not belong into a repository",
        )
    check_versions(model, findings)
    check_exposure(model, findings)
    threads = 0
    for path in configs:
        config = read_leniently(path, target, findings)
        if config is None:
            continue
        check_config(config, path, budget, findings)
        check_graph(config, path, target, findings)
        check_specs(config, path, findings)
        if path.name == "config.pbtxt":
            threads = threads_of(config)
    return threads


def read_leniently(path: Path, target: str, findings: Findings) -> pb.ModelConfig | None:
    """Parse a configuration; what does not parse, or only on newer servers, is a finding."""
    unknown = fields_unknown_to(target)
    try:
        config = text_format.Parse(path.read_text(encoding="utf-8"), pb.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        newer = [field for field in unknown if field.rsplit(".", 1)[-1] in str(error)]
        fix = f"that field came with {unknown[newer[0]]}" if newer else "correct the text"
        findings.error(
            path, "", f"Triton cannot parse it, and its model index will not say why: {error}", fix
        )
        return None
    for field in sorted(present_fields(config) & set(unknown)):
        findings.error(
            path,
            field,
            f"Triton {target} does not know the field and refuses the whole file",
            f"drop it or serve with {unknown[field]} or newer",
        )
    return config


def _check_staging(repository: Path, findings: Findings) -> None:
    staging = staging_path(repository)
    for left in sorted(staging.glob("stage-*")) if staging.is_dir() else []:
        findings.warning(
            left,
            "",
            "left by a publisher that was cut short, or one is at work now",
            f"`python -m export recover {repository}` removes it, and says so when its publisher still lives",
        )
    if (staging / JOURNAL).exists():
        findings.error(
            staging / JOURNAL,
            "",
            "a swap of a model folder was cut short",
            f"`python -m export recover {repository}` completes it",
        )
