"""How the files of a run are written: in whole or not at all, and a full disk is told in a sentence."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import safetensors
from safetensors.torch import save_file
from torch import Tensor

from train.errors import RunError


def write_text(path: Path, text: str) -> None:
    """Write a text file. Raises RunError when the disk is full or the folder not ours."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file. Raises RunError as above."""
    part = path.with_name(f"{path.name}.part")
    kept = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    try:
        save_file(kept, part)
        part.chmod(0o644)  # safetensors writes for the owner alone
        part.replace(path)
    except (OSError, safetensors.SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise RunError(f"{path} cannot be written: {error}") from error
