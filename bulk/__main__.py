"""Command line: `python -m bulk SOURCE --out RESULT` judges a back-catalogue; `python -m bulk shadow SOURCE --out RESULT` compares two versions."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

import tyro

from bulk.config import BulkConfig
from moderation_client import ModerationError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0 done, 1 stopped or a bound missed, 2 a wrong option, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _shadow(words[1:]) if words[:1] == ["shadow"] else _bulk(words)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModerationError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: what is done is kept, the same command goes on", file=sys.stderr)
        return 130


def _bulk(words: Sequence[str]) -> int:
    config = tyro.cli(BulkConfig, args=words, prog="python -m bulk", description=__doc__)
    from bulk.run import run_bulk  # noqa: PLC0415  pyarrow takes a while: --help must not
    from bulk.work import step_back  # noqa: PLC0415

    step_back(config.nice)
    run_bulk(config)
    return 0


def _shadow(words: Sequence[str]) -> int:
    from bulk.shadow import ShadowConfig, run_shadow  # noqa: PLC0415  as above
    from bulk.work import step_back  # noqa: PLC0415

    config = tyro.cli(ShadowConfig, args=words, prog="python -m bulk shadow")
    step_back(config.nice)
    return run_shadow(config)


if __name__ == "__main__":
    sys.exit(main())
