"""Triton backend `moderation_encoded`: a picture's file as it is in, a decision out, for callers in any language.

Decodes with the client's own decoder, asks the model `moderation` on the same server (its dynamic batcher merges what the
instances ask for), and decides with the client's own policy. The configuration it expects, batch dimension first:

    name: "moderation_encoded"   backend: "moderation_encoded"   max_batch_size: 8
    input   { name: "encoded" data_type: TYPE_STRING dims: [1] }
    output  { name: "scores"  data_type: TYPE_FP32   dims: [-1] }           as many as the version that answers has
    output  { name: "verdict" data_type: TYPE_STRING dims: [1] }       JSON of `Verdict.to_dict()`
    instance_group { count: N kind: KIND_CPU }    each instance decodes one picture at a time: as many as cores
    dynamic_batching { default_queue_policy { max_queue_size: ... } }  its own queue
    parameters "spec.<version>", "policy.<version>": as in the inner model's configuration (`encoded_versions.py`
      says when they are needed); "model" (default moderation), "on_error" (review or block),
      "limit.<field of ImageLimits>" (a number), "policy_file" (path within the model's folder, read again when it changes)

A picture that cannot be judged is an answer: its verdict has `error` set and is never `allow`, its scores are all
FAILED_SCORE. Trouble of the inner model (its queue is full, it is not loaded) is such an answer too.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # exists inside Triton's stub only
from encoded_judge import FAILED_SCORE, Job, judge
from encoded_settings import Settings, VersionGoneError
from encoded_versions import ServedVersion, VersionBook

from moderation_client import ImageSpec, InvalidImageError, ModelNotReadyError, ServiceError
from moderation_client.contract import ENCODED_INPUT, IMAGE_INPUT, SCORES_OUTPUT, VERDICT_OUTPUT
from moderation_client.images import decode

_NUM_ATTEMPTS = 2
"""A version can be unloaded between our choosing it and its answering: then once more with the one that is there now."""

_WARM_UP = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4//8/AAX+Av4N70a4AAAAAElFTkSuQmCC"
)
"""A white pixel as PNG: decoding it loads the decoder before the first caller waits for it."""


class TritonPythonModel:
    """One instance: a process that decodes one batch at a time."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the configuration. Raises TritonModelException that names what is wrong with it."""
        config = json.loads(args["model_config"])
        try:
            self._settings = Settings.read(config, args["model_repository"])
            self._versions = VersionBook(
                config["name"], self._settings, is_ready=self._is_ready, warn=pb_utils.Logger.log_warn
            )
            decode(_WARM_UP, ImageSpec(height=8, width=8))
        except Exception as error:  # whatever it is, the reason belongs into Triton's log
            raise pb_utils.TritonModelException(f"{type(error).__name__}: {error}") from error

    async def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer every request; a picture that cannot be judged never fails its neighbours."""
        jobs = [_jobs(request) for request in requests]
        flat = [job for each in jobs for job in each]
        version = await self._judge(flat)
        return [_response(each, version) for each in jobs]

    async def _judge(self, jobs: list[Job]) -> ServedVersion | None:
        """Give every job its verdict; the version whose labels the scores are of."""
        for attempt in range(_NUM_ATTEMPTS):
            version: ServedVersion | None = None
            try:
                version = self._versions.current()
                for job in jobs:
                    self._decode(job, version)
                await self._infer(jobs, version)
            except VersionGoneError as error:
                self._versions.forget()
                if attempt < _NUM_ATTEMPTS - 1:
                    continue
                for job in jobs:
                    job.error = job.error or ModelNotReadyError(str(error))
            break
        for job in jobs:
            judge(job, version, self._settings.on_error)
        return version

    def _decode(self, job: Job, version: ServedVersion) -> None:
        with job.stopwatch("decode_ms"):
            try:
                job.image = decode(job.encoded, version.spec.image, self._settings.limits)
            except InvalidImageError as error:
                job.error = error

    async def _infer(self, jobs: list[Job], version: ServedVersion) -> None:
        """Scores of every view, in requests of at most the batch size, all at once."""
        decoded = [job for job in jobs if job.image is not None]
        if not decoded:
            return
        pixels = [job.image.pixels for job in decoded if job.image is not None]
        views = pixels[0] if len(pixels) == 1 else np.concatenate(pixels)
        size = self._versions.batch_size
        chunks = [views[start : start + size] for start in range(0, len(views), size)]
        with decoded[0].stopwatch("infer_ms"):
            answers = await asyncio.gather(*(self._ask(chunk, version) for chunk in chunks))
        owners = [job for job in decoded for _ in job.image.pixels]
        for number, answer in enumerate(answers):
            owned = owners[number * size : (number + 1) * size]
            for position, job in enumerate(owned):
                job.timing["infer_ms"] = decoded[0].timing["infer_ms"]
                if isinstance(answer, ServiceError):
                    job.error = answer
                else:
                    job.scores.append(answer[position])

    async def _ask(self, views: Any, version: ServedVersion) -> Any:
        """Scores float32 [num_views, num_labels] by the inner model, or the ServiceError that it answered with."""
        request = pb_utils.InferenceRequest(
            model_name=self._settings.model,
            model_version=version.number,
            requested_output_names=[SCORES_OUTPUT],
            inputs=[pb_utils.Tensor(IMAGE_INPUT, np.ascontiguousarray(views))],
        )
        response = await request.async_exec()
        if response.has_error():
            return self._settings.meaning(response.error().message())
        scores = pb_utils.get_output_tensor_by_name(response, SCORES_OUTPUT).as_numpy()
        return scores.copy()  # the tensor's memory goes with the response

    def _is_ready(self, version: int) -> bool:
        return bool(pb_utils.is_model_ready(self._settings.model, str(version)))


def _jobs(request: Any) -> list[Job]:
    encoded = pb_utils.get_input_tensor_by_name(request, ENCODED_INPUT).as_numpy()
    name = request.request_id()
    items = encoded.reshape(-1).tolist()
    return [
        Job(id=(name if len(items) == 1 else f"{name}/{index}") if name else index, encoded=item)
        for index, item in enumerate(items)
    ]


def _response(jobs: list[Job], version: ServedVersion | None) -> Any:
    """Scores float32 [N, num_labels], the maximum over each picture's views, and verdicts BYTES [N, 1]."""
    num_labels = version.num_labels if version is not None else 1
    scores = np.full((len(jobs), num_labels), FAILED_SCORE, dtype=np.float32)
    for row, job in zip(scores, jobs, strict=True):
        if job.verdict.error is None:
            row[:] = np.max(job.scores, axis=0)
    texts = [[json.dumps(job.verdict.to_dict(), allow_nan=False).encode()] for job in jobs]
    wanted = [
        pb_utils.Tensor(SCORES_OUTPUT, scores),
        pb_utils.Tensor(VERDICT_OUTPUT, np.array(texts, dtype=np.object_)),
    ]
    return pb_utils.InferenceResponse(output_tensors=wanted)
