"""The words that both forms of a transcript share: times, totals, roles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sandbox_agent.server.transcripts.entries import Asked, TurnEnd
from sandbox_agent.wire.sessions import SessionInfo
from sandbox_agent.wire.universal import event_time

__all__ = ["ROLES", "VERDICTS", "asked_line", "facts", "pretty", "shown_time", "title_of", "turn_line"]

ROLES = {"user": "User", "assistant": "Agent", "system": "System", "tool": "Tool"}
VERDICTS = {
    "accept": "allowed once",
    "accept_for_session": "always allowed",
    "reject": "rejected",
    "answered": "answered",
    "rejected": "rejected",
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
_CAMEL = {"inputTokens": "input", "outputTokens": "output", "totalTokens": "in all"}


def title_of(info: SessionInfo) -> str:
    """Return a transcript's title."""
    return info.title or f"Session {info.session_id}"


def facts(info: SessionInfo) -> list[tuple[str, str]]:
    """Return what stands at the head of a transcript, name by name."""
    found = [
        ("Session", info.session_id),
        ("Agent", info.agent),
        ("Model", info.model or ""),
        ("Mode", info.agent_mode),
        ("Permission mode", info.permission_mode),
        ("Directory", info.directory or ""),
        ("Created", shown_time(event_time(info.created_at))),
        ("Updated", shown_time(event_time(info.updated_at))),
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


def shown_time(time: str) -> str:
    """Return an event's time as people read it: to the second, in UTC."""
    return f"{time[:10]} {time[11:19]} UTC" if len(time) >= 19 else time


def turn_line(entry: TurnEnd) -> str:
    """Return how a turn ended, in a line."""
    line = f"Turn ended: {entry.stop_reason.replace('_', ' ')}"
    if entry.reason:
        line += f" ({entry.reason})"
    tokens = tokens_of(entry.usage)
    return f"{line}; tokens: {tokens}" if tokens else line


def tokens_of(usage: Mapping[str, Any]) -> str:
    """Return a turn's tokens, as ACP names them, in a line."""
    counts = {name: usage.get(member) for member, name in _CAMEL.items()}
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if isinstance(count, int))


def asked_line(entry: Asked) -> tuple[str, str]:
    """Return what was asked and what became of it."""
    verdict = VERDICTS.get(entry.verdict, entry.verdict)
    if entry.by:
        verdict += f" by {entry.by}"
    if entry.response:
        verdict += f": {entry.response}"
    elif not entry.verdict and entry.options:
        verdict += f" ({', '.join(entry.options)})"
    return entry.text, verdict


def pretty(text: str) -> tuple[str, str]:
    """Return JSON text indented, and its language; what is no JSON as it is."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text, ""
    if not isinstance(value, dict | list):
        return text, ""
    try:
        return json.dumps(value, indent=2, ensure_ascii=False), "json"
    except (ValueError, RecursionError):
        return text, ""
