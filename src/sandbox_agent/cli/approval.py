"""Whether an agent may use a tool: answered by ``--yes``, by the person at the terminal, or no."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from sandbox_agent.cli.terminal import Screen

if TYPE_CHECKING:
    from sandbox_agent.client.permissions import PermissionRequest
    from sandbox_agent.engine.permissions import PermissionReply

__all__ = ["Approval", "can_ask"]

_READ_BYTES = 4096


def can_ask() -> bool:
    """Return whether there is someone to ask: a terminal to read from, and one to show the question."""
    return sys.stdin.isatty() and sys.stderr.isatty()


class Approval:
    """A permission policy; ask one question at a time.

    Args:
        screen: where questions and decisions are shown.
        yes: allow everything.

    Attributes:
        ready: awaited before each answer, so that what came before the request is on the screen.
    """

    def __init__(self, screen: Screen, *, yes: bool) -> None:
        self._screen = screen
        self._decide = self._allow if yes else self._ask if can_ask() else self._refuse
        self._turn = asyncio.Lock()
        self.ready: Callable[[], Awaitable[None]] | None = None

    async def __call__(self, request: PermissionRequest) -> PermissionReply:
        """Return the reply, one of those that the request offers where that is possible."""
        async with self._turn:
            if self.ready is not None:
                await self.ready()
            return await self._decide(request)

    async def _allow(self, request: PermissionRequest) -> PermissionReply:
        reply = _allowing(request)
        self._screen.note(f"permission  {_subject(request)}: allowed (--yes)", "yellow")
        return reply

    async def _refuse(self, request: PermissionRequest) -> PermissionReply:
        self._screen.note(
            f"permission  {_subject(request)}: rejected, there is no terminal to ask on (--yes allows)", "red"
        )
        return "reject"

    async def _ask(self, request: PermissionRequest) -> PermissionReply:
        answers: dict[str, PermissionReply] = {
            "y": _allowing(request),
            "n": "reject",
            **({"a": "always"} if "always" in request.available_replies else {}),
        }
        always = " / [a]lways" if "a" in answers else ""
        while True:
            self._screen.ask(f"permission  {_subject(request)}: [y]es{always} / [n]o? ")
            line = await _read_line()
            if not line:
                self._screen.note("")
                return "reject"
            answer = line.strip().lower()[:1]
            if answer in answers:
                return answers[answer]


def _allowing(request: PermissionRequest) -> PermissionReply:
    return "always" if "once" not in request.available_replies else "once"


def _subject(request: PermissionRequest) -> str:
    call = request.tool_call
    title = call.get("title") or call.get("toolCallId") or "a tool"
    return " ".join(str(title).split())


async def _read_line() -> str:
    """Return a line of standard input, empty at its end; a cancelled wait takes nothing."""
    loop = asyncio.get_running_loop()
    line: asyncio.Future[str] = loop.create_future()
    descriptor = sys.stdin.fileno()

    def readable() -> None:
        # A terminal hands out whole lines, so one read is one line.
        if not line.done():
            line.set_result(os.read(descriptor, _READ_BYTES).decode(errors="replace"))

    loop.add_reader(descriptor, readable)
    try:
        return await line
    finally:
        loop.remove_reader(descriptor)
