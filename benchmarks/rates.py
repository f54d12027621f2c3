"""Throughput from the moments of the answers, so that a batch counts whole or not at all.

A server that batches answers in lumps. Whatever is counted in a fixed window is then a multiple of the batch: at 20 images/s a window of
2 s holds 32, 40 or 48, whatever the server does. Here time runs from the end of one lump to the end of another, and what came in between is counted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

GAP_SHARE = 0.3
"""A gap of more than this share of the mean gap ends a lump; within one, answers come one after the other at once."""
SINGLE = 1.5
"""Lumps with fewer answers than this on average are none: then every answer is a border."""
MIN_COVERED = 0.5
"""Of the window: where lumps cover less (a stall, or hardly any answers) the plain count is more honest."""


def answers_per_s(ended_s: Sequence[float], start_s: float, end_s: float) -> float:
    """Answers a second within a window; `ended_s` may reach beyond it on both sides, which shows where its last lump ends."""
    ended = np.sort(np.asarray(ended_s, dtype=np.float64))
    inside = int(np.count_nonzero((ended >= start_s) & (ended < end_s)))
    plain = inside / max(end_s - start_s, 1e-9)
    if inside < 3:
        return plain
    gaps = np.append(np.diff(ended), np.inf)
    is_border = gaps > GAP_SHARE / plain
    within = (ended >= start_s) & (ended < end_s)
    if inside < SINGLE * np.count_nonzero(is_border & within):
        is_border[:] = True
    borders = np.flatnonzero(is_border & within)
    if borders.size < 2:
        return plain
    first, last = int(borders[0]), int(borders[-1])
    covered_s = float(ended[last] - ended[first])
    return (last - first) / covered_s if covered_s >= MIN_COVERED * (end_s - start_s) else plain
