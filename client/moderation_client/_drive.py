"""Performing what a flow asks for, in a thread; `_adrive` is the same with asyncio. They decide nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from moderation_client._flow import Cancel, Effect, Flow, Send, Sleep, Wait

T = TypeVar("T")


def drive(flow: Flow[T], spawn: Callable[[Flow[None]], None]) -> T:
    """Run a flow in this thread; `spawn` runs its side flows."""
    handle: Any = None
    value: Any = None
    error: Exception | None = None
    try:
        while True:
            effect: Effect = flow.send(value) if error is None else flow.throw(error)
            value = error = None
            try:
                if isinstance(effect, Send):
                    value = handle = effect.replica.transport.start(effect.request, effect.timeout_s)
                elif isinstance(effect, Wait):
                    value = effect.handle.wait(effect.timeout_s)
                elif isinstance(effect, Cancel):
                    effect.handle.cancel()
                elif isinstance(effect, Sleep):
                    time.sleep(effect.seconds)
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
