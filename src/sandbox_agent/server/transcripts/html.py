"""A transcript as one HTML page without scripts and external resources; all content is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar

from jinja2 import Environment
from markupsafe import Markup, escape

from sandbox_agent.server.transcripts.prose import render_prose
from sandbox_agent.server.transcripts.templating import (
    MAX_STRUCTURED,
    TemplateRenderer,
    convert_pieces,
    make_environment,
)
from sandbox_agent.wire.universal import ContentPart, ImagePart

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
