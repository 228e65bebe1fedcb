"""A transcript as one page of HTML: no script, no request to anywhere, everything that was said escaped."""

from __future__ import annotations

import json
import re
from html import escape

from sandbox_agent.server.transcripts.entries import (
    Asked,
    Called,
    Entry,
    Failure,
    Mark,
    Said,
    Status,
    TurnEnd,
    TurnStart,
)
from sandbox_agent.server.transcripts.page import HEAD, TAIL
from sandbox_agent.server.transcripts.prose import prose
from sandbox_agent.server.transcripts.words import (
    ROLES,
    asked_line,
    facts,
    pretty,
    shown_time,
    title_of,
    turn_line,
)
from sandbox_agent.wire.sessions import SessionInfo
from sandbox_agent.wire.universal import (
    ContentPart,
    FileRefPart,
    ImagePart,
    JsonPart,
    ReasoningPart,
    StatusPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

__all__ = ["HtmlRenderer"]

_IMAGE = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/]+={0,2}")
_NOTES = {"failed": "cut off", "in_progress": "not finished"}


class HtmlRenderer:
    """Turns entries into pieces of the page; each piece is whole elements."""

    def begin(self, info: SessionInfo) -> str:
        """Return the head: style, title, facts, totals."""
        rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts(info))
        title = escape(title_of(info))
        return HEAD.replace("{title}", title) + f"<header><h1>{title}</h1><dl>{rows}</dl></header>\n<main>\n"

    def entry(self, entry: Entry) -> str:
        """Return an entry."""
        match entry:
            case TurnStart():
                html = f'<h2 id="turn-{entry.number}">Turn {entry.number}{_time(entry.time)}</h2>'
            case TurnEnd():
                good = entry.stop_reason in {"end_turn", "ended"}
                html = f'<p class="note{"" if good else " bad"}">{escape(turn_line(entry))}</p>'
            case Said():
                html = _said(entry)
            case Called():
                html = _called(entry)
            case Status():
                html = _status(entry)
            case Asked():
                html = _asked(entry)
            case Failure():
                details = "" if entry.details is None else _details("Details", _pre(_json(entry.details)))
                code = f" <code>{escape(entry.code)}</code>" if entry.code else ""
                html = (
                    f'<section class="error"><h3>Error{code}{_time(entry.time)}</h3>'
                    f"<p>{escape(entry.message)}</p>{details}</section>"
                )
            case Mark():
                html = f'<p class="note">{escape(entry.text)}{_time(entry.time)}</p>'
        return html + "\n"

    def end(self) -> str:
        """Return what stands at the end."""
        return TAIL


def _said(entry: Said) -> str:
    thinks = bool(entry.parts) and all(isinstance(part, ReasoningPart) for part in entry.parts)
    body = "".join(_part(part) for part in entry.parts)
    note = f" <small>{_NOTES[entry.status]}</small>" if entry.status in _NOTES else ""
    if thinks:
        return f'<details class="thought"><summary>Agent thinks{note}</summary>{body}</details>'
    role = ROLES.get(entry.role, entry.role)
    kind = entry.role if entry.role in ROLES else "assistant"
    return f'<section class="said {kind}"><h3>{escape(role)}{note}{_time(entry.time)}</h3>{body}</section>'


def _called(entry: Called) -> str:
    status = "no result" if entry.results is None else {"completed": ""}.get(entry.status, entry.status)
    kind = f' <span class="kind">{escape(entry.kind)}</span>' if entry.kind else ""
    note = f' <small class="bad">{escape(status)}</small>' if status else ""
    pieces: list[str] = []
    if entry.arguments not in {"", "{}"}:
        pieces.append(f"<h4>Input</h4>{_pre(pretty(entry.arguments)[0])}")
    pieces += [_part(part) for part in entry.parts]
    for part in entry.results or ():
        if isinstance(part, ToolResultPart):
            pieces += [f"<h4>Output</h4>{_pre(part.output)}"] if part.output else []
        else:
            pieces.append(_part(part))
    summary = f"<b>{escape(entry.title)}</b>{kind}{note}{_time(entry.time)}"
    return f'<details class="tool"><summary>{summary}</summary>{"".join(pieces)}</details>'


def _status(entry: Status) -> str:
    more = "".join(_part(part) for part in entry.parts)
    if entry.label == "plan" and entry.detail:
        steps = "".join(_step(line) for line in entry.detail.split("\n"))
        return f'<section class="plan"><h3>Plan{_time(entry.time)}</h3><ul>{steps}</ul></section>'
    bad = " bad" if entry.failed else ""
    detail = f": {escape(entry.detail)}" if entry.detail else ""
    return f'<p class="note{bad}"><b>{escape(entry.label)}</b>{detail}{_time(entry.time)}</p>{more}'


def _step(line: str) -> str:
    box, _, content = line.partition("] ")
    state = {"[x": "done", "[~": "now", "[ ": "due"}.get(box)
    if state is None:
        return f"<li>{escape(line)}</li>"
    return f'<li class="{state}">{escape(content)}</li>'


def _asked(entry: Asked) -> str:
    text, verdict = asked_line(entry)
    refused = " bad" if entry.verdict in {"reject", "rejected"} else ""
    return (
        f'<section class="asked"><h3>{escape(entry.kind.capitalize())}{_time(entry.time)}</h3>'
        f'<p>{escape(text)}</p><p class="note{refused}">{escape(verdict)}</p></section>'
    )


def _part(part: ContentPart) -> str:
    match part:
        case TextPart() | ReasoningPart():
            return prose(part.text)
        case FileRefPart():
            line = f'<p class="file">{escape(part.action)} <code>{escape(part.path)}</code></p>'
            return line + (_diff(part.diff) if part.diff else "")
        case ImagePart():
            if _IMAGE.fullmatch(part.path):
                return f'<p><img src="{part.path}" alt="An image"></p>'
            path = "an embedded image" if part.path.startswith("data:") else part.path
            return f'<p class="file">image <code>{escape(path)}</code></p>'
        case ToolCallPart():
            return _pre(part.arguments)
        case ToolResultPart():
            return _pre(part.output)
        case StatusPart():
            return f"<p>{escape(part.label)}: {escape(part.detail or '')}</p>"
        case JsonPart():
            return _details("JSON", _pre(_json(part.json)))


def _diff(diff: str) -> str:
    lines: list[str] = []
    for line in diff.rstrip("\n").split("\n"):
        kind = {"+": "add", "-": "del", "@": "hunk"}.get(line[:1])
        text = escape(line) or " "
        lines.append(f'<span class="{kind}">{text}</span>' if kind else f"<span>{text}</span>")
    return f'<pre class="diff">{"".join(lines)}</pre>'


def _details(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def _pre(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def _time(time: str) -> str:
    return f' <time datetime="{escape(time)}">{escape(shown_time(time))}</time>'


def _json(value: object) -> str:
    try:
        return json.dumps(value, indent=2, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        return type(value).__name__
