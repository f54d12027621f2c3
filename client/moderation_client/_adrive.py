"""Performing what a flow asks for, with asyncio; the twin of `_drive`, apart so that threads do not load asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from moderation_client._flow import Cancel, Close, Effect, Flow, Run, Send, Sleep, Wait

T = TypeVar("T")


async def adrive(flow: Flow[T], spawn: Callable[[Flow[None]], None]) -> T:
    """Run a flow in this task; `spawn` runs its side flows."""
    handles: list[Any] = []
    value: Any = None
    error: Exception | None = None
    try:
        while True:
            effect: Effect = flow.send(value) if error is None else flow.throw(error)
            value = error = None
            try:
                value = await _perform(effect, spawn)
                if isinstance(effect, Send):
                    handles.append(value)
            except Exception as caught:  # noqa: BLE001  whatever it is, the flow must see it to clean up
                error = caught
    except StopIteration as stop:
        result: T = stop.value
        return result
    except BaseException:
        for handle in handles:
            handle.cancel()
        raise
    finally:
        flow.close()


async def _perform(effect: Effect, spawn: Callable[[Flow[None]], None]) -> Any:
    """Do one thing; what the flow is told of it."""
    if isinstance(effect, Send):
        return asyncio.ensure_future(effect.replica.transport.call(effect.request, effect.timeout_s))
    if isinstance(effect, Wait):
        return await _await(effect)
    if isinstance(effect, Cancel):
        await cancel(effect.handle)
    elif isinstance(effect, Sleep):
        await asyncio.sleep(effect.seconds)
    elif isinstance(effect, Run):
        running = asyncio.get_running_loop().run_in_executor(None, effect.act)
        done, _ = await asyncio.wait({running}, timeout=effect.timeout_s)
        return running.result() if done else None
    elif isinstance(effect, Close):
        await effect.transport.close()
    else:
        spawn(effect.flow)
    return None


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
