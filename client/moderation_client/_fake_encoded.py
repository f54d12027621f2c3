"""The fake server's `moderation_encoded`: a file in, the same JSON as `Verdict.to_dict()` out."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from moderation_client import images
from moderation_client._errors import InvalidImageError
from moderation_client._judging import error_verdict, judge_view, verdict_of
from moderation_client._protocol import Output, pack_bytes
from moderation_client.contract import VERDICT_OUTPUT, ModelSpec
from moderation_client.policy import Decision, Policy
from moderation_client.results import Timing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def judge_file(
    content: bytes, spec: ModelSpec, policy: Policy, scores: Callable[[Any], Any], version: str
) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Verdict as a record, and the worst view's scores, float32 [num_labels]."""
    import numpy as np  # noqa: PLC0415  keeps imports of the package quick

    try:
        decoded = images.decode(content, spec.image)
    except InvalidImageError as error:
        return error_verdict(0, error, Decision.REVIEW).to_dict(), np.zeros(len(spec.labels), np.float32)
    rows = scores(decoded.pixels)
    views = [judge_view(place, row, spec, version, policy) for place, row in enumerate(rows.tolist())]
    verdict = verdict_of(
        0, views, incomplete=decoded.incomplete, info=decoded.info, looked=decoded.views, timing=Timing()
    )
    worst = verdict.views.worst if verdict.views and verdict.views.worst is not None else 0
    return verdict.to_dict(), rows[worst]


def verdict_outputs(records: list[dict[str, Any]], how: str) -> dict[str, Output]:
    """Records as the output `verdict`, broken in the way that a script asks for."""
    data = b"".join(pack_bytes([json.dumps(_broken(record, how)).encode() for record in records]))
    output = Output(
        datatype="FP32" if how == "wrong type" else "BYTES",
        shape=(len(records), 1),
        data=data[:-4] if how == "too few bytes" else data,
    )
    return {"other" if how == "missing output" else VERDICT_OUTPUT: output}


def _broken(record: dict[str, Any], how: str) -> dict[str, Any]:
    if how in ("nan", "above one"):
        wrong = float("nan") if how == "nan" else 1.5
        return record | {"score": wrong, "scores": dict.fromkeys(record["scores"], wrong)}
    if how == "wrong shape":
        return record | {"scores": {}}
    return record | {"schema_version": 999} if how == "wrong version" else record
