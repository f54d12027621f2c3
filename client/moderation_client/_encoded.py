"""`decode="server"`: files go out as they are, the model `moderation_encoded` answers with verdicts.

Its answers are read with the same suspicion as scores: a record that is not complete, or that allows what it could not judge, is
a ContractError and never a verdict.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from moderation_client import _errors
from moderation_client._errors import ContractError, InvalidImageError, ModerationError, ServiceError
from moderation_client._jobs import Batch, Job
from moderation_client._protocol import InferRequest, Tensor, pack_bytes, unpack_bytes
from moderation_client._spec import readable
from moderation_client.contract import ENCODED_INPUT, VERDICT_OUTPUT
from moderation_client.policy import Decision
from moderation_client.results import VERDICT_SCHEMA_VERSION, ImageInfo, Verdict, VerdictError, Views

if TYPE_CHECKING:
    from moderation_client._flow import Flow, Limits, Progress
    from moderation_client._session import Session
    from moderation_client._settings import CallOptions
    from moderation_client.images import ImageLimits

FIELD_TYPES: Mapping[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "bool": (bool,),
    "str | None": (str, type(None)),
    "int | None": (int, type(None)),
    "float | None": (int, float, type(None)),
}
"""What JSON must hold for a field of a verdict's parts, by the field's annotation."""


def read_encoded_config(config: Mapping[str, Any]) -> int:
    """Most files in one request. Raises ContractError when the model does not take files."""
    with readable(config):
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


def read_file(source: Any, limits: ImageLimits) -> tuple[bytes, str | None]:
    """Bytes to send for a source, and what of it they leave out; pixels go as PNG. Raises InvalidImageError."""
    from moderation_client._image_source import Encoded, read_source  # noqa: PLC0415  Pillow and numpy take 100 ms

    content = read_source(source, limits)
    if isinstance(content, Encoded):
        return content.data, None
    from moderation_client._image_png import as_png  # noqa: PLC0415  likewise

    return as_png(content, limits)


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
        _outcome(record, part.job, session.settings.error_decision)
        for part, record in zip(batch.parts, records, strict=True)
    ]


def _outcome(text: bytes, job: Job, error_decision: Decision) -> Verdict | ModerationError:
    """One image's answer; an unusable one is this image's alone."""
    try:
        outcome = read_record(text, job, error_decision)
    except ContractError as error:
        return error
    if isinstance(outcome, ModerationError) or job.incomplete is None:
        return outcome
    return replace(_stricter(outcome, Decision.REVIEW), reason=outcome.reason or job.incomplete)


def read_record(text: bytes, job: Job, error_decision: Decision) -> Verdict | ModerationError:
    """One verdict, under the caller's id; or the server-side trouble it reports. Raises ContractError."""
    try:
        record = json.loads(text)
        if record["schema_version"] != VERDICT_SCHEMA_VERSION:
            raise ContractError(f"server's verdict has schema_version {record['schema_version']!r}")
        verdict = _verdict(record, job)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ContractError(f"server's verdict is not usable: {error!r}") from error
    if verdict.error is None:
        check_judged(verdict)
        return verdict
    kind = getattr(_errors, verdict.error.kind, None)
    if isinstance(kind, type) and issubclass(kind, ServiceError):
        return kind(verdict.error.message)
    if not (isinstance(kind, type) and issubclass(kind, InvalidImageError)):
        return ContractError(f"server could not judge: {verdict.error.kind}: {verdict.error.message}")
    return _stricter(verdict, error_decision)


def check_judged(verdict: Verdict) -> None:
    """Check that a verdict without an error rests on scores, and an ALLOW on a whole look. Raises ContractError."""
    score, threshold = verdict.score, verdict.threshold
    if not verdict.scores or score is None or threshold is None or verdict.label is None:
        raise ContractError("server's verdict has neither scores nor an error")
    if verdict.scores.get(verdict.label) != score:
        raise ContractError(
            f"server's verdict rests on {verdict.label!r} {score}, its scores are {verdict.scores}"
        )
    if verdict.decision is not Decision.ALLOW:
        return
    if not score < threshold:
        raise ContractError(f"server allowed a score of {score} at a threshold of {threshold}")
    if verdict.views is None or verdict.views.looked_at < 1 or verdict.reason is not None:
        raise ContractError(
            f"server allowed what it did not look at: {verdict.views}, reason {verdict.reason!r}"
        )


def _stricter(verdict: Verdict, least: Decision) -> Verdict:
    return replace(verdict, decision=max(verdict.decision, least))


def _verdict(record: Mapping[str, Any], job: Job) -> Verdict:
    return Verdict(
        id=job.id,
        decision=Decision.parse(record["decision"]),
        label=_text(record["label"]),
        score=_share(record["score"]),
        threshold=_share(record["threshold"]),
        scores={label: _number(value) for label, value in record["scores"].items()},
        reason=_text(record["reason"]),
        error=_part(record["error"], VerdictError),
        model_name=_text(record["model_name"]),
        model_version=_text(record["model_version"]),
        policy_name=_text(record["policy_name"]),
        policy_version=_text(record["policy_version"]),
        image=_part(record["image"], ImageInfo),
        views=_part(record["views"], Views),
        timing=job.timing(),
    )


def _part(record: Any, kind: Any) -> Any:
    """One of the record's own records, its types checked; fields that are not known yet are left out. Raises TypeError."""
    if record is None:
        return None
    part = kind(**{each.name: record[each.name] for each in fields(kind) if each.name in record})
    for each in fields(kind):
        value = getattr(part, each.name)
        allowed = FIELD_TYPES[str(each.type)]
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            raise TypeError(f"{each.name} is {value!r}")
    return part


def _text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _share(value: Any) -> float | None:
    return None if value is None else _number(value)


def _number(value: Any) -> float:
    """A number in 0..1. Raises TypeError or ValueError for anything else, NaN and bool included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{value!r} is not in 0..1")
    return float(value)
