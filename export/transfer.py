"""Copies a repository to an object store and back, by fsspec: files first, named by their sha256; one small index last.

An object store has no rename: whoever reads while a push runs must see the old state or the new one. So files are written under
`objects/<sha256>` where they are never changed, and `index.json`, which says which path has which content, is the commit point.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import fsspec

from export.commit import open_staging
from export.contents import check_index, check_model, refuse
from export.encoded import keep_settings
from export.errors import RepositoryError, TransferError
from export.repository import STATE
from export.swap import Swap
from export.version import sha256_of
from moderation_client.contract import ENCODED_MODEL_NAME, MODEL_NAME

INDEX = "index.json"
INDEX_SCHEMA_VERSION = 1


def push(repository: Path, url: str, *, model: str = MODEL_NAME) -> int:
    """Write the model to `url` (`s3://bucket/path`, `file:///path`, ...); how many files had to be sent.

    Raises TransferError, or RepositoryError for files that are not as published, and then the store still shows what it showed before.
    """
    with open_staging(repository):
        check_model(repository, model)
        index = {str(path.relative_to(repository)): sha256_of(path) for path in _files(repository, model)}
        if not index:
            raise RepositoryError(f"{repository} holds no model {model!r}; publish one: python -m export RUN")
        refuse(index, model)
        store, root = _open(url)
        try:
            sent = _send(store, root, repository, index)
            payload = {"schema_version": INDEX_SCHEMA_VERSION, "model": model, "files": index}
            store.pipe_file(f"{root}/{INDEX}", json.dumps(payload, indent=1).encode())
        except (OSError, ValueError) as error:
            raise TransferError(
                f"push to {url} failed, it still shows what it showed before: {error}"
            ) from error
    return sent


def pull(url: str, repository: Path) -> int:
    """Bring what `push` wrote into `repository`, checked, in one swap for each model; how many files there are.

    What a platform set by hand for the model that takes encoded files stays, unless the pushed folder has settings of its own.
    Raises TransferError or RepositoryError, and then the repository is as it was.
    """
    store, root = _open(url)
    model, files = check_index(_read_index(store, root, url))
    with open_staging(repository) as staging:
        stage = staging.new_folder()
        for relative, digest in files.items():
            _receive(store, root, digest, _inside(stage, relative))
        try:
            check_model(stage, model)
        except RepositoryError as error:
            raise TransferError(f"what {url} holds is not used: {error}") from error
        if not (stage / model / STATE).is_file():
            raise TransferError(f"what {url} holds is not used: it has no {model}/{STATE}")
        keep_settings(repository / ENCODED_MODEL_NAME, stage / ENCODED_MODEL_NAME, model)
        Swap(staging=staging).apply(stage, model)
    return len(files)


def _files(repository: Path, model: str) -> list[Path]:
    folders = [
        repository / name
        for name in (model, ENCODED_MODEL_NAME)
        if (repository / name / "config.pbtxt").exists()
    ]
    found = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return found if (repository / model / STATE).exists() else []


def _open(url: str) -> tuple[Any, str]:
    try:
        store, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise TransferError(f"{url} cannot be opened: {error}") from error
    return store, str(root).rstrip("/")


def _send(store: Any, root: str, repository: Path, index: dict[str, str]) -> int:
    store.makedirs(f"{root}/objects", exist_ok=True)
    sent = 0
    for relative, digest in index.items():
        target = f"{root}/objects/{digest}"
        local = repository / relative
        if not (store.exists(target) and store.size(target) == local.stat().st_size):
            store.put_file(str(local), target)
            sent += 1
    return sent


def _read_index(store: Any, root: str, url: str) -> dict[str, Any]:
    try:
        payload = json.loads(store.cat_file(f"{root}/{INDEX}"))
    except FileNotFoundError as error:
        raise TransferError(f"{url} has no {INDEX}: nothing was pushed there, or not to its end") from error
    except (OSError, ValueError) as error:
        raise TransferError(f"{url}/{INDEX} cannot be read: {error}") from error
    if not isinstance(payload, dict):
        raise TransferError(f"{url}/{INDEX} is not the index of a push: it holds no object")
    if payload.get("schema_version") != INDEX_SCHEMA_VERSION:
        raise TransferError(
            f"{url}/{INDEX} has schema_version {payload.get('schema_version')!r}, not {INDEX_SCHEMA_VERSION}"
        )
    return payload


def _inside(folder: Path, relative: str) -> Path:
    """Refuse a path that leads out of the folder. Raises TransferError."""
    target = (folder / relative).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise TransferError(f"{INDEX} names the path {relative!r}, which leads out of the repository")
    return target


def _receive(store: Any, root: str, digest: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        content = store.cat_file(f"{root}/objects/{digest}")
    except OSError as error:
        raise TransferError(f"object {digest} of {target.name} cannot be read: {error}") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise TransferError(f"object {digest} of {target.name} has another content: the store damaged it")
    target.write_bytes(content)
