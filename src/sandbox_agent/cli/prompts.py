"""Permission requests and questions on a terminal, and the policies of ``run``.

It allows with ``--yes``, asks on a terminal, and otherwise rejects.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import sys
from collections.abc import Awaitable, Callable
from typing import cast

from sandbox_agent.cli.output import Screen, Style, one_line
from sandbox_agent.client.agent import SandboxAgent
from sandbox_agent.client.permissions import PermissionRequest
from sandbox_agent.client.questions import QuestionRequest
from sandbox_agent.client.session import Session
from sandbox_agent.engine.permissions import PermissionReply
from sandbox_agent.engine.questions import is_answer
from sandbox_agent.wire.acp import Diff
from sandbox_agent.wire.jsonrpc import elements, members
from sandbox_agent.wire.questions import QuestionField


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
# What is shown of a permission request: lines, and characters of each.
_REQUEST_LINES = 40
_LINE_CHARS = 1_000


class Prompts:
    """Asks the user one thing at a time.

    Args:
        screen: Where to show requests and decisions.
        yes: Allow every tool call.

    Attributes:
        can_ask: Whether there is a terminal to ask on.
        ready: Awaited before each answer, so that all earlier events are on the screen.
    """

    def __init__(self, screen: Screen, *, yes: bool) -> None:
        self._screen = screen
        self._terminal = _open_terminal()
        self.can_ask: bool = self._terminal is not None
        self._decide = self._allow if yes else self._ask if self.can_ask else self._reject
        self._lock = asyncio.Lock()
        self.ready: Callable[[], Awaitable[None]] | None = None

    async def reply(self, request: PermissionRequest) -> PermissionReply:
        """Return the reply to a permission request, if possible one of those that it offers."""
        async with self._lock:
            if self.ready is not None:
                await self.ready()
            return await self._decide(request)

    async def _allow(self, request: PermissionRequest) -> PermissionReply:
        self._screen.note(f"permission  {request_title(request)}: allowed (--yes)", "yellow")
        return allowing_reply(request)

    async def _reject(self, request: PermissionRequest) -> PermissionReply:
        self._screen.note(
            f"permission  {request_title(request)}: rejected, no terminal to ask on (use --yes to allow)",
            "red",
        )
        return "reject"

    async def _ask(self, request: PermissionRequest) -> PermissionReply:
        answers: dict[str, PermissionReply] = {
            "y": allowing_reply(request),
            "n": "reject",
            **({"a": "always"} if "always" in request.available_replies else {}),
        }
        always = " / [a]lways" if "a" in answers else ""
        show_request(self._screen, request)
        while True:
            self._screen.ask(f"permission  {request_title(request)}: [y]es{always} / [n]o? ")
            line = await self._read_line()
            if not line:
                self._screen.note("")
                return "reject"
            answer = line.strip().lower()[:1]
            if answer in answers:
                return answers[answer]

    async def answer(self, request: QuestionRequest) -> dict[str, list[str]] | None:
        """Return the answers to a question; None, which declines it, at the end of the input."""
        async with self._lock:
            if self.ready is not None:
                await self.ready()
            self._screen.note(f"question  {one_line(request.message)}", "yellow")
            answers: dict[str, list[str]] = {}
            for asked in request.fields:
                given = await self._ask_field(asked)
                if given is None:
                    self._screen.note("the question is declined", "red")
                    return None
                answers[asked.name] = given
            return answers

    async def _read_line(self) -> str:
        """Return a line from the terminal, or "" at the end of the input. A cancelled call reads nothing."""
        assert self._terminal is not None
        loop = asyncio.get_running_loop()
        line: asyncio.Future[str] = loop.create_future()
        descriptor = self._terminal

        def on_readable() -> None:
            # A terminal delivers whole lines, so one read is one line.
            if not line.done():
                line.set_result(os.read(descriptor, _READ_BYTES).decode(errors="replace"))

        loop.add_reader(descriptor, on_readable)
        try:
            return await line
        finally:
            loop.remove_reader(descriptor)

    async def _ask_field(self, asked: QuestionField) -> list[str] | None:
        show_field(self._screen, asked)
        about = f" ({one_line(asked.description)})" if asked.description else ""
        hint = " (several, with commas)" if asked.kind == "multi_choice" else ""
        while True:
            self._screen.ask(f"  {one_line(asked.title)}{about}{hint}? ")
            line = await self._read_line()
            if not line:
                self._screen.note("")
                return None
            given = parse_answer(asked, line.strip())
            if given is not None and is_answer(asked, given):
                return given


def show_question(screen: Screen, question: QuestionRequest) -> None:
    """Show a question with all its fields and their options."""
    screen.note(f"question  {one_line(question.message)}", "yellow")
    for asked in question.fields:
        about = f": {one_line(asked.description)}" if asked.description else ""
        hint = " (several, with commas)" if asked.kind == "multi_choice" else ""
        screen.note(f"  {one_line(asked.title)}{about}{hint}", "yellow")
        show_field(screen, asked)


def show_field(screen: Screen, asked: QuestionField) -> None:
    """Show the options of a field with their numbers."""
    for number, option in enumerate(asked.options, 1):
        about = f": {one_line(option.description)}" if option.description else ""
        screen.note(f"  {number}. {one_line(option.label)}{about}", "yellow")


def parse_answer(asked: QuestionField, line: str) -> list[str] | None:
    """Return the values that a line chooses, by their numbers or labels; None if one is unknown."""
    if not asked.options:
        return [line] if line else []
    words = line.split(",") if asked.kind == "multi_choice" else [line]
    chosen: list[str] = []
    for word in filter(None, map(str.strip, words)):
        number = int(word) if word.isascii() and word.isdigit() and len(word) < 4 else 0
        named = [each for each in asked.options if word.lower() in {each.label.lower(), each.value.lower()}]
        found = named[:1] or asked.options[max(number - 1, 0) : number]
        if not found:
            return None
        chosen.append(found[0].value)
    return chosen


def allowing_reply(request: PermissionRequest) -> PermissionReply:
    """Return the reply that allows a tool call once, or always if the agent offers nothing else."""
    return "always" if "once" not in request.available_replies else "once"


def request_title(request: PermissionRequest) -> str:
    """Return what the tool call does, in one line."""
    call = request.tool_call
    return one_line(str(call.get("title") or call.get("toolCallId") or "a tool"))


def show_request(screen: Screen, request: PermissionRequest) -> None:
    """Show what a tool call would do: its command, its files and their changes, or else its arguments."""
    for line in request_lines(request):
        style = {"+": "green", "-": "red"}.get(line[:1], "dim")
        screen.note(f"  {line}", cast("Style", style))


def request_lines(request: PermissionRequest) -> list[str]:
    """Return what a tool call would do, in some lines."""
    call = request.tool_call
    given = members(call.raw_input)
    command = given.get("command") or given.get("cmd")
    diffs = [each for each in call.content if isinstance(each, Diff)]
    paths = dict.fromkeys([each.path for each in diffs] + [each.path for each in call.locations])
    lines: list[str] = []
    if command:  # first, so that many files do not hide it
        words = [str(word) for word in elements(command)] or [str(command)]
        lines += [f"$ {line}" for line in " ".join(words).splitlines()]
        given = {name: value for name, value in given.items() if value is not command}
    lines += [f"file {one_line(path)}" for path in paths]
    if not diffs:
        lines += [f"{name}: {_shorten(one_line(str(value)))}" for name, value in given.items()]
    for each in diffs:
        old, new = (each.old_text or "").splitlines(), each.new_text.splitlines()
        lines += list(difflib.unified_diff(old, new, n=1, lineterm=""))[2:]
    shown = [_shorten(line) for line in lines[:_REQUEST_LINES]]
    left_out = len(lines) - len(shown)
    return [*shown, *([f"… {left_out:,} more lines"] if left_out else [])]


def _shorten(text: str) -> str:
    return (
        text
        if len(text) <= _LINE_CHARS
        else f"{text[:_LINE_CHARS]}… {len(text) - _LINE_CHARS:,} more characters"
    )


def _open_terminal() -> int | None:
    """Return a descriptor of the user's terminal, which may not be standard input; None without one."""
    if not sys.stderr.isatty():
        return None
    if sys.stdin.isatty():
        return sys.stdin.fileno()
    try:  # not /dev/tty, which kqueue can't wait for
        return os.open(os.ttyname(sys.stderr.fileno()), os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
