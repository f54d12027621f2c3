"""Performing what a flow asks for, in a thread; `_adrive` is the same with asyncio. They decide nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from moderation_client._flow import Cancel, Close, Effect, Flow, Run, Send, Sleep, Wait

T = TypeVar("T")


def drive(flow: Flow[T], spawn: Callable[[Flow[None]], None]) -> T:
    """Run a flow in this thread; `spawn` runs its side flows."""
    handles: list[Any] = []
    value: Any = None
    error: Exception | None = None
    try:
        while True:
            effect: Effect = flow.send(value) if error is None else flow.throw(error)
            value = error = None
            try:
                value = _perform(effect, spawn)
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


def _perform(effect: Effect, spawn: Callable[[Flow[None]], None]) -> Any:
    """Do one thing; what the flow is told of it."""
    if isinstance(effect, Send):
        return effect.replica.transport.start(effect.request, effect.timeout_s)
    if isinstance(effect, Wait):
        return effect.handle.wait(effect.timeout_s)
    if isinstance(effect, Cancel):
        effect.handle.cancel()
    elif isinstance(effect, Sleep):
        time.sleep(effect.seconds)
    elif isinstance(effect, Run):
        return _run(effect)
    elif isinstance(effect, Close):
        effect.transport.close()
    else:
        spawn(effect.flow)
    return None


def _run(effect: Run) -> Any:
    """In a thread of its own, which ends by itself: a look-up cannot be interrupted."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(effect.act()), name="moderation-run", daemon=True)
    thread.start()
    thread.join(effect.timeout_s)
    return results[0] if results else None
