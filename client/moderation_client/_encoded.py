"""`decode="server"`: files go out as they are, the model `moderation_encoded` answers with verdicts.

Its answers are read with the same suspicion as scores: a record that is not complete, or that allows what it could not judge, is
a ContractError and never a verdict.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from moderation_client import _errors
from moderation_client._errors import ContractError, InvalidImageError, ModerationError, ServiceError
from moderation_client._jobs import Batch, Job
from moderation_client._protocol import InferRequest, Tensor, pack_bytes, unpack_bytes
from moderation_client.contract import ENCODED_INPUT, VERDICT_OUTPUT
from moderation_client.policy import Decision
from moderation_client.results import VERDICT_SCHEMA_VERSION, ImageInfo, Verdict, VerdictError, Views

if TYPE_CHECKING:
    from moderation_client._flow import Flow, Limits, Progress
    from moderation_client._session import Session
    from moderation_client._settings import CallOptions
    from moderation_client.images import ImageLimits


def read_encoded_config(config: Mapping[str, Any]) -> int:
    """Most files in one request. Raises ContractError when the model does not take files."""
    inputs = {each["name"]: each["data_type"] for each in config.get("input", ())}
    outputs = {each["name"]: each["data_type"] for each in config.get("output", ())}
    max_batch = int(config.get("max_batch_size", 0))
    if (
        inputs.get(ENCODED_INPUT) != "TYPE_STRING"
        or outputs.get(VERDICT_OUTPUT) != "TYPE_STRING"
        or max_batch < 1
    ):
        raise ContractError(
            f"model {config.get('name')!r} (inputs {inputs}, outputs {outputs}, max_batch_size {max_batch}) does not "
            f"take files: it needs a batched TYPE_STRING input {ENCODED_INPUT!r} and output {VERDICT_OUTPUT!r}"
        )
    return max_batch


def read_file(source: Any, limits: ImageLimits) -> bytes:
    """Bytes to send for a source; what is decoded already goes as PNG, without loss. Raises InvalidImageError."""
    from PIL import Image  # noqa: PLC0415  Pillow and numpy take 100 ms to import

    from moderation_client._image_source import Encoded, read_source  # noqa: PLC0415  likewise

    content = read_source(source, limits)
    if isinstance(content, Encoded):
        return content.data
    try:
        picture = (
            content.pixels if isinstance(content.pixels, Image.Image) else Image.fromarray(content.pixels)
        )
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", compress_level=1)
    except (TypeError, ValueError, OSError) as error:
        raise _errors.BadArrayError(
            f"cannot be sent as PNG ({error}): use decode='client', or give uint8 HxWx3"
        ) from error
    return buffer.getvalue()


def judge_files(
    session: Session,
    batch: Batch,
    options: CallOptions,
    limits: Limits,
    progress: Progress,
    infer: Callable[..., Flow[Any]],
) -> Flow[list[Verdict | ModerationError]]:
    """What the server says of each file, in the batch's order. Raises ModerationError."""
    chunks = pack_bytes([part.pixels for part in batch.parts])
    tensor = Tensor(name=ENCODED_INPUT, datatype="BYTES", shape=(batch.num_views, 1), chunks=chunks)
    request = InferRequest(
        model=session.settings.model, version=options.version, tensor=tensor, outputs=(VERDICT_OUTPUT,)
    )
    reply = yield from infer(session, request, limits, progress, options.context)
    records = unpack_bytes(reply, VERDICT_OUTPUT, batch.num_views)
    for part in batch.parts:
        part.job.attempts += progress.attempts
        part.job.infer_s += progress.infer_s
    return [
        read_record(record, part.job, session.settings.error_decision)
        for part, record in zip(batch.parts, records, strict=True)
    ]


def read_record(text: bytes, job: Job, error_decision: Decision) -> Verdict | ModerationError:
    """One verdict, under the caller's id; or the server-side trouble it reports. Raises ContractError."""
    try:
        record = json.loads(text)
        if record["schema_version"] != VERDICT_SCHEMA_VERSION:
            raise ContractError(f"server's verdict has schema_version {record['schema_version']!r}")
        verdict = _verdict(record, job)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ContractError(f"server's verdict is not usable: {error!r}") from error
    if verdict.error is None:
        if not verdict.scores or verdict.score is None or verdict.threshold is None or verdict.label is None:
            raise ContractError("server's verdict has neither scores nor an error")
        if verdict.decision is Decision.ALLOW and not verdict.score < verdict.threshold:
            raise ContractError(
                f"server allowed a score of {verdict.score} at a threshold of {verdict.threshold}"
            )
        return verdict
    kind = getattr(_errors, verdict.error.kind, None)
    if isinstance(kind, type) and issubclass(kind, ServiceError):
        return kind(verdict.error.message)
    if not (isinstance(kind, type) and issubclass(kind, InvalidImageError)):
        return ContractError(f"server could not judge: {verdict.error.kind}: {verdict.error.message}")
    return _stricter(verdict, error_decision)


def _stricter(verdict: Verdict, error_decision: Decision) -> Verdict:
    import dataclasses  # noqa: PLC0415  one use

    return dataclasses.replace(verdict, decision=max(verdict.decision, error_decision))


def _verdict(record: Mapping[str, Any], job: Job) -> Verdict:
    def part(name: str, kind: Any) -> Any:
        return None if record[name] is None else kind(**record[name])

    return Verdict(
        id=job.id,
        decision=Decision.parse(record["decision"]),
        label=record["label"],
        score=record["score"],
        threshold=record["threshold"],
        scores={str(label): float(value) for label, value in record["scores"].items()},
        reason=record["reason"],
        error=part("error", VerdictError),
        model_name=record["model_name"],
        model_version=record["model_version"],
        policy_name=record["policy_name"],
        policy_version=record["policy_version"],
        image=part("image", ImageInfo),
        views=part("views", Views),
        timing=job.timing(),
    )
