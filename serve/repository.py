"""What a model repository holds, and whether it may be served: no links, no path tricks, no code, files as published."""

from __future__ import annotations

import functools
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import tritonclient
from google.protobuf import text_format

from serve import code
from serve.backends.onnxruntime.ort_manifest import ManifestError, verify_files
from serve.errors import EmptyRepositoryError, RepositoryError, UnsafeRepositoryError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"[1-9]\d*|0")


def models(repository: Path, wanted: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Names of the models to load: `wanted` when given, else all that there are.

    Raises EmptyRepositoryError (with what to run) when there is nothing, UnsafeRepositoryError for what must not be
    loaded, RepositoryError when a wanted model is not there or a folder cannot be read.
    """
    try:
        found = (
            sorted(each.name for each in repository.iterdir() if _is_model(each))
            if repository.is_dir()
            else []
        )
    except OSError as error:
        raise RepositoryError(f"model repository {repository} cannot be read: {error.strerror}") from error
    if not found:
        raise EmptyRepositoryError(
            f"model repository {repository.resolve()} holds no model; `python -m export RUN --repository {repository}` "
            "fills it"
        )
    missing = sorted(set(wanted) - set(found))
    if missing:
        raise RepositoryError(f"no model {', '.join(missing)} in {repository}; there are: {', '.join(found)}")
    chosen = tuple(wanted) or tuple(found)
    for name in chosen:
        check_model(repository / name)
    return chosen


def check_model(model: Path) -> None:
    """Refuse a model folder that holds anything but what was published into it. Raises UnsafeRepositoryError.

    Code is looked for before the sums are made, and also in a version that nobody has published.
    """
    check_code(model)
    for version in versions(model):
        try:
            verify_files(version)
        except ManifestError as error:
            raise UnsafeRepositoryError(str(error)) from error
        code.refuse_unlisted(version)


def check_code(model: Path) -> None:
    """Refuse names, links and code; reads no model file, so it is quick. Raises UnsafeRepositoryError."""
    if not _NAME.fullmatch(model.name):
        raise UnsafeRepositoryError(
            f"model name {model.name!r} may hold letters, digits, '.', '_' and '-' only"
        )
    for path in [model, *model.rglob("*")]:
        if path.is_symlink():
            raise UnsafeRepositoryError(f"{path} is a symbolic link: copy the file it points to in its place")
    code.refuse_files(model)
    for config in [model / "config.pbtxt", *model.glob("configs/*.pbtxt")]:
        if config.is_file():
            _check_config(config)


def versions(model: Path) -> list[Path]:
    """Version folders that Triton sees, oldest first: numbers without a leading zero."""
    found = [each for each in model.iterdir() if each.is_dir() and _VERSION.fullmatch(each.name)]
    return sorted(found, key=lambda each: int(each.name))


def read_config(path: Path) -> Any:
    """Read a configuration as Triton's `ModelConfig` message. Raises RepositoryError with the parser's words."""
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), _messages().ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError, OSError) as error:
        raise RepositoryError(f"{path}: {error}") from error


@functools.cache
def _messages() -> Any:
    """Triton's protobuf module, without the package that it lies in: that loads grpc and numpy, and every start would wait for them."""
    name = "tritonclient.grpc.model_config_pb2"
    if name not in sys.modules:
        file = Path(tritonclient.__path__[0], "grpc", "model_config_pb2.py")
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module  # so that whoever loads the package later has the same messages
    return sys.modules[name]


def _check_config(path: Path) -> None:
    """File names in a configuration stay inside the version folder."""
    config = read_config(path)
    model = path.parent.parent if path.parent.name == "configs" else path.parent
    if config.name and config.name != model.name:
        raise RepositoryError(f"{path}: name is {config.name!r}, but its folder is {model.name!r}")
    code.refuse_fields(path, config)
    names = [config.default_model_filename, *config.cc_model_filenames.values()]
    names += [each for warmup in config.model_warmup for each in _warmup_files(warmup)]
    for name in filter(None, names):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UnsafeRepositoryError(f"{path}: file name {name!r} leads out of the model's folder")


def _warmup_files(warmup: Any) -> list[str]:
    return [each.input_data_file for each in warmup.inputs.values()]


def _is_model(path: Path) -> bool:
    return path.is_dir() and ((path / "config.pbtxt").is_file() or (path / "configs").is_dir())
