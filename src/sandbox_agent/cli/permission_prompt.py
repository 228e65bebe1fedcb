"""The permission policy of ``run``: allow with ``--yes``, ask on a terminal, otherwise reject."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable

from sandbox_agent.cli.output import Screen
from sandbox_agent.client.agent import SandboxAgent
from sandbox_agent.client.permissions import PermissionRequest
from sandbox_agent.client.session import Session
from sandbox_agent.engine.permissions import PermissionReply


class ReadProgress:
    """The index of the newest event that was read.

    Permission policies are called independent of the reader, which may be behind: without waiting for it,
    a question would appear in the middle of the text that explains it.
    """

    def __init__(self) -> None:
        self.index: int = 0
        self._moved = asyncio.Event()

    def advance(self, index: int) -> None:
        """Note that the event with this index was read."""
        self.index = max(self.index, index)
        self._moved.set()

    async def catch_up(self, sdk: SandboxAgent, session: Session) -> None:
        """Wait until everything that is stored now was read."""
        await session.refresh()
        stored = await sdk.persist.last_event_index(session.id)
        while self.index < stored:
            self._moved.clear()
            await self._moved.wait()


_READ_BYTES = 4096


class PermissionPrompt:
    """A permission policy that asks one question at a time.

    Args:
        screen: Where to show questions and decisions.
        yes: Allow everything.

    Attributes:
        ready: Awaited before each answer, so that all earlier events are on the screen.
    """

    def __init__(self, screen: Screen, *, yes: bool) -> None:
        self._screen = screen
        can_ask = sys.stdin.isatty() and sys.stderr.isatty()
        self._decide = self._allow if yes else self._ask if can_ask else self._reject
        self._lock = asyncio.Lock()
        self.ready: Callable[[], Awaitable[None]] | None = None

    async def __call__(self, request: PermissionRequest) -> PermissionReply:
        """Return the reply, if possible one of those that the request offers."""
        async with self._lock:
            if self.ready is not None:
                await self.ready()
            return await self._decide(request)

    async def _allow(self, request: PermissionRequest) -> PermissionReply:
        self._screen.note(f"permission  {_title(request)}: allowed (--yes)", "yellow")
        return _allowing_reply(request)

    async def _reject(self, request: PermissionRequest) -> PermissionReply:
        self._screen.note(
            f"permission  {_title(request)}: rejected, no terminal to ask on (use --yes to allow)", "red"
        )
        return "reject"

    async def _ask(self, request: PermissionRequest) -> PermissionReply:
        answers: dict[str, PermissionReply] = {
            "y": _allowing_reply(request),
            "n": "reject",
            **({"a": "always"} if "always" in request.available_replies else {}),
        }
        always = " / [a]lways" if "a" in answers else ""
        while True:
            self._screen.ask(f"permission  {_title(request)}: [y]es{always} / [n]o? ")
            line = await _read_line()
            if not line:
                self._screen.note("")
                return "reject"
            answer = line.strip().lower()[:1]
            if answer in answers:
                return answers[answer]


def _allowing_reply(request: PermissionRequest) -> PermissionReply:
    return "always" if "once" not in request.available_replies else "once"


def _title(request: PermissionRequest) -> str:
    call = request.tool_call
    title = call.get("title") or call.get("toolCallId") or "a tool"
    return " ".join(str(title).split())


async def _read_line() -> str:
    """Return a line of standard input, or "" at its end. A cancelled call reads nothing."""
    loop = asyncio.get_running_loop()
    line: asyncio.Future[str] = loop.create_future()
    descriptor = sys.stdin.fileno()

    def on_readable() -> None:
        # A terminal delivers whole lines, so one read is one line.
        if not line.done():
            line.set_result(os.read(descriptor, _READ_BYTES).decode(errors="replace"))

    loop.add_reader(descriptor, on_readable)
    try:
        return await line
    finally:
        loop.remove_reader(descriptor)
