"""What the fake server answers, apart from how: scripted steps, scores, versions, the requests it saw."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from moderation_client._faults import Fault
from moderation_client._protocol import InferReply, Output
from moderation_client.contract import (
    ENCODED_INPUT,
    ENCODED_MODEL_NAME,
    IMAGE_INPUT,
    MODEL_NAME,
    SCORES_OUTPUT,
    VERDICT_OUTPUT,
    ImageSpec,
    ModelSpec,
    policy_parameter,
    spec_parameter,
)
from moderation_client.policy import Policy, Threshold

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Scores = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

SPEC = ModelSpec(labels=("red", "green", "blue"), image=ImageSpec(height=32, width=32), version=1)
POLICY = Policy(
    labels=SPEC.labels, thresholds={label: Threshold(review=0.5, block=0.9) for label in SPEC.labels}
)


@dataclass(frozen=True)
class Fail:
    """Answer one request with an error: a gRPC status name and a message."""

    status: str
    message: str = "scripted"


@dataclass(frozen=True)
class Delay:
    """Answer one request correctly, after this long."""

    seconds: float


@dataclass(frozen=True)
class Say:
    """Answer one request with these scores for every image."""

    scores: tuple[float, ...]


@dataclass(frozen=True)
class Break:
    """Answer one request with something that is not a correct answer."""

    how: Literal[
        "nan", "above one", "wrong shape", "missing output", "wrong type", "too few bytes", "wrong version"
    ]


Step = Fail | Delay | Say | Break


@dataclass(frozen=True, kw_only=True)
class FakeRequest:
    """One inference request as the server saw it."""

    model: str
    version: str
    shape: tuple[int, ...]
    parameters: Mapping[str, int]
    headers: Mapping[str, str]


def channel_means(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Score float32 [N, 3] of pixels uint8 [N, H, W, 3]: how red, green and blue each image is."""
    import numpy as np  # noqa: PLC0415  keeps imports of the package quick

    means: NDArray[np.float32] = (pixels.mean(axis=(1, 2)) / 255).astype(np.float32)
    return means


@dataclass
class FakeModel:
    """State of one fake server; thread-safe where requests touch it."""

    spec: ModelSpec = SPEC
    policy: Policy | None = POLICY
    scores: Scores = channel_means
    max_batch: int = 8
    token: str | None = None
    latency_s: float = 0.0
    ready: bool = True
    steps: deque[Step] = field(default_factory=deque)
    always: Step | None = None
    requests: list[FakeRequest] = field(default_factory=list)
    specs: dict[str, tuple[ModelSpec, Policy | None]] = field(default_factory=dict)
    num_config_reads: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Publish the first version."""
        self.publish(self.spec, self.policy)

    def publish(self, spec: ModelSpec, policy: Policy | None) -> None:
        """Serve this version from now on; the older ones stay for those who pin them."""
        with self.lock:
            self.spec, self.policy = spec, policy
            self.specs[str(spec.version or 1)] = (spec, policy)

    def config(self, model: str = MODEL_NAME) -> dict[str, Any]:
        """Configuration of a model, as Triton's JSON."""
        self.num_config_reads += 1
        if model == ENCODED_MODEL_NAME:
            return {
                "name": model,
                "max_batch_size": self.max_batch,
                "input": [{"name": ENCODED_INPUT, "data_type": "TYPE_STRING", "dims": [1]}],
                "output": [{"name": VERDICT_OUTPUT, "data_type": "TYPE_STRING", "dims": [1]}],
            }
        parameters = {}
        for version, (spec, policy) in self.specs.items():
            parameters[spec_parameter(version)] = {"string_value": spec.to_json()}
            if policy is not None:
                parameters[policy_parameter(version)] = {"string_value": policy.to_json()}
        image = self.spec.image
        return {
            "name": MODEL_NAME,
            "max_batch_size": self.max_batch,
            "input": [
                {"name": IMAGE_INPUT, "data_type": "TYPE_UINT8", "dims": [image.height, image.width, 3]}
            ],
            "output": [{"name": SCORES_OUTPUT, "data_type": "TYPE_FP32", "dims": [len(self.spec.labels)]}],
            "parameters": parameters,
        }

    def check_headers(self, headers: Mapping[str, str]) -> None:
        """Raise what a server behind a token answers without it."""
        if self.token is not None and headers.get("authorization") != f"Bearer {self.token}":
            raise Fault("UNAUTHENTICATED", "missing or wrong token")

    def check_ready(self, model: str) -> None:
        """Raise what Triton answers for a model that it does not serve."""
        if model not in (MODEL_NAME, ENCODED_MODEL_NAME):
            raise Fault("NOT_FOUND", f"Request for unknown model: '{model}' is not found")
        if not self.ready:
            raise Fault("UNAVAILABLE", f"Request for unknown model: '{model}' has no available versions")

    def infer(self, request: FakeRequest, data: bytes) -> InferReply:
        """Answer one request. Raises Fault."""
        with self.lock:
            self.requests.append(request)
            step = self.steps.popleft() if self.steps else self.always
        self.check_headers(request.headers)
        self.check_ready(request.model)
        time.sleep(self.latency_s + (step.seconds if isinstance(step, Delay) else 0.0))
        if isinstance(step, Fail):
            raise Fault(step.status, step.message)
        version = request.version or str(self.spec.version or 1)
        if version not in self.specs:
            raise Fault(
                "NOT_FOUND", f"Request for unknown model: '{MODEL_NAME}' version {version} is not found"
            )
        if request.shape[0] > self.max_batch:
            raise Fault("INVALID_ARGUMENT", f"inference request batch-size must be <= {self.max_batch}")
        if request.model == ENCODED_MODEL_NAME:
            return self._encoded(request, data, version, step)
        return self._pixels(request, data, version, step)

    def _pixels(self, request: FakeRequest, data: bytes, version: str, step: Step | None) -> InferReply:
        import numpy as np  # noqa: PLC0415  keeps imports of the package quick

        image = self.specs[version][0].image
        if request.shape[1:] != (image.height, image.width, 3):
            raise Fault(
                "INVALID_ARGUMENT",
                f"unexpected shape for input '{IMAGE_INPUT}' for model '{MODEL_NAME}'. "
                f"Expected [-1,{image.height},{image.width},3], got {list(request.shape)}",
            )
        pixels = np.frombuffer(data, np.uint8).reshape(request.shape)
        scores = self.scores(pixels)
        if isinstance(step, Say):
            scores = np.tile(np.asarray(step.scores, np.float32), (len(pixels), 1))
        return _reply(scores, version, step)

    def _encoded(self, request: FakeRequest, data: bytes, version: str, step: Step | None) -> InferReply:
        import numpy as np  # noqa: PLC0415  keeps imports of the package quick

        from moderation_client._fake_encoded import judge_file, verdict_outputs  # noqa: PLC0415  decodes: Pillow only when needed

        spec, policy = self.specs[version]
        records, scores, offset = [], [], 0
        for _ in range(request.shape[0]):
            size = int.from_bytes(data[offset : offset + 4], "little")
            record, row = judge_file(
                data[offset + 4 : offset + 4 + size], spec, policy or POLICY, self.scores, version
            )
            offset += 4 + size
            records.append(record)
            scores.append(row)
        reply = _reply(np.stack(scores), version, step)
        outputs = {**reply.outputs, **verdict_outputs(records, step.how if isinstance(step, Break) else "")}
        return InferReply(model_name=ENCODED_MODEL_NAME, model_version=version, outputs=outputs)


def _reply(scores: NDArray[np.float32], version: str, step: Step | None) -> InferReply:
    """Correct answer, or the broken one that the script asks for."""
    how = step.how if isinstance(step, Break) else ""
    scores = scores.astype("<f4")
    if how == "nan":
        scores[:] = float("nan")
    elif how == "above one":
        scores[:] = 1.5
    elif how == "wrong shape":
        scores = scores[:, :-1]
    data = scores.tobytes()
    output = Output(
        datatype="FP64" if how == "wrong type" else "FP32",
        shape=tuple(scores.shape),
        data=data[:-4] if how == "too few bytes" else data,
    )
    name = "other" if how == "missing output" else SCORES_OUTPUT
    answered = "999" if how == "wrong version" else version
    return InferReply(model_name=MODEL_NAME, model_version=answered, outputs={name: output})
