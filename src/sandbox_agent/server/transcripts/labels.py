"""The texts that both forms of a transcript share: times, totals, roles, verdicts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from sandbox_agent.server.transcripts.entries import Request, TurnEnd
from sandbox_agent.wire.sessions import SessionInfo
from sandbox_agent.wire.universal import event_time

ROLES = {"user": "User", "assistant": "Agent", "system": "System", "tool": "Tool"}
NOTES = {"failed": "cut off", "in_progress": "not finished"}
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


def title_of(info: SessionInfo) -> str:
    """Return a transcript's title."""
    return info.title or f"Session {info.session_id}"


def facts(info: SessionInfo) -> list[tuple[str, str]]:
    """Return the names and values at the head of a transcript."""
    found = [
        ("Session", info.session_id),
        ("Agent", info.agent),
        ("Model", info.model or ""),
        ("Mode", info.agent_mode),
        ("Permission mode", info.permission_mode),
        ("Directory", info.directory or ""),
        ("Created", format_time(event_time(info.created_at))),
        ("Updated", format_time(event_time(info.updated_at))),
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


def format_time(time: str) -> str:
    """Format an event's time for readers: to the second, in UTC."""
    return f"{time[:10]} {time[11:19]} UTC" if len(time) >= 19 else time


def turn_line(entry: TurnEnd) -> str:
    """Return the line that says how a turn ended."""
    line = f"Turn ended: {entry.stop_reason.replace('_', ' ')}"
    if entry.reason:
        line += f" ({entry.reason})"
    tokens = _tokens(entry.usage)
    return f"{line}; tokens: {tokens}" if tokens else line


def _tokens(usage: Mapping[str, Any]) -> str:
    counts = {name: usage.get(member) for member, name in _ACP_USAGE.items()}
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if isinstance(count, int))


def verdict_line(entry: Request) -> str:
    """Return the answer of a request, and the client that gave it."""
    line = _VERDICTS.get(entry.verdict) or {"reject": "rejected"}.get(entry.verdict, entry.verdict)
    if entry.by:
        line += f" by {entry.by}"
    if entry.response:
        line += f": {entry.response}"
    elif not entry.verdict and entry.options:
        line += f" ({', '.join(entry.options)})"
    return line


def plan_steps(detail: str) -> Iterator[tuple[str, str]]:
    """Yield the state ("done", "now", "due", or "" if unknown) and the text of each step of a plan."""
    for line in detail.split("\n"):
        box, _, content = line.partition("] ")
        state = _PLAN_MARKS.get(box, "")
        yield state, content if state else line


def pretty(text: str) -> tuple[str, str]:
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


def format_json(value: object) -> str:
    """Return a value as indented JSON, or the name of its type if it is not JSON."""
    try:
        return json.dumps(value, indent=2, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        return type(value).__name__
