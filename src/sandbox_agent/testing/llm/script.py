"""What the model answers: a reply, made from the directives of a prompt.

====================================  ==============================================================
``[[say TEXT]]``                      the answer
``[[think TEXT]]``                    thoughts before it
``[[call NAME {JSON}]]``              a call of that tool, or of the tool whose name ends with NAME
``[[then]]``                          what follows is done once the results of the calls are there
``[[slow COUNT]]``                    COUNT pieces of text, 0.2 s apart
``[[stall]]``                         the text, and then nothing until the client disconnects
``[[hang]]``                          nothing at all until the client disconnects
``[[error STATUS]]``                  an HTTP error of that status
====================================  ==============================================================

Directives of one line can be combined. If several lines have some, those of the last one count, because a
restored session sends its history with the prompt. Without directives the answer is
``Hello from the script.``, and after a tool's result ``Result: `` and its first line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

from sandbox_agent.testing.llm.request import LLMRequest

STALLED_TEXT = "I am thinking about that"
PIECE_SECONDS = 0.2
FOREVER = float("inf")
_START = re.compile(r"\[\[(say|think|call|then|slow|stall|hang|error)\b[ \t]*")
_END = "]]"
_decoder = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool.

    Attributes:
        name: The tool. The call is sent only if the request offers it, or a tool whose name ends with it.
        arguments: Its arguments.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Pause:
    """A place in a response where the server waits; infinite seconds end with the client's connection."""

    seconds: float


@dataclass(slots=True)
class Reply:
    """What the model answers.

    Attributes:
        text: The text.
        thinking: Thoughts before it, or None.
        calls: Calls of tools after it.
        slow: If not 0, the text is this many pieces, 0.2 s apart.
        stall: Whether the response never ends after the text.
        hang: Whether no response begins.
        error: The status of an HTTP error to send instead, or None.
    """

    text: str = "Hello from the script."
    thinking: str | None = None
    calls: list[Call] = field(default_factory=list[Call])
    slow: int = 0
    stall: bool = False
    hang: bool = False
    error: int | None = None

    def pieces(self) -> Iterator[str | Pause]:
        """Return the pieces of the text as they are streamed."""
        if self.slow:
            for number in range(self.slow):
                yield f"piece {number} "
                yield Pause(PIECE_SECONDS)
            return
        half = len(self.text) // 2
        yield from filter(None, (self.text[:half], self.text[half:]))
        if self.stall:
            yield Pause(FOREVER)


def reply_to(request: LLMRequest) -> Reply:
    """Return the reply that the request's prompt asks for."""
    steps = _steps(request.prompt)
    done = len(request.results)
    if done < len(steps):
        return _reply(steps[done], request)
    if done:
        lines = request.results[-1].strip().splitlines() or ["nothing"]
        return Reply(text=f"Result: {lines[0][:200]}")
    return Reply()


_Directive = tuple[str, str, Any]


def _steps(prompt: str) -> list[list[_Directive]]:
    """Return the directives of the last line that has some, in the groups between ``[[then]]``."""
    steps: list[list[_Directive]] = []
    position = 0
    while match := _START.search(prompt, position):
        if not steps or "\n" in prompt[position : match.start()]:
            steps = [[]]
        position = match.end()
        name, value = match[1], None
        if name == "call":
            tool, _, _ = prompt[position:].partition("{")
            tool = tool.partition(_END)[0]
            position += len(tool)
            if prompt[position : position + 1] == "{":
                value, position = _decoder.raw_decode(prompt, position)
            text = tool.strip()
        else:
            text = prompt[position:].partition(_END)[0]
            position += len(text)
        position = max(prompt.find(_END, position), position) + len(_END)
        if name == "then":
            steps.append([])
        else:
            steps[-1].append((name, text, value))
    return steps


def _reply(directives: list[_Directive], request: LLMRequest) -> Reply:
    reply = Reply()
    for name, text, value in directives:
        if name == "say":
            reply.text = text
        elif name == "think":
            reply.thinking = text
        elif name == "call":
            tool = request.tool(text)
            if tool is None:
                reply.text = f"There is no tool {text}."
            else:
                reply.calls.append(Call(tool, cast("dict[str, Any]", value or {})))
                reply.text = "Let me do that."
        elif name == "slow":
            reply.slow = int(text)
        elif name == "error":
            reply.error = int(text)
        elif name == "stall":
            reply.text, reply.stall = STALLED_TEXT, True
        else:
            reply.hang = True
    return reply
