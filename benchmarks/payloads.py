"""Requests made before the clock starts: the generator has nothing left to do but send them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.load import Job, Schedule
from benchmarks.senders import Route
from benchmarks.subject import Subject
from benchmarks.target import encoded_message, pixel_message
from moderation_client.contract import ENCODED_MODEL_NAME
from moderation_client.images import decode

Input = Literal["pixels", "encoded"]


@dataclass(frozen=True, kw_only=True)
class Payloads:
    """Makes the job of any point from one set of pictures."""

    subject: Subject
    route: Route
    files: Sequence[bytes]
    schedule: Schedule

    @functools.cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """First view of every picture, prepared as the client does: uint8 [num_images, H, W, 3]."""
        return np.stack([decode(file, self.subject.spec.image).pixels[0] for file in self.files])

    def requests(self, input_: Input, batch_size: int) -> list[Any]:
        """One request a picture, of that picture and the following ones."""
        indices = [
            list(itertools.islice(itertools.cycle(range(len(self.files))), start, start + batch_size))
            for start in range(len(self.files))
        ]
        by_client = self.route.via == "client"
        if input_ == "encoded":
            batches = [[self.files[index] for index in each] for each in indices]
            return list(batches) if by_client else [encoded_message(batch) for batch in batches]
        arrays = [self.pixels[each] for each in indices]
        return [list(each) for each in arrays] if by_client else [pixel_message(each) for each in arrays]

    def job(self, input_: Input, batch_size: int, concurrency: int) -> Job:
        """Job of one point; encoded files over the wire go to the model that decodes, whose statistics are then read."""
        decodes_there = input_ == "encoded" and self.route.via == "wire"
        where = self.subject.with_model(ENCODED_MODEL_NAME) if decodes_there else self.subject
        return Job(
            route=self.route,
            requests=self.requests(input_, batch_size),
            images_per_request=batch_size,
            concurrency=concurrency,
            schedule=self.schedule,
            statistics=where.statistics,
            server_pids=self.subject.pids,
        )
