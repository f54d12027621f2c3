"""Changes to a repository after publishing: which version is active, how it is served, which versions are kept.

Every change is prepared as a whole new model folder and takes effect in one swap (`commit_state`), which `publish` uses as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from export.commit import Staging, open_staging
from export.encoded import house_of, is_wanted, stage_encoded
from export.errors import RepositoryError
from export.live import Follower, LiveServer
from export.probe import Probe, probe
from export.repository import ModelFolder, State, stage_model
from export.serving import Serving
from export.swap import Swap
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
    """Stage, probe, swap, load. Raises ProbeError or ServerError, and then the repository is as it was."""
    active = versions[state.active]
    name = active.spec.name
    stage_model(stage / name, versions, state)
    house = house_of(staging.repository / ENCODED_MODEL_NAME, name)
    if is_wanted(state, active, house):
        stage_encoded(stage / ENCODED_MODEL_NAME, active, state, house)
    if probe_kind is not None:
        probe(stage, ModelFolder(stage, name).get(state.active), probe_kind)
    swap = Swap(staging=staging)
    published = dataclasses.replace(active, path=staging.repository / name / str(active.number))
    follower = Follower(live=live)
    follower.look()
    try:
        swap.apply(stage, name)
        follower.take(published, swap)
    except BaseException:  # Ctrl-C while the server loads, too
        swap.take_back()
        follower.go_back(swap)
        raise


def rollback(
    repository: Path, *, version: int | None = None, model: str = MODEL_NAME, live: LiveServer = NO_SERVER
) -> int:
    """Make an older version active again; its number. By default the one that was active before, and going back once more goes further.

    Raises RepositoryError when there is none or it is damaged, ServerError when the server does not take it.
    """
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
    """Serve the active version with other settings. Raises RepositoryError when there is none, or they ask for too much."""
    serving.check_quota()
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


def recover(repository: Path) -> list[str]:
    """Complete the swap of a publisher that was killed and remove what it left; one sentence for each. Raises RepositoryError."""
    if not repository.is_dir():
        raise RepositoryError(f"{repository} is not a folder")
    with open_staging(repository) as staging:
        return staging.recovered


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
    """Give the version that was active before the present one, as the events tell: an older one that nobody went back from."""
    given_up: set[int] = set()
    for event in state.events:
        before, after = int(event["before"]), int(event["version"])
        if event["action"] == "rollback":
            given_up = (given_up | {before} if after < before else given_up) - {after}
    for event in reversed(state.events):
        before = int(event["before"])
        if before in folder.versions and before < state.active and before not in given_up:
            return before
    raise RepositoryError(f"no version was active before version {state.active}: name one with --version")
