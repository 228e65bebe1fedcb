"""A conversation for people: what stored events say, as HTML and Markdown for notebooks.

What agents send is untrusted: it never becomes markup. HTML has only tags and addresses that are made here,
and Markdown has the agent's texts in code blocks, so that neither runs a script nor loads anything.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from sandbox_agent.wire import acp
from sandbox_agent.wire.jsonrpc import elements, members, replace_surrogates
from sandbox_agent.wire.requests import PermissionRequest, QuestionRequest

if TYPE_CHECKING:
    from sandbox_agent.wire.records import SessionEvent

__all__ = ["Transcript", "event_html", "event_markdown", "message_html", "message_markdown"]

# What a message or a tool's output shows at most, in characters: a notebook keeps its outputs.
_MESSAGE_CHARS = 100_000
_OUTPUT_CHARS = 4_000
# In characters of base64.
_IMAGE_CHARS = 4_000_000
_IMAGE_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")
_MARKS = {"pending": "☐", "in_progress": "▶", "completed": "✓", "failed": "✗"}
# Notebooks typeset formulas in HTML, too, which can have links.
_NO_MATH = "tex2jax_ignore mathjax_ignore"
_PRE = "white-space:pre-wrap;overflow-wrap:anywhere"
_BOX = "border-left:3px solid #8888;padding:0.2em 0.8em;margin:0.4em 0"
# Only at the start of a line: else the time is quadratic in the length of a line of backticks.
_CODE = re.compile(r"^```[^\n]*\n(.*?)(?:^```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]+)`|\*\*([^*\n]+)\*\*")
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")


@dataclass
class _Message:
    """A message, a thought or a note: ``speaker`` is "User", "Agent", "Thought" or "Note"."""

    speaker: str
    text: str = ""
    images: list[acp.ImageContent] = field(default_factory=list["acp.ImageContent"])


@dataclass
class _Tool:
    """A tool call with its latest state."""

    title: str
    status: str = "pending"
    content: list[acp.ToolCallContent] = field(default_factory=list["acp.ToolCallContent"])


@dataclass
class _Plan:
    entries: list[acp.PlanEntry]


_Item: TypeAlias = _Message | _Tool | _Plan


class Transcript:
    """A conversation that notebooks show: messages, thoughts, plans and tool calls of events.

    What the agent sent is shown as text: it cannot run scripts or load anything in the notebook.
    """

    def __init__(self, events: Iterable[SessionEvent] = ()) -> None:
        """Read the events, in their order."""
        self._items: list[_Item] = []
        self._tools: dict[str, _Tool] = {}
        self._plan: _Plan | None = None
        for event in events:
            self.add(event)

    def add(self, event: SessionEvent) -> None:
        """Add the next event."""
        update = event.update
        match update:
            case acp.AgentMessageChunk():
                self._say("Agent", update.content)
            case acp.AgentThoughtChunk():
                self._say("Thought", update.content)
            case acp.ToolCall():
                tool = _Tool(update.title, update.status, update.content)
                self._tools[update.tool_call_id] = tool
                self._items.append(tool)
            case acp.ToolCallUpdate():
                self._change(update)
            case acp.Plan():
                if self._plan is None:
                    self._plan = _Plan(update.entries)
                    self._items.append(self._plan)
                self._plan.entries = update.entries
            case PermissionRequest():
                title = update.tool_call.title or "a tool call"
                self._items.append(_Message("Note", f"Permission requested: {title}"))
            case QuestionRequest():
                self._items.append(_Message("Note", f"Question: {update.message}"))
            case None:
                self._read_envelope(event)
            case _:
                pass

    def _say(self, speaker: str, content: acp.ContentBlock) -> None:
        last = self._items[-1] if self._items else None
        if not isinstance(last, _Message) or last.speaker != speaker:
            last = _Message(speaker)
            self._items.append(last)
        if isinstance(content, acp.TextContent):
            last.text += content.text
        elif isinstance(content, acp.ImageContent):
            last.images.append(content)
        else:
            last.text += f"[{content.type}]"

    def _change(self, update: acp.ToolCallUpdate) -> None:
        tool = self._tools.get(update.tool_call_id)
        if tool is None:
            tool = self._tools[update.tool_call_id] = _Tool(update.title or "Tool call")
            self._items.append(tool)
        tool.title = update.title or tool.title
        tool.status = update.status or tool.status
        if update.content is not None:
            tool.content = update.content

    def _read_envelope(self, event: SessionEvent) -> None:
        payload = event.payload
        if event.sender == "client" and payload.get("method") == "session/prompt":
            self._plan = None
            blocks = [members(block) for block in elements(members(payload.get("params")).get("prompt"))]
            texts = [str(block.get("text", f"[{block.get('type')}]")) for block in blocks]
            self._items.append(_Message("User", "\n".join(texts)))
        elif event.sender == "agent" and "error" in payload:
            message: Any = members(payload["error"]).get("message")
            self._items.append(_Message("Note", f"Error: {message}"))
        elif event.sender == "agent":
            reason: Any = members(payload.get("result")).get("stopReason")
            if isinstance(reason, str) and reason != "end_turn":
                self._items.append(_Message("Note", f"The turn ended: {reason}"))

    def __len__(self) -> int:
        """Return the number of messages, plans and tool calls."""
        return len(self._items)

    def __repr__(self) -> str:
        """Return the number of what it shows."""
        return f"<Transcript of {len(self._items)} messages, plans and tool calls>"

    def to_html(self) -> str:
        """Return the conversation as HTML, which a notebook shows."""
        return f'<div class="{_NO_MATH}">{"".join(map(_item_html, self._items))}</div>'

    def to_markdown(self) -> str:
        """Return the conversation as Markdown, its texts in code blocks."""
        return "\n\n".join(map(_item_markdown, self._items))

    def _repr_html_(self) -> str:
        return self.to_html()

    def _repr_markdown_(self) -> str:
        return self.to_markdown()


def event_html(event: SessionEvent) -> str:
    """Return an event as HTML: what it says, or else its envelope."""
    shown = Transcript([event])
    return shown.to_html() if shown else f'<pre style="{_PRE}">{_escape(_envelope(event))}</pre>'


def event_markdown(event: SessionEvent) -> str:
    """Return an event as Markdown: what it says, or else its envelope."""
    shown = Transcript([event])
    return shown.to_markdown() if shown else _fence(_envelope(event))


def _envelope(event: SessionEvent) -> str:
    return _shorten(event.payload_json.decode(errors="replace"), _OUTPUT_CHARS)


def _item_html(item: _Item) -> str:
    match item:
        case _Message():
            return message_html(item.speaker, item.text, item.images)
        case _Tool():
            content = "".join(_content_html(each) for each in item.content)
            title = f"{_mark(item.status)} {_escape(item.title)}"
            if not content:
                return f'<div style="{_BOX}">{title}</div>'
            return f'<details style="{_BOX}"><summary>{title}</summary>{content}</details>'
        case _Plan():
            lines = [f"{_mark(entry.status)} {_escape(entry.content)}" for entry in item.entries]
            return f'<div style="{_BOX}"><b>Plan</b><br>{"<br>".join(lines)}</div>'


def message_html(speaker: str, text: str, images: Iterable[acp.ImageContent] = ()) -> str:
    """Return a message as HTML: code blocks, code and bold text are formatted, everything else is escaped."""
    pictures = "".join(map(_image_html, images))
    color = {"User": "#3b82f6", "Agent": "inherit"}.get(speaker, "gray")
    head = f'<b style="color:{color}">{_escape(speaker)}</b>'
    body = _text_html(_shorten(text, _MESSAGE_CHARS))
    return f'<div class="{_NO_MATH}" style="margin:0.4em 0">{head}{body}{pictures}</div>'


def _text_html(text: str) -> str:
    return "".join(
        f'<pre style="{_BOX}">{_escape(part)}</pre>'
        if is_code
        else f'<div style="{_PRE}">{_INLINE.sub(_inline_html, _escape(part))}</div>'
        for is_code, part in _parts(text)
        if part.strip()
    )


def _parts(text: str) -> Iterator[tuple[bool, str]]:
    """Yield the parts of a text, and whether each is a code block."""
    end = 0
    for match in _CODE.finditer(text):
        yield False, text[end : match.start()].strip("\n")
        yield True, match[1]
        end = match.end()
    yield False, text[end:].strip("\n")


def _inline_html(match: re.Match[str]) -> str:
    """Return the HTML of code or bold text, whose characters are escaped already."""
    return f"<code>{match[1]}</code>" if match[1] is not None else f"<b>{match[2]}</b>"


def _content_html(content: acp.ToolCallContent) -> str:
    if isinstance(content, acp.Content) and isinstance(content.content, acp.ImageContent):
        return _image_html(content.content)
    return f'<pre style="{_PRE}">{_escape(_content_text(content))}</pre>'


def _image_html(image: acp.ImageContent) -> str:
    """Return the image, if it is one that cannot contain a script or an address."""
    if image.mime_type not in _IMAGE_TYPES or len(image.data) > _IMAGE_CHARS:
        return "<div>[image]</div>"
    if _BASE64.fullmatch(image.data) is None:
        return "<div>[image]</div>"
    return f'<div><img style="max-width:100%" src="data:{image.mime_type};base64,{image.data}"></div>'


def _content_text(content: acp.ToolCallContent) -> str:
    if isinstance(content, acp.Diff):
        old = [f"-{line}" for line in (content.old_text or "").splitlines()]
        new = [f"+{line}" for line in content.new_text.splitlines()]
        return _shorten("\n".join([content.path, *old, *new]), _OUTPUT_CHARS)
    if isinstance(content, acp.Content):
        block = content.content
        return _shorten(
            block.text if isinstance(block, acp.TextContent) else f"[{block.type}]", _OUTPUT_CHARS
        )
    return f"[{content.type}]"


def _item_markdown(item: _Item) -> str:
    match item:
        case _Message():
            return message_markdown(item.speaker, item.text + "[image]" * len(item.images))
        case _Tool():
            text = "\n".join([f"{_mark(item.status)} {item.title}", *map(_content_text, item.content)])
            return f"**Tool**\n\n{_fence(text)}"
        case _Plan():
            lines = [f"{_mark(entry.status)} {entry.content}" for entry in item.entries]
            return f"**Plan**\n\n{_fence(chr(10).join(lines))}"


def message_markdown(speaker: str, text: str) -> str:
    """Return a message as Markdown, its text in a code block."""
    return f"**{speaker}**\n\n{_fence(_shorten(text, _MESSAGE_CHARS))}"


def _fence(text: str) -> str:
    """Return a code block that the text cannot end."""
    text = replace_surrogates(text)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _escape(text: str) -> str:
    return html.escape(replace_surrogates(text))


def _mark(status: str) -> str:
    return _MARKS.get(status, "•")


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}\n… {len(text) - limit} more characters"
