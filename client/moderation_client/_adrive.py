"""Performing what a flow asks for, with asyncio; the twin of `_drive`, apart so that threads do not load asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from moderation_client._flow import Cancel, Effect, Flow, Send, Sleep, Wait

T = TypeVar("T")


async def adrive(flow: Flow[T], spawn: Callable[[Flow[None]], None]) -> T:
    """Run a flow in this task; `spawn` runs its side flows."""
    handle: Any = None
    value: Any = None
    error: Exception | None = None
    try:
        while True:
            effect: Effect = flow.send(value) if error is None else flow.throw(error)
            value = error = None
            try:
                if isinstance(effect, Send):
                    coroutine = effect.replica.transport.call(effect.request, effect.timeout_s)
                    value = handle = asyncio.ensure_future(coroutine)
                elif isinstance(effect, Wait):
                    value = await _await(effect)
                elif isinstance(effect, Cancel):
                    await cancel(effect.handle)
                elif isinstance(effect, Sleep):
                    await asyncio.sleep(effect.seconds)
                else:
                    spawn(effect.flow)
            except Exception as caught:  # noqa: BLE001  whatever it is, the flow must see it to clean up
                error = caught
    except StopIteration as stop:
        result: T = stop.value
        return result
    except BaseException:
        if handle is not None:
            handle.cancel()
        raise
    finally:
        flow.close()


async def _await(effect: Wait) -> Any:
    """Wait without cancelling what is waited for."""
    done, _ = await asyncio.wait({effect.handle}, timeout=effect.timeout_s)
    return effect.handle.result() if done else None


async def cancel(task: asyncio.Future[Any]) -> None:
    """Cancel a request and take its end, so that nothing is reported as never retrieved."""
    task.cancel()
    await asyncio.wait({task}, timeout=1.0)
    if task.done() and not task.cancelled():
        task.exception()
