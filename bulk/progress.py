"""What a person sees while a backfill runs: a bar with rate, time left and cost; and what it came to at the end."""

from __future__ import annotations

import time
from types import TracebackType

from tqdm import tqdm

from bulk.plan import Plan
from bulk.rows import Counts


class Progress:
    """A bar over images. Nothing is written when standard error is no terminal."""

    def __init__(self, plan: Plan, num_shards: int, num_images: int, *, cost_per_hour: float | None) -> None:
        """`num_shards` and `num_images` of an earlier run count, but do not make this run look fast."""
        self._plan = plan
        self._cost_per_hour = cost_per_hour
        self._num_shards = num_shards
        self._num_images = self._num_before = num_images
        self._began = time.monotonic()
        self._bar = tqdm(
            total=plan.num_images,
            initial=self._num_before,
            unit="image",
            disable=None,
            smoothing=0.05,
            dynamic_ncols=True,
        )

    def __enter__(self) -> Progress:
        """Enter the block that ends the bar."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self._bar.close()

    @property
    def elapsed_s(self) -> float:
        """Length of this run so far."""
        return time.monotonic() - self._began

    def images(self, number: int = 1) -> None:
        """Tell that so many images were judged."""
        self._num_images += number
        self._bar.update(number)

    def shard_done(self) -> None:
        """A shard is committed: the estimates are made anew."""
        self._num_shards += 1
        total = self._plan.num_images
        if total is None:  # tars: as many images in each as in those that are done
            total = round(self._num_images / self._num_shards * self._plan.num_shards)
            self._bar.total = total
        if self._cost_per_hour is not None:
            elapsed_s = self.elapsed_s
            all_s = estimate_s(elapsed_s, self._num_images - self._num_before, total - self._num_before)
            spent, all_of_it = (cost(each, self._cost_per_hour) for each in (elapsed_s, all_s))
            self._bar.set_postfix_str(f"cost {spent:.2f} of about {all_of_it:.2f}")


def estimate_s(elapsed_s: float, done: int, total: int) -> float:
    """Length of the whole run, at the rate so far."""
    return elapsed_s if not done else elapsed_s * max(total, done) / done


def cost(seconds: float, per_hour: float) -> float:
    """Price of so long a run, in the currency of `per_hour`."""
    return seconds / 3600 * per_hour


def summary(counts: Counts, *, num_now: int, elapsed_s: float, cost_per_hour: float | None) -> str:
    """Lines for the end of a run."""
    decisions = ", ".join(f"{number:,} {word}" for word, number in sorted(counts.decisions.items()))
    rate = num_now / elapsed_s if elapsed_s > 0 else 0.0
    lines = [
        f"images     {counts.num_images:,} ({decisions})",
        f"errors     {counts.num_errors:,} could not be judged; their rows say why",
        f"versions   model {_words(counts.model_versions)}; policy {_words(counts.policy_versions)}",
        f"this run   {num_now:,} images in {elapsed_s:,.1f} s, {rate:,.1f} a second",
    ]
    if cost_per_hour is not None and rate:
        spent = cost(elapsed_s, cost_per_hour)
        lines.append(
            f"cost       {spent:.2f}, {cost(1e6 / rate, cost_per_hour):.2f} for a million images at this rate"
        )
    return "\n".join(lines)


def _words(versions: dict[str, int]) -> str:
    return ", ".join(f"{name} ({number:,})" for name, number in sorted(versions.items())) or "none"
