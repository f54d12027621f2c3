"""Stand-in for Triton's C++ ONNX Runtime backend, for servers that have none: the same config.pbtxt, pip's onnxruntime.

One instance is one process with one session; one call of `execute` is one run over the batch that Triton's batcher formed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils  # exists inside Triton's stub only
from ort_manifest import verify_files
from ort_options import providers, session_options
from ort_signature import check_signature


class TritonPythonModel:
    """One instance of an ONNX model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the session. Raises TritonModelException with the words of the C++ backend where it has some."""
        config = json.loads(args["model_config"])
        version = Path(args["model_repository"]) / args["model_version"]
        try:
            path = _model_file(version, config)
            verify_files(version, path)
            options = session_options(config)
            self._session = ort.InferenceSession(
                str(path), options, providers=providers(config, args["model_instance_kind"], args, options)
            )
            check_signature(self._session, config)
        except (
            Exception
        ) as error:  # whatever ONNX Runtime says about the file is the reason that Triton must log
            raise pb_utils.TritonModelException(str(error)) from error
        self._inputs = [each["name"] for each in config["input"]]
        self._outputs = [each["name"] for each in config["output"]]
        self._batched = int(config.get("max_batch_size", 0)) > 0

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer the requests: one run for all when the model batches, else one run each."""
        if self._batched and len(requests) > 1:
            return self._run(requests)
        return [self._run([request])[0] for request in requests]

    def _run(self, requests: Sequence[Any]) -> list[Any]:
        wanted = [
            name for name in self._outputs if any(name in each.requested_output_names() for each in requests)
        ]
        try:
            feed, sizes = self._feed(requests)
            values = dict(zip(wanted, self._session.run(wanted, feed), strict=True))
        except Exception as error:  # noqa: BLE001  # one answer to every request, whatever broke; the process lives on
            failure = pb_utils.TritonError(f"onnx runtime error: {error}")
            return [pb_utils.InferenceResponse(output_tensors=[], error=failure) for _ in requests]
        responses, start = [], 0
        for request, size in zip(requests, sizes, strict=True):
            names = [name for name in wanted if name in request.requested_output_names()]
            stop = start + size
            tensors = [
                pb_utils.Tensor(name, values[name][start:stop] if self._batched else values[name])
                for name in names
            ]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
            start = stop
        return responses

    def _feed(self, requests: Sequence[Any]) -> tuple[dict[str, Any], list[int]]:
        """Input tensors of the batch, and how many rows each request has. A single request is not copied."""
        feed = {}
        sizes = [1] * len(requests)
        for name in self._inputs:
            arrays = [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for request in requests]
            sizes = [len(array) if self._batched else 1 for array in arrays]
            feed[name] = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        return feed, sizes


def _model_file(version: Path, config: dict[str, Any]) -> Path:
    """Find the ONNX file that the configuration names; a folder of that name holds a `model.onnx`."""
    path = version / (config.get("default_model_filename") or "model.onnx")
    if path.is_dir():
        path /= "model.onnx"
    if not path.is_file():
        raise FileNotFoundError(f"unable to find '{path}' for model instance '{config['name']}'")
    return path
