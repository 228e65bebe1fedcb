"""The Markdown that agents write, as HTML: escaped first, then a small, safe part of it is set.

Everything here takes time that grows with the text's length only, whatever it holds.
"""

from __future__ import annotations

import re
from html import escape

__all__ = ["prose"]

_FENCE = re.compile(r"\s{0,3}(`{3,}|~{3,})[^`]*$")
_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(.*)$")
_ITEM = re.compile(r"[ \t]{0,12}(?:([-*+])|(\d{1,9})[.)])[ \t]+(.*)$")
_QUOTE = re.compile(r" {0,3}> ?(.*)$")
_RULE = re.compile(r" {0,3}(?:-{3,}|\*{3,}|_{3,})[ \t]*$")
# On escaped text: no tag can be in it, and a URL ends where an attribute would.
_CODE = re.compile(r"(?<!`)(`{1,8})([^`]{1,2000})\1(?!`)")
_LINK = re.compile(r"\[([^\[\]\n]{1,300})\]\(((?:https?://|mailto:)[^\s()<>\"'`\x00]{1,2000})\)")
_URL = re.compile(r"(?<![\w\"'=/>])(https?://[^\s()<>\"'`\[\]\x00]{1,2000})")
_BOLD = re.compile(r"\*\*([^*\n\s](?:[^*\n]{0,500}[^*\n\s])?)\*\*")
_EMPHASIS = re.compile(r"(?<![\w*])\*([^*\n\s](?:[^*\n]{0,500}[^*\n\s])?)\*(?![\w*])")
# Tags that are set stand aside as these while the rest is set.
_HELD = re.compile("\x00(\\d+)\x00")


def prose(text: str) -> str:
    """Return a text as HTML blocks."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "\ufffd").split("\n")
    blocks: list[str] = []
    position = 0
    while position < len(lines):
        line = lines[position]
        if found := _FENCE.match(line):
            body, position = _take_fence(lines, position + 1, found[1])
            blocks.append(f"<pre><code>{escape(body)}</code></pre>")
        elif found := _HEADING.match(line):
            level = min(len(found[1]) + 3, 6)
            blocks.append(f"<h{level}>{_inline(found[2].rstrip(' #'))}</h{level}>")
            position += 1
        elif _RULE.match(line):
            blocks.append("<hr>")
            position += 1
        elif found := _ITEM.match(line):
            html, position = _take_list(lines, position, ordered=found[2] is not None)
            blocks.append(html)
        elif _QUOTE.match(line):
            html, position = _take_quote(lines, position)
            blocks.append(html)
        elif not line.strip():
            position += 1
        else:
            html, position = _take_paragraph(lines, position)
            blocks.append(html)
    return "\n".join(blocks)


def _take_fence(lines: list[str], position: int, fence: str) -> tuple[str, int]:
    start = position
    while position < len(lines):
        bare = lines[position].strip()
        if len(bare) >= len(fence) and bare == fence[0] * len(bare):
            return "\n".join(lines[start:position]), position + 1
        position += 1
    return "\n".join(lines[start:position]), position


def _take_list(lines: list[str], position: int, *, ordered: bool) -> tuple[str, int]:
    items: list[str] = []
    start = ""
    while position < len(lines) and (found := _ITEM.match(lines[position])):
        if (found[2] is not None) is not ordered:
            break
        if ordered and not items and int(found[2]) != 1:
            start = f' start="{int(found[2])}"'
        texts = [found[3]]
        position += 1
        while position < len(lines) and lines[position][:1] in {" ", "\t"} and lines[position].strip():
            if _ITEM.match(lines[position]) or _FENCE.match(lines[position]):
                break
            texts.append(lines[position].strip())
            position += 1
        items.append(f"<li>{_inline(chr(10).join(texts))}</li>")
    tag = "ol" if ordered else "ul"
    return f"<{tag}{start}>{''.join(items)}</{tag}>", position


def _take_quote(lines: list[str], position: int) -> tuple[str, int]:
    texts: list[str] = []
    while position < len(lines) and (found := _QUOTE.match(lines[position])):
        texts.append(found[1])
        position += 1
    return f"<blockquote><p>{_inline(chr(10).join(texts))}</p></blockquote>", position


def _take_paragraph(lines: list[str], position: int) -> tuple[str, int]:
    texts: list[str] = []
    while position < len(lines) and lines[position].strip():
        line = lines[position]
        if texts and any(kind.match(line) for kind in (_FENCE, _HEADING, _ITEM, _QUOTE, _RULE)):
            break
        texts.append(line)
        position += 1
    if len(texts) > 1 and all(line.lstrip().startswith("|") for line in texts):
        return f"<pre>{escape(chr(10).join(texts))}</pre>", position  # a table, its columns kept
    return f"<p>{_inline(chr(10).join(texts))}</p>", position


def _inline(text: str) -> str:
    held: list[str] = []

    def hold(html: str) -> str:
        held.append(html)
        return f"\x00{len(held) - 1}\x00"

    def link(match: re.Match[str], label: str) -> str:
        url = match[len(match.groups())]
        return hold(f'<a href="{url}" rel="noopener noreferrer nofollow">') + label + hold("</a>")

    safe = escape(text)
    safe = _CODE.sub(lambda match: hold(f"<code>{match[2].strip()}</code>"), safe)
    # a label that looks like an address is no second link
    safe = _LINK.sub(lambda match: link(match, match[1].replace("://", hold("://"))), safe)
    safe = _URL.sub(lambda match: link(match, hold(match[1])), safe)
    safe = _BOLD.sub(r"<strong>\1</strong>", safe)
    safe = _EMPHASIS.sub(r"<em>\1</em>", safe)
    safe = safe.replace("\n", "<br>\n")
    return _HELD.sub(lambda match: held[int(match[1])], safe)
