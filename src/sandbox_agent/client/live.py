"""Shows a turn in a notebook while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from importlib import import_module
from typing import Any

from sandbox_agent.wire.records import SessionEvent
from sandbox_agent.wire.transcript import Transcript

__all__ = ["show_events"]

# How often the notebook gets a new picture at most, in seconds: each has everything that came so far.
_INTERVAL = 0.1


async def show_events(events: AsyncIterable[SessionEvent]) -> None:
    """Show the events of a turn until it ends; raises what the turn raises.

    Raises:
        ImportError: IPython is not installed.
    """
    try:
        display: Any = import_module("IPython.display").display
    except ImportError as error:
        raise ImportError("show() is for notebooks and needs IPython: use prompt() or stream()") from error
    transcript = Transcript()
    handle = display(transcript, display_id=True)

    def draw() -> None:
        if handle is not None:  # None where there is no notebook
            handle.update(transcript)

    changed = asyncio.Event()

    async def draw_changes() -> None:
        while True:
            await changed.wait()
            changed.clear()
            draw()
            await asyncio.sleep(_INTERVAL)

    drawing = asyncio.create_task(draw_changes())
    try:
        async for event in events:
            transcript.add(event)
            changed.set()
    finally:
        drawing.cancel()
        await asyncio.gather(drawing, return_exceptions=True)
        draw()
