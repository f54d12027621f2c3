"""A publisher that was killed in the middle of a swap left a journal beside the repository: the swap is completed before the start.

Only file systems that cannot exchange two folders at once need a journal. It names three places; the model folder is missing from
the repository only between two renames, and then the new one is complete and synced. `python -m export` does the same before each
of its own changes, under the same lock.
"""

from __future__ import annotations

import fcntl
import json
import logging
from pathlib import Path

from serve.errors import RepositoryError

logger = logging.getLogger("serve")


def complete(repository: Path) -> None:
    """Put the model folder in its place that a killed publisher was about to put there.

    Raises RepositoryError, with the command to run, where that is not possible (a read-only mount, say).
    """
    repository = repository.resolve()
    staging = repository.parent / f".{repository.name}.staging"
    journal = staging / "journal.json"
    if not journal.is_file():
        return
    try:
        with (staging / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _swap(repository, staging, journal)
    except BlockingIOError:
        return  # its publisher lives: what is there now is one complete state, or is in a moment
    except OSError as error:
        raise RepositoryError(
            f"a publisher was killed while it changed {repository}, and the change cannot be completed here ({error}); "
            f"run `python -m export recover {repository}` where that folder can be written"
        ) from error


def _swap(repository: Path, staging: Path, journal: Path) -> None:
    """Finish as the journal says; its places are looked for here, wherever the repository was mounted when it was written."""
    entry = _read(journal)
    if entry is None:
        return  # cut short before anything was moved: the next publisher removes it
    target = repository / entry["target"].name
    if not target.exists():
        places = [staging.joinpath(*entry[key].parts[-2:]) for key in ("staged", "aside")]
        source = next((each for each in places if each.is_dir()), None)
        if source is None:
            raise OSError(f"neither {places[0]} nor {places[1]} is there")
        source.rename(target)
        logger.warning("completed the change of %s that a killed publisher had begun", target)
    journal.unlink()


def _read(journal: Path) -> dict[str, Path] | None:
    """Give the three places, or None where the journal was not written to its end."""
    try:
        entry = json.loads(journal.read_bytes())
        return {key: Path(entry[key]) for key in ("staged", "target", "aside")}
    except (ValueError, KeyError, TypeError):
        return None
