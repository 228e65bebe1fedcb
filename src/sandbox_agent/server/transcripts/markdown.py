"""A transcript as Markdown; nothing that was said can break out of its place."""

from __future__ import annotations

import json
import re

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

__all__ = ["MarkdownRenderer", "contained", "fenced", "inline", "quoted"]

_TICKS = re.compile(r"`+")
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!&])")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)$")
_FENCE_LIKE = re.compile(r"`{3}|~{3}")
_HEADING = re.compile(r"( {0,3})(#{1,6})(?=[ \t]|$)")
# What begins a block of HTML that may reach over all that follows.
_HTML = re.compile(r"( {0,3})<(?=[!?/a-zA-Z])")
# The transcript's own headings are above those of what is said in it.
_DEMOTE = 3


def inline(text: str) -> str:
    """Return text for the middle of a line: no markup, no line end."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def fenced(text: str, language: str = "") -> str:
    """Return a code block whose fence is longer than any in the text."""
    longest = max((len(run) for run in _TICKS.findall(text)), default=0)
    fence = "`" * max(3, longest + 1)
    body = "\n".join(_lines(text)).rstrip("\n")
    return f"{fence}{language}\n{body}\n{fence}\n"


def contained(text: str) -> str:
    """Return what an agent wrote in Markdown so that it ends where it ends.

    Headings stand below the transcript's, HTML blocks are text. Where a fence stays open, or stands where
    only a whole parser could tell, the text is quoted: nothing gets out of a quote.
    """
    lines: list[str] = []
    fence = ""
    for line in _lines(text):
        found = _FENCE.match(line)
        if fence:
            if found and found[1][0] == fence[0] and len(found[1]) >= len(fence) and not found[2].strip():
                fence = ""
            lines.append(line)
        elif found and not (found[1][0] == "`" and "`" in found[2]):
            fence = found[1]
            lines.append(line)
        elif _FENCE_LIKE.search(line):
            return quoted(text)
        else:
            demoted = _HEADING.sub(
                lambda match: match[1] + "#" * min(len(match[2]) + _DEMOTE, 6), line, count=1
            )
            lines.append(_HTML.sub(r"\1\\<", demoted, count=1))
    return quoted(text) if fence else "\n".join(lines).strip("\n") + "\n"


def quoted(text: str) -> str:
    """Return text as a block quote."""
    return "".join(f"> {line}\n" if line else ">\n" for line in _lines(text.rstrip()))


def _lines(text: str) -> list[str]:
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


class MarkdownRenderer:
    """Turns entries into pieces of the text; each piece ends a paragraph."""

    def begin(self, info: SessionInfo) -> str:
        """Return the head: title, facts, totals."""
        lines = [f"# {inline(title_of(info))}\n\n"]
        lines += [f"- **{name}:** {inline(value)}\n" for name, value in facts(info)]
        return "".join(lines) + "\n"

    def entry(self, entry: Entry) -> str:
        """Return an entry."""
        match entry:
            case TurnStart():
                text = f"## Turn {entry.number}\n\n*{shown_time(entry.time)}*\n"
            case TurnEnd():
                text = f"*{inline(turn_line(entry))}*\n"
            case Said():
                text = _said(entry)
            case Called():
                text = _called(entry)
            case Status():
                text = _status(entry)
            case Asked():
                asked, verdict = asked_line(entry)
                text = f"**{entry.kind.capitalize()}:** {inline(asked)} — {inline(verdict)}\n"
            case Failure():
                code = f" ({inline(entry.code)})" if entry.code else ""
                text = f"**Error{code}:** {inline(entry.message)}\n"
                if entry.details is not None:
                    text += "\n" + _json(entry.details)
            case Mark():
                text = f"*{shown_time(entry.time)}: {inline(entry.text)}*\n"
        return text + "\n"

    def end(self) -> str:
        """Return what stands at the end."""
        return ""


def _said(entry: Said) -> str:
    thinks = bool(entry.parts) and all(isinstance(part, ReasoningPart) for part in entry.parts)
    heading = "Agent thinks" if thinks else ROLES.get(entry.role, inline(entry.role))
    note = {"failed": " (cut off)", "in_progress": " (not finished)"}.get(entry.status, "")
    quote = thinks or entry.role == "user"
    parts = [_part(part, quote=quote) for part in entry.parts]
    return f"### {heading}{note}\n\n" + "\n".join(part for part in parts if part)


def _called(entry: Called) -> str:
    status = {"completed": "", "in_progress": " (no result)"}.get(entry.status, f" ({entry.status})")
    if entry.results is None:
        status = " (no result)"
    kind = f" · {inline(entry.kind)}" if entry.kind else ""
    pieces = [f"### Tool: {inline(entry.title)}{kind}{status}\n"]
    if entry.arguments not in {"", "{}"}:
        text, language = pretty(entry.arguments)
        pieces.append("Input:\n\n" + fenced(text, language))
    pieces += [_part(part) for part in entry.parts]
    for part in entry.results or ():
        if isinstance(part, ToolResultPart):
            pieces += ["Output:\n\n" + fenced(part.output)] if part.output else []
        else:
            pieces.append(_part(part))
    return "\n".join(piece for piece in pieces if piece)


def _status(entry: Status) -> str:
    if entry.label == "plan" and entry.detail:
        steps = [_step(line) for line in entry.detail.split("\n")]
        return "**Plan:**\n\n" + "".join(steps)
    mark = " (failed)" if entry.failed else ""
    text = f"**{inline(entry.label.capitalize())}{mark}:** {inline(entry.detail)}\n"
    return text + "".join("\n" + _part(part) for part in entry.parts)


def _step(line: str) -> str:
    box, _, content = line.partition("] ")
    mark = {"[x": "[x]", "[~": "[ ]", "[ ": "[ ]"}.get(box)
    if mark is None:
        return f"  {inline(line)}\n"
    return f"- {mark} {inline(content)}{' (in progress)' if box == '[~' else ''}\n"


def _part(part: ContentPart, *, quote: bool = False) -> str:
    match part:
        case TextPart() | ReasoningPart():
            return (quoted(part.text) if quote else contained(part.text)) if part.text.strip() else ""
        case FileRefPart():
            line = f"File ({part.action}): {_code(part.path)}\n"
            return line + "\n" + fenced(part.diff, "diff") if part.diff else line
        case ImagePart():
            path = f"{part.mime or 'image'}, embedded" if part.path.startswith("data:") else part.path
            return f"Image: {_code(path)}\n"
        case ToolCallPart():
            return fenced(part.arguments)
        case ToolResultPart():
            return fenced(part.output)
        case StatusPart():
            return f"{inline(part.label)}: {inline(part.detail or '')}\n"
        case JsonPart():
            return _json(part.json)


def _code(text: str) -> str:
    flat = " ".join(text.split())
    longest = max((len(run) for run in _TICKS.findall(flat)), default=0)
    ticks = "`" * (longest + 1)
    pad = " " if longest else ""
    return f"{ticks}{pad}{flat}{pad}{ticks}"


def _json(value: object) -> str:
    try:
        return fenced(json.dumps(value, indent=2, ensure_ascii=False, default=str), "json")
    except (ValueError, RecursionError):
        return fenced(str(type(value).__name__))
