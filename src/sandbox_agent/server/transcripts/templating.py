"""What the templates of both forms share: their environment, their texts, and the conversion of long ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Environment, FileSystemLoader

from sandbox_agent.server.transcripts.transcript_builder import Entry, Request, TurnEnd
from sandbox_agent.wire.sessions import SessionInfo
from sandbox_agent.wire.universal import (
    FileRefPart,
    ImagePart,
    ReasoningPart,
    StatusPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    event_time,
)

# Texts are converted in pieces, and very long ones without regard to their structure: one call on a long text
# would hold the interpreter's lock, and so block the event loop, for seconds.
PIECE_CHARACTERS = 64 * 1024
MAX_STRUCTURED = 256 * 1024


_ROLES = {"user": "User", "assistant": "Agent", "system": "System", "tool": "Tool"}
_NOTES = {"failed": "cut off", "in_progress": "not finished"}
# Larger JSON texts are shown as they are.
_MAX_PRETTY = 256 * 1024
_VERDICTS = {
    "accept": "allowed once",
    "accept_for_session": "always allowed",
    "": "waits for an answer",
}
_USAGE = (
    ("input_tokens", "input"),
    ("output_tokens", "output"),
    ("thought_tokens", "thought"),
    ("cached_read_tokens", "read from cache"),
    ("cached_write_tokens", "written to cache"),
    ("total_tokens", "in all"),
)
_ACP_USAGE = {"inputTokens": "input", "outputTokens": "output", "totalTokens": "in all"}
_PLAN_MARKS = {"[x": "done", "[~": "now", "[ ": "due"}


def _title_of(info: SessionInfo) -> str:
    """Return a transcript's title."""
    return info.title or f"Session {info.session_id}"


def _facts(info: SessionInfo) -> list[tuple[str, str]]:
    """Return the names and values at the head of a transcript."""
    found = [
        ("Session", info.session_id),
        ("Agent", info.agent),
        ("Model", info.model or ""),
        ("Mode", info.agent_mode),
        ("Permission mode", info.permission_mode),
        ("Directory", info.directory or ""),
        ("Created", _format_time(event_time(info.created_at))),
        ("Updated", _format_time(event_time(info.updated_at))),
        ("Events", f"{info.event_count:,}"),
    ]
    usage = info.usage
    if usage is not None:
        tokens = [
            f"{count:,} {name}" for field, name in _USAGE if (count := getattr(usage, field)) is not None
        ]
        found.append(("Tokens", ", ".join(tokens)))
        if usage.context_used is not None and usage.context_size is not None:
            found.append(("Context", f"{usage.context_used:,} of {usage.context_size:,} tokens"))
        costs = [f"{amount:.4f} {currency}" for currency, amount in (usage.cost or {}).items()]
        found.append(("Cost", ", ".join(costs)))
    return [(name, value) for name, value in found if value]


def _format_time(time: str) -> str:
    """Format an event's time for readers: to the second, in UTC."""
    return f"{time[:10]} {time[11:19]} UTC" if len(time) >= 19 else time


def _turn_line(entry: TurnEnd) -> str:
    """Return the line that says how a turn ended."""
    line = f"Turn ended: {entry.stop_reason.replace('_', ' ')}"
    if entry.reason:
        line += f" ({entry.reason})"
    tokens = _tokens(entry.usage)
    return f"{line}; tokens: {tokens}" if tokens else line


def _tokens(usage: Mapping[str, Any]) -> str:
    counts = {name: usage.get(member) for member, name in _ACP_USAGE.items()}
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if isinstance(count, int))


def _verdict_line(entry: Request) -> str:
    """Return the answer of a request, and the client that gave it."""
    line = _VERDICTS.get(entry.verdict) or {"reject": "rejected"}.get(entry.verdict, entry.verdict)
    if entry.by:
        line += f" by {entry.by}"
    if entry.response:
        line += f": {entry.response}"
    elif not entry.verdict and entry.options:
        line += f" ({', '.join(entry.options)})"
    return line


def _plan_steps(detail: str) -> Iterator[tuple[str, str]]:
    """Yield the state ("done", "now", "due", or "" if unknown) and the text of each step of a plan."""
    for line in detail.split("\n"):
        box, _, content = line.partition("] ")
        state = _PLAN_MARKS.get(box, "")
        yield state, content if state else line


def _pretty(text: str) -> tuple[str, str]:
    """Indent JSON text; return it with its language. Other texts are returned as they are."""
    if len(text) > _MAX_PRETTY:
        return text, ""
    try:
        value = json.loads(text)
        if isinstance(value, dict | list):
            return json.dumps(value, indent=2, ensure_ascii=False), "json"
    except (ValueError, RecursionError):
        pass
    return text, ""


def _format_json(value: object) -> str:
    """Return a value as indented JSON, or the name of its type if it is not JSON."""
    try:
        return json.dumps(value, indent=2, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        return type(value).__name__


def _is_instance(*kinds: type) -> Callable[[object], bool]:
    return lambda value: isinstance(value, kinds)


_FILTERS: Mapping[str, Any] = {
    "json": _format_json,
    "plan_steps": _plan_steps,
    "pretty": _pretty,
    "shown_time": _format_time,
    "turn_line": _turn_line,
    "verdict_line": _verdict_line,
}
_TESTS: Mapping[str, Any] = {
    "prose": _is_instance(TextPart, ReasoningPart),
    "file_ref": _is_instance(FileRefPart),
    "image": _is_instance(ImagePart),
    "tool_call": _is_instance(ToolCallPart),
    "tool_result": _is_instance(ToolResultPart),
    "status": _is_instance(StatusPart),
}


def convert_pieces(text: str, convert: Callable[[str], str]) -> str:
    """Convert a text piece by piece; a line end (CR LF) is not split."""
    converted: list[str] = []
    start = 0
    while start < len(text):
        end = start + PIECE_CHARACTERS
        if text[end - 1 : end + 1] == "\r\n":
            end += 1
        converted.append(convert(text[start:end]))
        start = end
    return "".join(converted)


def make_environment(
    *, autoescape: bool, filters: Mapping[str, Any], tests: Mapping[str, Any]
) -> Environment:
    """Return the environment of one form's templates."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=autoescape,  # noqa: S701 - Markdown is escaped by its own filters
        keep_trailing_newline=True,
        auto_reload=False,
    )
    shared: Mapping[str, Any] = {"notes": _NOTES, "roles": _ROLES}
    environment.globals.update(shared)
    environment.filters.update({**_FILTERS, **filters})
    environment.tests.update({**_TESTS, **tests})
    return environment


class TemplateRenderer:
    """Renders a transcript's head, entries and tail by the templates of one form."""

    environment: ClassVar[Environment]
    suffix: ClassVar[str]

    def begin(self, info: SessionInfo) -> Iterator[str]:
        """Render the head of the transcript."""
        return self._render("head", title=_title_of(info), facts=_facts(info))

    def entry(self, entry: Entry) -> Iterator[str]:
        """Render an entry."""
        return self._render("entry", entry=entry, kind=type(entry).__name__)

    def end(self) -> Iterator[str]:
        """Render the end of the transcript."""
        return self._render("tail")

    def _render(self, name: str, **values: Any) -> Iterator[str]:
        return self.environment.get_template(f"{name}.{self.suffix}.jinja").generate(**values)
