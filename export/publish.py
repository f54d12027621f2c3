"""From a source to a new version that answers: build, measure, stage, probe, swap. Nothing changes unless all of it went well."""

from __future__ import annotations

import dataclasses
import datetime
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from export import session
from export.commit import Staging, open_staging
from export.errors import RepositoryError
from export.graph import default_opset
from export.live import LiveServer
from export.operations import commit_state
from export.probe import Probe
from export.releases import DEFAULT_TARGET, release_of
from export.report import write_report
from export.repository import ModelFolder, State
from export.serving import Serving
from export.source import Pixels, Scores, Source
from export.variants import Built, VariantConfig, build_variants, say
from export.version import RESERVED_NAMES, Version, accelerator_of, sha256_of, write_version

Golden = Literal["real", "synthetic"]
NUM_GOLDEN = 8


@dataclass(frozen=True, kw_only=True)
class PublishConfig:
    """Where a new version goes and how it is made."""

    repository: Path = Path("model_repository")
    """Triton model repository; made when it is not there."""
    target_triton: str = DEFAULT_TARGET
    """Oldest Triton release (YY.MM) that must load it."""
    variants: VariantConfig = field(default_factory=VariantConfig)
    serving: Serving = field(default_factory=Serving)
    carry_policy: bool = True
    """Let the recommended policy travel with the model, readable by every caller."""
    encoded: bool = True
    """Keep the model that takes encoded files beside it."""
    golden: Golden = "real"
    """`real`: eight held-out images go into the repository for self-tests; `synthetic`: drawn ones, when real ones must not be kept."""
    probe: Probe = "server"
    """How a candidate is proved before it can answer: on a private `server`, or only `in_process` where none can run."""
    live: LiveServer = field(default_factory=LiveServer)
    report: Path = Path("export-report")
    """Folder for parity.json and parity.html."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """What `publish` did."""

    version: Version
    built: Sequence[Built]
    report: Path


def publish(source: Source, config: PublishConfig) -> Published:
    """Publish a new version. Raises a subtype of ExportError, and then the repository is as it was."""
    if source.spec.name in RESERVED_NAMES:
        raise RepositoryError(f"a model cannot be named {source.spec.name!r}: that name is another model's")
    config.serving.check_quota()
    release = release_of(config.target_triton)
    config = _as_served(source.spec.name, config)
    with tempfile.TemporaryDirectory(prefix="export-") as temporary:
        folder = Path(temporary)
        built = build_variants(source, config.variants, release, folder)
        page = write_report(source, built, config.variants, config.report)
        with open_staging(config.repository) as staging:
            version = _publish_built(source, built, config, staging)
    return Published(version=version, built=built, report=page)


def _publish_built(
    source: Source, built: Sequence[Built], config: PublishConfig, staging: Staging
) -> Version:
    model = ModelFolder(config.repository, source.spec.name)
    stage = staging.new_folder()
    version = _write_version(source, built, config, stage / source.spec.name / str(model.next_version))
    versions = {**model.versions, version.number: version}
    state = _next_state(model, version, config)
    commit_state(staging, stage, versions, state, probe_kind=config.probe, live=config.live)
    final = config.repository / source.spec.name / str(version.number)
    return dataclasses.replace(version, path=final)


def _as_served(model: str, config: PublishConfig) -> PublishConfig:
    """Compare at the largest batch that will really be formed: where no settings are given, the repository's own stay in force."""
    state = ModelFolder(config.repository, model).state
    if state is None or config.serving != Serving():
        return config
    largest = state.serving.max_batch_size
    return dataclasses.replace(config, variants=dataclasses.replace(config.variants, max_batch_size=largest))


def _next_state(model: ModelFolder, version: Version, config: PublishConfig) -> State:
    serving = dataclasses.replace(config.serving, max_batch_size=config.variants.max_batch_size)
    if model.state is None:
        before = State(active=0, last_version=0, serving=serving)
    else:
        unchanged = config.serving == Serving()
        before = dataclasses.replace(model.state, serving=model.state.serving if unchanged else serving)
    return before.after(
        "publish", version.number, active=version.number, last_version=version.number, encoded=config.encoded
    )


def _write_version(source: Source, built: Sequence[Built], config: PublishConfig, folder: Path) -> Version:
    folder.mkdir(parents=True)
    kept = [each for each in built if each.passed]
    for each in kept:
        shutil.copy2(each.path, folder / each.path.name)
    hashes = {each.path.name: sha256_of(folder / each.path.name) for each in kept}
    golden = golden_images(source, config.golden)
    version = Version(
        path=folder,
        spec=dataclasses.replace(source.spec, version=int(folder.name), files=hashes),
        policy=source.policy if config.carry_policy else None,
        cpu_file=_cpu_choice(kept),
        cpu_accelerator=config.variants.cpu_accelerator,
        gpu_file=next((each.path.name for each in kept if each.variant == "fp16"), kept[0].path.name),
        target=config.target_triton,
        golden_scores={each.path.name: _score(each, golden, config.variants) for each in kept},
        record=_record(source, built, config),
    )
    write_version(version, golden)
    return version


def _cpu_choice(kept: Sequence[Built]) -> str:
    """INT8 when it passed and is faster here, else FP32."""
    on_cpu = [each for each in kept if each.variant != "fp16"]
    return min(on_cpu, key=lambda each: each.time_ms).path.name


def _score(built: Built, golden: Pixels, config: VariantConfig) -> Scores:
    accelerator = accelerator_of(built.path.name, config.cpu_accelerator)
    return session.run(session.open_session(built.path, accelerator=accelerator), golden, batch=len(golden))


def golden_images(source: Source, kind: Golden) -> Pixels:
    """Images that every load is tested with: real ones spread over the test split, or smooth random ones."""
    if kind == "real":
        pixels = source.images.test.pixels
        chosen = np.unique(np.linspace(0, len(pixels) - 1, NUM_GOLDEN).astype(int))
        return np.asarray(pixels[chosen])
    size = (source.spec.image.height, source.spec.image.width)
    coarse = np.random.default_rng(0).integers(0, 256, (NUM_GOLDEN, 8, 8, 3), dtype=np.uint8)
    rows, columns = (np.arange(side) * 8 // side for side in size)
    return np.ascontiguousarray(coarse[:, rows][:, :, columns])


def _record(source: Source, built: Sequence[Built], config: PublishConfig) -> dict[str, Any]:
    model = onnx.load(built[0].path, load_external_data=False)
    return {
        **source.record,
        "source": source.name,
        "reference": source.reference_name,
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "opset": default_opset(model),
        "ir": model.ir_version,
        "golden": config.golden,
        "gates": config.variants.gates.to_dict(),
        "variants": {each.variant: summary(each) for each in built},
    }


def summary(built: Built) -> dict[str, Any]:
    """Pick the figures of one variant that a manifest keeps."""
    return {
        "passed": built.passed,
        "failures": list(built.failures),
        "num_images": built.parity.num_images,
        "max_score_shift": built.parity.shift.max,
        "agreement": dict(built.parity.agreement),
        "ap_drop": built.parity.ap_drop,
        "batch_8_ms": round(built.time_ms, 2),
    }


def _with(version: Version) -> str:
    return "" if version.cpu_accelerator == "none" else f" with {version.cpu_accelerator}"


def report_built(published: Published) -> None:
    """Tell the person at the terminal what is there now."""
    version = published.version
    for each in published.built:
        if not each.passed:
            say(f"{each.variant} is NOT published: {'; '.join(each.failures)}")
    say(
        f"version {version.number} is in {version.path}: CPU runs {version.cpu_file}{_with(version)}, GPU runs {version.gpu_file}"
    )
    say(f"report: {published.report}")
