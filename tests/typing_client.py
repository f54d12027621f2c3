"""A user's program that is type-checked and never run: it uses every public name with the types that users get."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import moderation_client as mc
from moderation_client.images import DEFAULT_LIMITS, DecodedImage, ImageLimits, ImageSource, decode
from moderation_client.testing import (
    Break,
    Delay,
    Fail,
    FakeRequest,
    FakeServer,
    Say,
    assert_never_fails_open,
    assert_never_fails_open_async,
    channel_means,
)


def judge(paths: list[Path]) -> list[str]:
    """Call everything that the blocking client offers."""
    policy = mc.Policy(labels=("a",), thresholds={"a": mc.Threshold(review=0.5)})
    limits = ImageLimits(max_bytes=1_000_000)
    words: list[str] = []
    with mc.ModerationClient(["a:8001", "b:8001"], policy={"default": policy}, limits=limits) as client:
        verdicts: list[mc.Verdict] = client.moderate(paths, ids=[path.name for path in paths])
        stream: Iterator[mc.Verdict] = client.moderate_stream((str(path), path) for path in paths)
        for verdict in (*verdicts, *stream, *client.moderate(b"one image")):
            decision: mc.Decision = verdict.decision
            error: mc.VerdictError | None = verdict.error
            image: mc.ImageInfo | None = verdict.image
            views: mc.Views | None = verdict.views
            timing: mc.Timing = verdict.timing
            words.append(f"{decision} {error} {image} {views} {timing.total_ms} {verdict.margin}")
        stats: mc.ClientStats = client.stats()
        replicas: tuple[mc.ReplicaStats, ...] = stats.replicas
        spec: mc.ModelSpec = client.spec()
        size: mc.ImageSpec = spec.image
        outcome: mc.Outcome = policy.decide([0.2])
        words.append(f"{len(replicas)} {size.height} {outcome.margin} {client.is_ready()}")
    return words


async def judge_later(paths: AsyncIterator[Path]) -> int:
    """Call everything that the asyncio client offers."""
    count = 0
    async with mc.AsyncModerationClient("https://host", token=lambda: "secret") as client:
        async for verdict in client.moderate_stream(paths, timeout_s=2.0, on_error="verdict"):
            count += verdict.flagged
        count += len(await client.moderate(["a.jpg"], model_version=3))
    return count


def handle(error: mc.ModerationError) -> str:
    """Tell every error apart."""
    unreadable = (
        mc.EmptyImageError | mc.UnsupportedFormatError | mc.TruncatedImageError | mc.CorruptImageError
    )
    too_much = mc.ImageTooLargeError | mc.TooManyFramesError | mc.BadArrayError | mc.ImageReadError
    if isinstance(error, unreadable | too_much):
        return f"{error.code} {error.index} {error.limit}"
    if isinstance(error, mc.InvalidImageError):
        return error.code
    if isinstance(error, mc.OverloadedError | mc.DeadlineExceededError | mc.ModelNotReadyError):
        return f"later: {len(error.verdicts)} verdicts"
    if isinstance(
        error, mc.ServerUnavailableError | mc.ServerFailedError | mc.AuthenticationError | mc.ServiceError
    ):
        return error.code
    if isinstance(
        error, mc.ContractError | mc.PolicyError | mc.MissingDependencyError | mc.ClientClosedError
    ):
        return str(error)
    return "other"


def check_own_code() -> None:
    """Test one's own code against the fake."""
    with FakeServer(token="t") as server, mc.ModerationClient(server.url, token="t") as client:
        server.script(Fail("INTERNAL"), Delay(0.1))
        assert_never_fails_open(client)


def prepare(sources: list[ImageSource], spec: mc.ImageSpec) -> NDArray[np.float32]:
    """Decode for oneself and ask for scores alone."""
    decoded: list[DecodedImage] = [decode(source, spec, DEFAULT_LIMITS) for source in sources]
    whole = [each for each in decoded if each.incomplete is None and each.views.looked_at]
    info: mc.ImageInfo = whole[0].info
    with mc.ModerationClient() as client:
        scores: NDArray[np.float32] = client.score(whole[0].pixels)
    return scores * info.width


async def check_own_code_later() -> int:
    """Test one's own asyncio code against the fake, with everything that it can be told."""
    with FakeServer(scores=channel_means, max_batch=4, latency_s=0.1) as server:
        server.always(Say((0.1, 0.2, 0.3)))
        server.script(Break("nan"))
        async with mc.AsyncModerationClient(server.http_url, decode="server") as client:
            await assert_never_fails_open_async(client)
        requests: list[FakeRequest] = server.requests
    return len(requests)
