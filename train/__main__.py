"""Command line: `python -m train [--preset demo …]` trains; `python -m train evaluate RUN --data …` judges a run on other data."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import tyro

from train.config import PRESETS, TrainConfig
from train.errors import TrainError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0 done, 1 an error that is explained, 2 a wrong option, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words[:1] == ["evaluate"]:
            _evaluate(words[1:])
        else:
            _train(words)
    except TrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; go on with --resume", file=sys.stderr)
        return 130
    return 0


def _train(words: Sequence[str]) -> None:
    config = tyro.cli(
        TrainConfig,
        args=words,
        default=PRESETS[preset_of(words)],
        prog="python -m train",
        description=__doc__,
    )
    from train.pipeline import train  # noqa: PLC0415 - torch takes seconds; --help must not
    from train.summary import print_summary  # noqa: PLC0415

    run = train(config)
    if run is not None:
        print_summary(run)


def _evaluate(words: Sequence[str]) -> None:
    from train.evaluation import EvaluateConfig, run_evaluation  # noqa: PLC0415 - as above

    run_evaluation(tyro.cli(EvaluateConfig, args=words, prog="python -m train evaluate"))


def preset_of(words: Sequence[str]) -> str:
    """Find --preset among the arguments: it decides the defaults of all others. Raises TrainError."""
    for index, word in enumerate(words):
        option, _, value = word.partition("=")
        if option == "--preset":
            value = value or (words[index + 1] if index + 1 < len(words) else "")
            if value not in PRESETS:
                raise TrainError(f"preset {value!r} is not one of {', '.join(PRESETS)}")
            return value
    return "default"


if __name__ == "__main__":
    sys.exit(main())
