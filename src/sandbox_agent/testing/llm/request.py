"""A request to the model, in one form for all APIs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from sandbox_agent.wire.jsonrpc import elements, members

Api: TypeAlias = Literal["anthropic", "responses", "chat", "gemini"]
Object: TypeAlias = dict[str, Any]

# Agents put texts of their own beside what the user wrote.
_REMINDER = re.compile(r"<(system-reminder|environment_context|session_context|info-msg)>.*?</\1>", re.DOTALL)
# Where the APIs have the conversation.
_CONVERSATION = ("messages", "input", "contents")
_IMAGE_TYPES = ("image", "input_image", "image_url")
_IMAGE_MEMBERS = frozenset({"inlineData", "inline_data"})


@dataclass(frozen=True, slots=True)
class LLMRequest:
    """A request that the model received.

    Attributes:
        api: The API through which it came.
        model: The model's name.
        streaming: Whether the response is streamed.
        tools: The names of the tools that the model may call.
        prompt: What the user said last.
        results: The tool results since then, oldest first: one for each response that had calls.
        effort: How much the model should think, where the API has that.
        body: The body of the request.
    """

    api: Api
    model: str
    streaming: bool
    tools: tuple[str, ...]
    prompt: str
    results: tuple[str, ...]
    effort: str | None
    body: Mapping[str, Any] = field(repr=False)

    @property
    def text(self) -> str:
        """All texts of the conversation, instructions and tool results included."""
        parts = (self.body.get(name) for name in ("system", "instructions", *_CONVERSATION))
        return "\n".join(text_of(part) for part in parts if part)

    @property
    def images(self) -> int:
        """The number of images in the conversation."""
        return sum(map(_is_image, _objects([self.body.get(name) for name in _CONVERSATION])))

    def tool(self, name: str) -> str | None:
        """Return the tool of that name, or the one whose name ends with it, as those of MCP servers do.

        ``namespace/name`` is returned as it is: Codex knows more tools than it offers.
        """
        if name in self.tools or "/" in name:
            return name
        return next((tool for tool in self.tools if tool.endswith(name)), None)


@dataclass(frozen=True, slots=True)
class Message:
    """A message of the conversation, as far as the script needs it.

    Attributes:
        results: The texts of tool results.
        texts: The texts of the user after them, each a block.
    """

    results: Sequence[str] = ()
    texts: Sequence[str] = ()


def since_prompt(messages: Sequence[Message]) -> tuple[str, tuple[str, ...]]:
    """Return what the user said last, and the tool results since then.

    Args:
        messages: The messages, oldest first; those of the model are empty.
    """
    results: list[str] = []
    for message in reversed(messages):
        texts = [_REMINDER.sub("", text).strip() for text in message.texts]
        prompt = "\n".join(filter(None, texts))
        # After a result there may be a note of the agent, or the prompt after a turn that was cancelled.
        if prompt and ("[[" in prompt or not message.results):
            return prompt, tuple(reversed(results))
        if message.results:
            results.append("\n".join(message.results))
    return "", tuple(reversed(results))


def objects(value: object) -> list[Object]:
    """Return the dicts of a list that are not empty; of anything else none."""
    return [found for found in map(members, elements(value)) if found]


def text_of(value: object) -> str:
    """Return the text of a message, of its content or of a part of it."""
    if isinstance(value, str):
        return value
    if parts := elements(value):
        return "\n".join(map(text_of, parts))
    if not (part := members(value)):
        return ""
    names = ("text", "content", "parts", "output", "input", "arguments", "response", "result")
    return "\n".join(filter(None, (text_of(part.get(name)) for name in names))) or _values(part)


def _values(part: Object) -> str:
    """Return the strings of an object whose members are not known, such as a tool's response."""
    return "\n".join(filter(None, (text_of(value) for value in part.values() if not isinstance(value, str))))


def _objects(value: object) -> Iterator[Object]:
    if found := members(value):
        yield found
    for item in (*found.values(), *elements(value)):
        yield from _objects(item)


def _is_image(value: Object) -> bool:
    return value.get("type") in _IMAGE_TYPES or not _IMAGE_MEMBERS.isdisjoint(value)
