"""The folder of the model that takes encoded files: when there is one, what export writes into it, and what a platform set by hand.

Export writes nothing of a version into it, so it fits the version before and the one after a swap alike. Its parameters other than
`model` (a `policy_file`, `on_error`, limits) and its further files are the platform's own: they outlive every change.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from export.config_pbtxt import check_target, encoded_config, read_config, set_parameters, to_text
from export.repository import State
from export.version import Version
from moderation_client.contract import ENCODED_MODEL_NAME, MODEL_NAME, policy_parameter

CONFIG = "config.pbtxt"
MODEL_PARAMETER, POLICY_FILE_PARAMETER = "model", "policy_file"
README = "Holds no model file: this model is a backend that calls the model named in its configuration.\n"


@dataclass(frozen=True, kw_only=True)
class House:
    """What a platform set by hand."""

    parameters: Mapping[str, str] = field(default_factory=dict)
    """Parameters of the configuration that export does not write."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """Path within the folder -> where such a file lies now."""

    def judges(self, version: int) -> bool:
        """Whether a policy is among it."""
        return bool({POLICY_FILE_PARAMETER, policy_parameter(version)} & set(self.parameters))


def serves(folder: Path, model: str) -> bool:
    """Whether the folder is there and calls `model`. Raises RepositoryError for a configuration that cannot be read."""
    if not (folder / CONFIG).is_file():
        return False
    parameters = read_config(folder / CONFIG).parameters
    called = parameters[MODEL_PARAMETER].string_value if MODEL_PARAMETER in parameters else MODEL_NAME
    return called == model


def house_of(folder: Path, model: str) -> House:
    """Read what was set by hand; nothing where there is no such folder or it calls another model. Raises RepositoryError."""
    if not serves(folder, model):
        return House()
    parameters = read_config(folder / CONFIG).parameters
    ours = {CONFIG, "1/README"}
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return House(
        parameters={key: each.string_value for key, each in parameters.items() if key != MODEL_PARAMETER},
        files={name: path for name, path in files.items() if name not in ours},
    )


def is_wanted(state: State, active: Version, house: House) -> bool:
    """Whether there is to be one: not without a policy, because it could decide nothing and would not load."""
    return state.encoded and (active.policy is not None or house.judges(active.number))


def stage_encoded(target: Path, active: Version, state: State, house: House) -> None:
    """Write the whole folder.

    Its backend reads specs and policies out of the first model's configuration, so none are repeated here.
    """
    assert target.name == ENCODED_MODEL_NAME
    (target / "1").mkdir(parents=True)
    (target / "1" / "README").write_text(README)
    config = encoded_config(spec=active.spec, serving=state.serving.resolved())
    check_target(config, active.target)
    (target / CONFIG).write_text(to_text(config), encoding="utf-8")
    _add(target, house)


def keep_settings(before: Path, staged: Path, model: str) -> None:
    """Add what was set by hand in the folder `before` to a staged one that brings no settings of its own."""
    if serves(staged, model) and house_of(staged, model) == House():
        _add(staged, house_of(before, model))


def _add(target: Path, house: House) -> None:
    config = read_config(target / CONFIG)
    set_parameters(config, house.parameters)
    (target / CONFIG).write_text(to_text(config), encoding="utf-8")
    for name, path in house.files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target / name)
