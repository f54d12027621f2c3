"""Which labels, size and recommended policy belong to the version that answered; read from the server, kept per version.

Export writes `parameters["spec.<version>"]` into the Triton model configuration. A version that is not known yet makes the
client read the configuration again; one that is still not in it cannot be judged, and so never is with the wrong labels.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moderation_client._errors import ContractError
from moderation_client.contract import IMAGE_INPUT, SCORES_OUTPUT, ModelSpec, policy_parameter, spec_parameter
from moderation_client.policy import Policy


@dataclass(frozen=True)
class ServedModel:
    """What the server's configuration says: batch limit, and spec and policy per version."""

    max_batch: int
    specs: Mapping[str, ModelSpec]
    policies: Mapping[str, Policy]
    problems: Mapping[str, str]
    """Version -> why its spec cannot be used."""


def read_config(config: Mapping[str, Any]) -> ServedModel:
    """Understand a Triton model configuration. Raises ContractError that names what differs from the contract.

    One unusable version is noted, not raised: it must not break its neighbours.
    """
    with readable(config):
        return _read_config(config)


@contextlib.contextmanager
def readable(config: Mapping[str, Any]) -> Iterator[None]:
    """Turn what a configuration of another shape makes its reader trip over into ContractError."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ContractError(
            f"the configuration of model {config.get('name', '?')!r} is not usable: {error!r}"
        ) from error


def _read_config(config: Mapping[str, Any]) -> ServedModel:
    name, max_batch = config.get("name", "?"), int(config.get("max_batch_size", 0))
    if max_batch < 1:
        raise ContractError(f"model {name!r} has max_batch_size {max_batch}; moderation models take batches")
    texts = {key: each.get("string_value", "") for key, each in config.get("parameters", {}).items()}
    specs, policies, problems = {}, {}, {}
    prefix = spec_parameter("")
    for key in sorted(key for key in texts if key.startswith(prefix)):
        version = key.removeprefix(prefix)
        try:
            spec = ModelSpec.from_json(texts[key])
            check_tensors(config, spec)
            specs[version] = spec
            if (text := texts.get(policy_parameter(version))) is not None:
                policies[version] = Policy.from_json(text)
        except Exception as error:  # noqa: BLE001  whatever a foreign configuration holds, only this version is lost
            problems[version] = str(error)
            specs.pop(version, None)
    if not specs and not problems:
        raise ContractError(
            f"model {name!r} carries no spec (no parameter {prefix}<version>): publish it with the export program, "
            "or give the client spec="
        )
    return ServedModel(max_batch, specs, policies, problems)


def check_tensors(config: Mapping[str, Any], spec: ModelSpec) -> None:
    """Compare the server's tensors with the contract. Raises ContractError with both sides."""
    wanted = (
        ("input", IMAGE_INPUT, "TYPE_UINT8", (spec.image.height, spec.image.width, 3)),
        ("output", SCORES_OUTPUT, "TYPE_FP32", (len(spec.labels),)),
    )
    for side, tensor_name, data_type, dims in wanted:
        found = {each["name"]: each for each in config.get(side, ())}
        tensor = found.get(tensor_name)
        if tensor is None:
            raise ContractError(f"model has no {side} {tensor_name!r}, only {sorted(found)}")
        actual = tuple(int(dim) for dim in tensor["dims"])
        fits = len(actual) == len(dims) and all(a in (-1, d) for a, d in zip(actual, dims, strict=True))
        if tensor["data_type"] != data_type or not fits:
            raise ContractError(
                f"model's {side} {tensor_name!r} is {tensor['data_type']} {list(actual)}, "
                f"the contract says {data_type} {list(dims)}"
            )


class SpecBook:
    """Thread-safe memory of what each version is."""

    def __init__(self, local: ModelSpec | None, max_batch: int | None) -> None:
        """`local` replaces what the server says; `max_batch` is then what a request may hold."""
        self._lock = threading.Lock()
        self._local = local
        self._limit = max_batch
        self._served: ServedModel | None = None
        self._latest: str | None = None
        self._stale = False

    @property
    def needs_reading(self) -> bool:
        """Whether the server's configuration must be read before an image can be prepared."""
        return self._local is None and self._served is None

    @property
    def is_local(self) -> bool:
        """Whether the caller's own spec replaces what servers say."""
        return self._local is not None

    @property
    def max_batch(self) -> int:
        """Most views in one request."""
        with self._lock:
            served = self._served.max_batch if self._served else 8
            return min(served, self._limit) if self._limit and self._served else self._limit or served

    def learn(self, config: Mapping[str, Any]) -> tuple[ModelSpec, ...]:
        """Take over a configuration that was just read; the specs in it, the newest last.

        It joins what is known, unless that is stale: in a roll-out other replicas still have other versions.
        """
        served = read_config(config)
        with self._lock:
            self._served = served if self._stale or self._served is None else _joined(self._served, served)
            self._stale = False
        return tuple(served.specs[version] for version in sorted(served.specs, key=_as_number))

    def learn_limit(self, max_batch: int) -> None:
        """Take over the batch limit of a model that decodes and decides itself: it needs no specs here."""
        with self._lock:
            self._served = ServedModel(max_batch, {}, {}, {})

    def mark_stale(self) -> None:
        """A server went away: what comes back may be another model under the same version number."""
        with self._lock:
            self._stale = self._served is not None

    def knows(self, version: str) -> bool:
        """Whether answers of `version` can be read without asking the server again."""
        if self._local is not None:
            return True
        with self._lock:
            return self._served is not None and not self._stale and version in self._served.specs

    def spec(self, version: str) -> ModelSpec:
        """Spec of the version that answered. Raises ContractError when nobody knows it."""
        if self._local is not None:
            return _local_for(self._local, version)
        with self._lock:
            served = self._served
        if served is None or version not in served.specs:
            why = (
                served.problems.get(version, "the server's configuration has no such spec")
                if served
                else "unread"
            )
            raise ContractError(f"version {version} answered, but its spec is not usable: {why}")
        self._latest = version
        return served.specs[version]

    def current(self, pinned: str = "") -> ModelSpec:
        """Spec to prepare images by: the pinned version's, else of the one that answered last, else the newest."""
        if self._local is not None:
            return _local_for(self._local, pinned) if pinned else self._local
        if pinned:
            return self.spec(pinned)
        with self._lock:
            served, latest = self._served, self._latest
        if served is None or not served.specs:
            raise ContractError(
                f"no version's spec is usable: {dict(served.problems) if served else 'unread'}"
            )
        newest = latest if latest in served.specs else max(served.specs, key=_as_number)
        return served.specs[newest or ""]

    def policy(self, version: str) -> Policy | None:
        """Policy that travels with the version, if its owner lets it."""
        with self._lock:
            return self._served.policies.get(version) if self._served else None


def _joined(known: ServedModel, new: ServedModel) -> ServedModel:
    """What both say; the newer one where they differ, and the smaller batch, which every replica takes."""
    policies = {version: each for version, each in known.policies.items() if version not in new.specs}
    return ServedModel(
        min(known.max_batch, new.max_batch),
        {**known.specs, **new.specs},
        {**policies, **new.policies},
        {**known.problems, **new.problems},
    )


def _local_for(spec: ModelSpec, version: str) -> ModelSpec:
    """Check the caller's own spec against the version that answered; without a version it is taken for all."""
    if spec.version is not None and str(spec.version) != version:
        raise ContractError(f"version {version} answered, the given spec is of version {spec.version}")
    return spec


def _as_number(version: str) -> int:
    return int(version) if version.isdigit() else -1
