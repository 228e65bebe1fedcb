"""A transcript as one HTML page without scripts and external resources; all content is escaped.

The agents' Markdown is rendered as CommonMark with tables, without raw HTML and images.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar

from jinja2 import Environment
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markupsafe import Markup, escape

from sandbox_agent.server.transcripts.templating import (
    MAX_STRUCTURED,
    TemplateRenderer,
    convert_pieces,
    make_environment,
)
from sandbox_agent.wire.universal import ContentPart, ImagePart

# The page's own headings have the levels 1 to 3.
_LOWER_BY = 3
_SCHEME = re.compile(r"(?<![\w/])https?$")
_REST = re.compile(r"://[^\s()<>\"'`\[\]\x00]{0,2000}[^\s()<>\"'`\[\]\x00.,;:!?*_~|]")
_LINKS = ("http://", "https://", "mailto:")


def render_prose(text: str) -> Markup:
    """Render Markdown as HTML blocks; a very long text is shown as it is."""
    if len(text) > MAX_STRUCTURED:
        return Markup(f"<pre>{convert_pieces(text, escape)}</pre>")  # noqa: S704 - escaped
    return Markup(_markdown.render(text).rstrip("\n"))  # noqa: S704 - its renderer escapes the text


def _link_bare_url(state: StateInline, silent: bool) -> bool:
    """Make a link of a URL in the text.

    The library's own rule takes quadratic time for texts such as ``[a](http://`` repeated.
    """
    if state.linkLevel or not state.src.startswith("://", state.pos):
        return False
    scheme = _SCHEME.search(state.pending[-6:])
    rest = _REST.match(state.src, state.pos)
    if scheme is None or rest is None:
        return False
    if not silent:
        url = scheme[0] + rest[0]
        state.pending = state.pending[: -len(scheme[0])]
        state.push("link_open", "a", 1).attrs = {"href": state.md.normalizeLink(url)}
        state.push("text", "", 0).content = url
        state.push("link_close", "a", -1)
    state.pos = rest.end()
    return True


def _lower_headings(state: StateCore) -> None:
    for token in state.tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1:]) + _LOWER_BY, 6)}"


def _open_link(renderer: RendererHTML, tokens: list[Token], index: int, options: object, env: object) -> str:
    href = escape(str(tokens[index].attrs["href"]))
    return f'<a href="{href}" rel="noopener noreferrer nofollow">'


def _make_markdown() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": False, "breaks": True, "xhtmlOut": False})
    markdown.enable(["table", "strikethrough"]).disable(["image", "html_block", "html_inline"])
    markdown.validateLink = lambda url: url.lower().startswith(_LINKS)
    markdown.inline.ruler.before("escape", "bare_url", _link_bare_url)
    markdown.core.ruler.push("lower_headings", _lower_headings)
    markdown.add_render_rule("link_open", _open_link)
    return markdown


_markdown = _make_markdown()

_IMAGE = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/]+={0,2}")
_STYLES = {"+": "add", "-": "del", "@": "hunk"}


def _escape(text: str) -> Markup:
    return Markup(convert_pieces(text, escape))  # noqa: S704 - escaped


def _diff_lines(diff: str) -> Iterator[tuple[str, str]]:
    """Yield the style and the text of each line; a very long diff has no styles."""
    if len(diff) > MAX_STRUCTURED:
        yield "", _escape(diff)
        return
    for line in diff.rstrip("\n").split("\n"):
        yield _STYLES.get(line[:1], ""), line or " "


def _is_embedded_image(part: ContentPart) -> bool:
    return isinstance(part, ImagePart) and _IMAGE.fullmatch(part.path) is not None


class HtmlRenderer(TemplateRenderer):
    """Renders entries as elements of the page."""

    environment: ClassVar[Environment] = make_environment(
        autoescape=True,
        filters={"diff_lines": _diff_lines, "markdown": render_prose, "text": _escape},
        tests={"embedded_image": _is_embedded_image},
    )
    suffix: ClassVar[str] = "html"
