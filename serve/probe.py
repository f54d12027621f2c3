"""Whether a model answers correctly: it is asked about a golden picture, and the scores are compared with the known ones.

A version that was published with golden images (`golden.npy`, uint8 [N, H, W, 3], and their scores per model file in its
manifest) is held to the first of them. One without must go on giving the scores that it gave first. "The server is ready" is not enough: it says
so with every model process dead.
"""

from __future__ import annotations

import base64
import enum
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moderation_client.contract import ENCODED_INPUT, IMAGE_INPUT, SCORES_OUTPUT, VERDICT_OUTPUT
from serve.backends.onnxruntime.ort_manifest import MANIFEST
from serve.local_http import NoAnswerError, Reply, SilentError, ask

GOLDEN = "golden.npy"
_TOLERANCE = 0.05  # INT8 kernels differ a little between processors
_WHITE_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4//8/AAX+Av4N70a4AAAAAElFTkSuQmCC"
)
_BUSY = ("exceeds maximum queue size", "timeout expired")


class Answer(enum.Enum):
    """What came of one golden question."""

    CORRECT = "correct"
    BUSY = "busy"
    """Refused because the queue is full: overloaded, but alive."""
    SILENT = "no answer in time"
    FAILED = "failed"
    WRONG = "wrong scores"


@dataclass(frozen=True)
class Finding:
    """An answer and what was said."""

    answer: Answer
    detail: str = ""


class Prober:
    """Asks the models of one server. Not for use by several threads at once."""

    def __init__(self, http_url: str, repository: Path, *, timeout_s: float) -> None:
        """`http_url` is `TritonServer.http_url`."""
        self._address = http_url
        self._repository = repository
        self._timeout_s = timeout_s
        self._first: dict[tuple[str, str], NDArray[np.float32]] = {}
        self._configs: dict[str, dict[str, Any]] = {}

    def ask(self, model: str) -> Finding:
        """Ask one model."""
        try:
            tensor = self._input(model)
            if tensor is None:
                response = self._request("GET", f"/{model}/ready")
                return Finding(Answer.CORRECT if response.ok else Answer.FAILED)
            encoded = tensor["name"] == ENCODED_INPUT
            return self._encoded(model) if encoded else self._pixels(model, tensor)
        except SilentError as error:
            return Finding(Answer.SILENT, str(error))
        except NoAnswerError as error:
            return Finding(Answer.FAILED, str(error))
        except (ValueError, KeyError, IndexError, TypeError) as error:
            return Finding(Answer.FAILED, f"its answer cannot be read: {error!r}")

    def _input(self, model: str) -> dict[str, Any] | None:
        """The input that a golden picture goes into; None for a model of another kind."""
        config = self._request("GET", f"/{model}/config")
        if not config.ok:
            raise NoAnswerError(config.text)
        self._configs[model] = config.json()  # not kept: a new version may come with another
        names = {each["name"]: each for each in self._configs[model]["input"]}
        return names.get(ENCODED_INPUT) or names.get(IMAGE_INPUT)

    def _pixels(self, model: str, tensor: dict[str, Any]) -> Finding:
        dims = [int(dim) for dim in tensor["dims"]]
        if min(dims) < 1:
            return Finding(Answer.CORRECT, "its input size is free: not asked")
        version = self._newest(model)
        golden = self._golden(model, version, dims)
        images, known = golden if golden is not None else (_gradient(dims), None)
        target = f"{model}/versions/{version}"
        response = self._infer(
            target, IMAGE_INPUT, "UINT8", list(images.shape), images.tobytes(), SCORES_OUTPUT
        )
        if not response.ok:
            return _refused(response)
        output = response.json()["outputs"][0]
        scores = np.array(output["data"], dtype=np.float32).reshape(output["shape"])
        expected = known if known is not None else self._first.setdefault((model, version), scores)
        if scores.shape == expected.shape and bool(np.all(np.abs(scores - expected) <= _TOLERANCE)):
            return Finding(Answer.CORRECT)
        return Finding(
            Answer.WRONG, f"version {version} scored {scores.tolist()}, expected {expected.tolist()}"
        )

    def _newest(self, model: str) -> str:
        """Version that answers callers who name none."""
        metadata = self._request("GET", f"/{model}")
        if not metadata.ok:
            raise NoAnswerError(metadata.text)
        return str(max(metadata.json()["versions"], key=int))

    def _encoded(self, model: str) -> Finding:
        item = len(_WHITE_PIXEL).to_bytes(4, "little") + _WHITE_PIXEL
        response = self._infer(model, ENCODED_INPUT, "BYTES", [1, 1], item, VERDICT_OUTPUT)
        if not response.ok:
            return _refused(response)
        error = json.loads(response.json()["outputs"][0]["data"][0])["error"]
        if error is None:
            return Finding(Answer.CORRECT)
        busy = error["code"] in {"overloaded", "deadline_exceeded"}
        return Finding(Answer.BUSY if busy else Answer.FAILED, error["message"])

    def _golden(
        self, model: str, version: str, dims: list[int]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]] | None:
        """Golden picture of a version, when it was published with one."""
        folder = self._repository / model / version
        file = self._configs[model].get("default_model_filename") or "model.onnx"
        try:
            known = json.loads((folder / MANIFEST).read_bytes())["golden_scores"][file]
            images = np.array(np.load(folder / GOLDEN, mmap_mode="r", allow_pickle=False)[:1])
        except (OSError, ValueError, KeyError, TypeError):
            return None  # published by somebody else, or without golden images
        return (images, np.array(known[:1], dtype=np.float32)) if list(images.shape[1:]) == dims else None

    def _infer(
        self, model: str, name: str, datatype: str, shape: list[int], data: bytes, output: str
    ) -> Reply:
        """Triton's binary form for the input, JSON for the output."""
        head: dict[str, Any] = {
            "inputs": [
                {
                    "name": name,
                    "datatype": datatype,
                    "shape": shape,
                    "parameters": {"binary_data_size": len(data)},
                }
            ],
            "outputs": [{"name": output}],
        }
        text = json.dumps(head).encode()
        headers = {"Inference-Header-Content-Length": str(len(text))}
        return self._request("POST", f"/{model}/infer", body=text + data, headers=headers)

    def _request(self, method: str, path: str, **options: Any) -> Reply:
        return ask(self._address, method, f"/v2/models{path}", timeout_s=self._timeout_s, **options)


def _gradient(dims: list[int]) -> NDArray[np.uint8]:
    """One picture [1, *dims] with every value in it."""
    values = np.arange(int(np.prod(dims)), dtype=np.uint64) * 255 // max(1, int(np.prod(dims)) - 1)
    return values.astype(np.uint8).reshape(1, *dims)


def _refused(response: Reply) -> Finding:
    said = response.text
    busy = any(piece in said.lower() for piece in _BUSY)
    return Finding(Answer.BUSY if busy else Answer.FAILED, said)
