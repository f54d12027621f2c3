"""Changes to a repository after publishing: which version is active, how it is served, which versions are kept.

Every change is prepared as a whole new model folder and takes effect in one swap (`commit_state`), which `publish` uses as well.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from export import live as live_module
from export.commit import Staging, open_staging
from export.errors import RepositoryError, ServerError
from export.live import LiveServer
from export.probe import Probe, probe
from export.repository import ModelFolder, State, stage_encoded, stage_model
from export.serving import Serving
from export.version import Version, verify_version
from moderation_client.contract import ENCODED_MODEL_NAME, MODEL_NAME

NO_SERVER = LiveServer()


def commit_state(
    staging: Staging,
    stage: Path,
    versions: Mapping[int, Version],
    state: State,
    *,
    probe_kind: Probe | None,
    live: LiveServer = NO_SERVER,
) -> None:
    """Stage, probe, swap, load. Raises ProbeError or ServerError, and then the repository is as it was.

    The model that takes encoded files comes first: it holds nothing of a version, so it fits the old state too unless the
    number of labels changes.
    """
    active = versions[state.active]
    name = active.spec.name
    stage_model(stage / name, versions, state)
    if probe_kind is not None:
        probe(stage, ModelFolder(stage, name).get(state.active), probe_kind)
    swapped: list[tuple[Path, Path | None]] = []
    if state.encoded:
        stage_encoded(stage / ENCODED_MODEL_NAME, active, state)
        swapped.append((staging.repository / ENCODED_MODEL_NAME, staging.commit(stage / ENCODED_MODEL_NAME)))
    swapped.append((staging.repository / name, staging.commit(stage / name)))
    if live.server is not None:
        published = dataclasses.replace(active, path=staging.repository / name / str(active.number))
        _load_or_restore(staging, live, published, swapped)


def _load_or_restore(
    staging: Staging, live: LiveServer, active: Version, swapped: list[tuple[Path, Path | None]]
) -> None:
    try:
        there = live_module.loaded_models(live)
        names = [active.spec.name, *({ENCODED_MODEL_NAME} & there)]
        live_module.load(live, names, active)
    except ServerError as error:
        restored = []
        for target, before in reversed(swapped):
            if before is None:
                target.rename(staging.new_folder() / target.name)
                continue
            os.utime(before / "config.pbtxt")  # Triton reloads only what is newer than what it has
            staging.commit(before)
            restored.append(before)
        _load_old(live, [before.name for before in restored])
        raise error


def _load_old(live: LiveServer, names: list[str]) -> None:
    """Bring the server back to the old files; what it says now cannot be helped, the first error is the one that counts."""
    import tritonclient.grpc as triton  # noqa: PLC0415
    from tritonclient.utils import InferenceServerException  # noqa: PLC0415

    client = triton.InferenceServerClient(str(live.server))
    try:
        for name in names:
            client.load_model(name, headers=live.headers(), client_timeout=live_module.LOAD_TIMEOUT_S)
    except InferenceServerException as error:
        raise ServerError(
            f"server {live.server} takes neither the new version nor the old one: {error}"
        ) from error
    finally:
        client.close()


def rollback(
    repository: Path, *, version: int | None = None, model: str = MODEL_NAME, live: LiveServer = NO_SERVER
) -> int:
    """Make an older version active again; by default the one that was active before. Returns its number."""
    with open_staging(repository) as staging:
        folder = _existing(repository, model)
        assert folder.state is not None
        target = _previous(folder, folder.state) if version is None else version
        chosen = folder.get(target)
        if target == folder.state.active:
            raise RepositoryError(f"version {target} is active already")
        problems = verify_version(chosen.path)
        if problems:
            raise RepositoryError(f"version {target} cannot be used: {'; '.join(problems)}")
        state = folder.state.after("rollback", target, active=target)
        commit_state(staging, staging.new_folder(), folder.versions, state, probe_kind=None, live=live)
    return target


def configure(
    repository: Path, serving: Serving, *, model: str = MODEL_NAME, live: LiveServer = NO_SERVER
) -> None:
    """Serve the active version with other settings. Raises RepositoryError when there is none."""
    with open_staging(repository) as staging:
        folder = _existing(repository, model)
        assert folder.state is not None
        for number in serving.also_load:
            folder.get(number)
        state = folder.state.after("configure", folder.state.active, serving=serving)
        commit_state(staging, staging.new_folder(), folder.versions, state, probe_kind=None, live=live)


def fit(repository: Path, *, model: str = MODEL_NAME) -> Serving:
    """Choose anew, for this machine's CPUs, what the settings leave open; what is in force then.

    A repository that was pushed has the numbers of the machine it was published on. Raises RepositoryError.
    """
    with open_staging(repository) as staging:
        folder = _existing(repository, model)
        assert folder.state is not None
        state = folder.state.after("fit", folder.state.active)
        commit_state(staging, staging.new_folder(), folder.versions, state, probe_kind=None)
    return state.serving.resolved()


def prune(repository: Path, *, keep: int = 3, model: str = MODEL_NAME) -> list[int]:
    """Remove all but the newest `keep` versions, never one that is served; the numbers removed."""
    if keep < 1:
        raise RepositoryError(f"keep must be 1 or more, got {keep}")
    with open_staging(repository) as staging:
        folder = _existing(repository, model)
        assert folder.state is not None
        newest = sorted(folder.versions)[-keep:]
        kept = {
            number: each
            for number, each in folder.versions.items()
            if number in {*newest, folder.state.active, *folder.state.serving.also_load}
        }
        removed = sorted(set(folder.versions) - set(kept))
        if removed:
            state = folder.state.after("prune", folder.state.active)
            commit_state(staging, staging.new_folder(), kept, state, probe_kind=None)
    return removed


def _existing(repository: Path, model: str) -> ModelFolder:
    folder = ModelFolder(repository, model)
    if folder.state is None:
        raise RepositoryError(f"{repository} holds no model {model!r}; publish one: python -m export RUN")
    return folder


def _previous(folder: ModelFolder, state: State) -> int:
    """Give the version that was active before the present one, as the events tell."""
    for event in reversed(state.events):
        before = int(event["before"])
        if before in folder.versions and before != state.active:
            return before
    raise RepositoryError(f"no version was active before version {state.active}: name one with --version")
