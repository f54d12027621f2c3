"""A model repository as export keeps it: which versions there are, which one is active, and the folder that follows from that.

<model>/state.json                 active version, last number given, serving settings, what happened when
<model>/config.pbtxt, configs/     made anew from state and versions at every change
<model>/warmup/                    golden image of the active version
<model>/<version>/                 never changes
moderation_encoded/                `export.encoded` says what is in it
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb

from export.commit import link_tree
from export.config_pbtxt import check_target, model_config, to_text, wire_parameters
from export.errors import RepositoryError
from export.serving import Serving
from export.version import Version, read_version
from moderation_client.contract import MODEL_NAME

STATE = "state.json"
STATE_SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class State:
    """What of a model is not in its versions."""

    active: int
    """Version that answers."""
    last_version: int
    """Highest number ever given; the next version gets the next one, even when this one is gone."""
    serving: Serving
    encoded: bool = True
    """Whether the model that takes encoded files is kept beside this one, where there is a policy for it."""
    events: tuple[Mapping[str, Any], ...] = field(default_factory=tuple)
    """What was done when, oldest first."""

    def after(self, action: str, version: int, **changes: Any) -> State:
        """Give the state after an action, which is added to the events."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        event = {"action": action, "version": version, "before": self.active, "time": now}
        return dataclasses.replace(self, events=(*self.events, event), **changes)

    def to_json(self) -> str:
        """Serialise with `schema_version`."""
        payload = {"schema_version": STATE_SCHEMA_VERSION, **dataclasses.asdict(self)}
        return json.dumps(payload, indent=1)


class ModelFolder:
    """The published versions of one model, read once."""

    def __init__(self, repository: Path, name: str = MODEL_NAME) -> None:
        """Read `<repository>/<name>`; a model that is not there has no versions. Raises RepositoryError."""
        self.path = repository / name
        self.name = name
        self.versions: dict[int, Version] = {}
        self.state: State | None = None
        if not self.path.exists():
            return
        self.state = _read_state(self.path / STATE)
        for folder in sorted(self.path.iterdir()):
            if folder.is_dir() and folder.name.isdecimal():
                self.versions[int(folder.name)] = read_version(folder)
        if self.state.active not in self.versions:
            raise RepositoryError(
                f"{self.path / STATE} names version {self.state.active}, which is not there"
            )

    @property
    def next_version(self) -> int:
        """Number that the next published version gets."""
        return 1 if self.state is None else self.state.last_version + 1

    def get(self, number: int) -> Version:
        """Look a version up. Raises RepositoryError that lists what there is."""
        if number not in self.versions:
            there = ", ".join(map(str, self.versions)) or "none"
            raise RepositoryError(f"version {number} of {self.name} is not in {self.path}; there: {there}")
        return self.versions[number]


def _read_state(path: Path) -> State:
    try:
        payload = json.loads(path.read_bytes())
        if payload.pop("schema_version") != STATE_SCHEMA_VERSION:
            raise RepositoryError(f"{path} has another schema_version than {STATE_SCHEMA_VERSION}")
        serving = Serving.from_dict(payload.pop("serving"))
        return State(serving=serving, events=tuple(payload.pop("events")), **payload)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RepositoryError(
            f"{path.parent} was not written by this program (its {STATE} cannot be read: {error!r}); "
            "publish into another repository or remove that folder"
        ) from error


def configs_of(
    active: Version, versions: Mapping[int, Version], serving: Serving
) -> dict[str, pb.ModelConfig]:
    """Relative path -> configuration of the model for `active`. Raises TargetError for fields its target lacks."""
    parameters = wire_parameters(
        {number: each.spec for number, each in versions.items()},
        {number: each.policy for number, each in versions.items() if each.policy is not None},
    )
    beside = _beside(active, versions, serving)
    found = {}
    for accelerator, file_name in (("cpu", active.cpu_file), ("gpu", active.gpu_file)):
        config = model_config(
            spec=active.spec,
            file_name=file_name,
            accelerator="cpu" if accelerator == "cpu" else "gpu",
            serving=serving.resolved(),
            parameters=parameters,
            warmup_file=warmup_name(active),
            target=active.target,
            cpu_accelerator=active.cpu_accelerator,
        )
        config.version_policy.specific.versions.extend(beside)
        check_target(config, active.target)
        found[f"configs/{accelerator}.pbtxt"] = config
    return {"config.pbtxt": found["configs/cpu.pbtxt"], **found}


def _beside(active: Version, versions: Mapping[int, Version], serving: Serving) -> list[int]:
    """Older versions that stay loaded; a newer one never does, because it would answer whoever pins none.

    Raises RepositoryError for one whose tensors or files are others: versions of a model share its configuration.
    """
    chosen = [versions[each] for each in serving.also_load if each in versions and each < active.number]
    for each in chosen:
        same = each.spec.image == active.spec.image and len(each.spec.labels) == len(active.spec.labels)
        same &= each.cpu_accelerator == active.cpu_accelerator
        if not same or not {active.cpu_file, active.gpu_file} <= set(each.spec.files):
            raise RepositoryError(
                f"version {each.number} cannot stay loaded beside version {active.number}: its image size, number of "
                "labels, variants or CPU accelerator are others. Leave it out of --also-load and serve it from a repository of its own"
            )
    return [each.number for each in chosen]


def warmup_name(version: Version) -> str:
    """Name of the file under `warmup/` with the golden image of a version."""
    return f"golden_{version.number}"


def stage_model(target: Path, versions: Mapping[int, Version], state: State) -> None:
    """Write the whole model folder `target` for a state; versions that lie elsewhere are linked into it."""
    target.mkdir(parents=True, exist_ok=True)
    for number, version in versions.items():
        if version.path != target / str(number):
            link_tree(version.path, target / str(number))
    active = versions[state.active]
    (target / "warmup").mkdir()
    (target / "warmup" / warmup_name(active)).write_bytes(active.golden()[0].tobytes())
    (target / "configs").mkdir()
    for relative, config in configs_of(active, versions, state.serving).items():
        (target / relative).write_text(to_text(config), encoding="utf-8")
    (target / STATE).write_text(state.to_json() + "\n")
