"""Requests that leave when they are due, in phases of different rates, with what became of each and when."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from benchmarks.senders import error_kind, unary
from benchmarks.target import UNLIMITED, pixel_message

UNANSWERED = "unanswered"


@dataclass(frozen=True)
class Sent:
    """One request: when it was due and when it was over, in seconds of the run; error "" when it was answered."""

    due_s: float
    done_s: float
    error: str

    @property
    def latency_ms(self) -> float:
        """From due to over."""
        return (self.done_s - self.due_s) * 1000


def message(pixels: Any, priority: int) -> bytes:
    """Serialise a request with a priority."""
    request = service_pb2.ModelInferRequest.FromString(pixel_message(pixels))
    request.parameters["priority"].uint64_param = priority
    return bytes(request.SerializeToString())


def offer(
    url: str, content: bytes, phases: Sequence[tuple[float, float]], *, deadline_s: float, seed: int
) -> list[Sent]:
    """Send when due, by (seconds, requests a second) one after the other; what became of each request."""
    sent: list[Sent] = []
    waiting: dict[int, float] = {}
    rng = np.random.default_rng(seed)
    with grpc.insecure_channel(url, options=UNLIMITED) as channel:
        grpc.channel_ready_future(channel).result(timeout=deadline_s)
        call, began = unary(channel), time.perf_counter()

        def over(number: int, due_s: float, future: Any) -> None:
            kind = "" if (error := future.exception()) is None else error_kind(error)
            sent.append(Sent(due_s, time.perf_counter() - began, kind))
            waiting.pop(number, None)

        num_asked, end_s, due_s = 0, 0.0, 0.0
        for duration_s, rate_per_s in phases:
            end_s += duration_s
            while (due_s := due_s + rng.exponential(1 / rate_per_s)) < end_s:
                time.sleep(max(0.0, due_s - (time.perf_counter() - began)))
                waiting[num_asked] = due_s
                call.future(content, timeout=deadline_s).add_done_callback(partial(over, num_asked, due_s))
                num_asked += 1
            due_s = end_s
        give_up = time.perf_counter() + deadline_s + 1.0
        while waiting and time.perf_counter() < give_up:
            time.sleep(0.01)
        lost = [Sent(due, time.perf_counter() - began, UNANSWERED) for due in list(waiting.values())]
        return sorted([*sent, *lost], key=lambda each: each.due_s)


def offer_there(
    _stop: threading.Event,
    url: str,
    content: bytes,
    phases: tuple[tuple[float, float], ...],
    deadline_s: float,
) -> list[Sent]:
    """Do the same in a worker's process."""
    return offer(url, content, phases, deadline_s=deadline_s, seed=len(content))
