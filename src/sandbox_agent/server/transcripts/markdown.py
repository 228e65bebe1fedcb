"""A transcript as Markdown; the content of a message cannot change the text around it."""

from __future__ import annotations

import re
from typing import ClassVar

from jinja2 import Environment
from markdown_it import MarkdownIt
from markdown_it.token import Token

from sandbox_agent.server.transcripts.templating import (
    MAX_STRUCTURED,
    TemplateRenderer,
    convert_pieces,
    make_environment,
)

_SPACE = re.compile(r"\s+")
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!&])")
_TAG = re.compile(r"<(?=[!?/a-zA-Z])")
_HEADING = re.compile(r"#{1,6}")
# The transcript's own headings have the levels 1 to 3.
_LOWER_BY = 3
# Escaping HTML can expose more of it, but never for more rounds than these in what agents write.
_ROUNDS = 4
_parser = MarkdownIt("commonmark")


def inline(text: str) -> str:
    """Return text for the middle of a line: without markup and line ends."""
    return convert_pieces(text, lambda piece: _SPECIAL.sub(r"\\\1", _SPACE.sub(" ", piece))).strip()


def fenced(text: str, language: str = "") -> str:
    """Return a code block whose fence is longer than any in the text."""
    body = convert_pieces(text, _normalize).rstrip("\n")
    fence = "`" * max(3, _longest_ticks(body) + 1)
    return f"{fence}{language}\n{body}\n{fence}\n"


def code_span(text: str) -> str:
    """Return a code span on one line."""
    flat = " ".join(text.split())
    longest = _longest_ticks(flat)
    ticks = "`" * (longest + 1)
    pad = " " if longest else ""
    return f"{ticks}{pad}{flat}{pad}{ticks}"


def quoted(text: str) -> str:
    """Return text as a block quote."""
    return "".join(f"> {line}\n" if line else ">\n" for line in _normalize(text.rstrip()).split("\n"))


def contained(text: str, *, quote: bool = False) -> str:
    """Return Markdown that does not affect what follows it.

    Headings are lowered below those of the transcript, and HTML becomes text. A text with an open fence is
    quoted, because a quote ends every block in it. A very long text becomes a code block.
    """
    if len(text) > MAX_STRUCTURED:
        return fenced(text)
    lines = _normalize(text).split("\n")
    for _ in range(_ROUNDS):
        tokens = _parser.parse("\n".join(lines))
        if not _escape_html(lines, tokens):
            break
    else:
        return fenced(text)
    if quote or any(_is_open_fence(token, lines) for token in tokens):
        return quoted("\n".join(lines))
    for token in tokens:
        if token.type == "heading_open" and token.map and token.level == 0:
            _lower_heading(lines, token.map[0], token.map[1], token.markup)
    return "\n".join(lines).strip("\n") + "\n"


def _escape_html(lines: list[str], tokens: list[Token]) -> bool:
    """Escape the tags in the lines; return whether there were any."""
    found = False
    for token in tokens:
        if token.map is None:
            continue
        if token.type == "html_block":
            found = True
            for number in range(*token.map):
                lines[number] = _TAG.sub(r"\\<", lines[number])
        for child in token.children or ():
            if child.type == "html_inline":
                found = True
                tag = child.content.partition("\n")[0]
                for number in range(*token.map):
                    lines[number] = re.sub(
                        rf"(?<!\\){re.escape(tag)}", lambda match: "\\" + match[0], lines[number]
                    )
    return found


def _is_open_fence(token: Token, lines: list[str]) -> bool:
    if token.type != "fence" or token.level or token.map is None:
        return False
    first, end = token.map
    last = lines[end - 1].strip()
    return end - first < 2 or not (last.startswith(token.markup) and set(last) == set(token.markup))


def _lower_heading(lines: list[str], first: int, end: int, markup: str) -> None:
    if markup.startswith("#"):
        hashes = "#" * min(len(markup) + _LOWER_BY, 6)
        lines[first] = _HEADING.sub(hashes, lines[first], count=1)
        return
    # An underlined heading is rewritten: there is no underline for lower levels.
    hashes = "#" * (_LOWER_BY + (1 if markup == "=" else 2))
    lines[first] = f"{hashes} " + " ".join(line.strip() for line in lines[first : end - 1])
    lines[first + 1 : end] = [""] * (end - first - 1)


def _longest_ticks(text: str) -> int:
    """Return the length of the longest run of backticks."""
    longest, limit = 0, 1
    while "`" * limit in text:
        longest, limit = limit, limit * 2
    while limit - longest > 1:
        middle = (longest + limit) // 2
        if "`" * middle in text:
            longest = middle
        else:
            limit = middle
    return longest


def _normalize(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _is_shown(part: object) -> bool:
    text = getattr(part, "text", None)
    return not isinstance(text, str) or bool(text.strip())


class MarkdownRenderer(TemplateRenderer):
    """Renders entries as paragraphs; each entry ends with an empty line."""

    environment: ClassVar[Environment] = make_environment(
        autoescape=False,
        filters={"contained": contained, "fenced": fenced, "inline": inline, "code_span": code_span},
        tests={"shown": _is_shown},
    )
    suffix: ClassVar[str] = "md"
