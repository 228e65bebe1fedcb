"""What the templates of both forms share: their environment, and the conversion of long texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Environment, FileSystemLoader

from sandbox_agent.server.transcripts.entries import Entry
from sandbox_agent.server.transcripts.labels import (
    NOTES,
    ROLES,
    facts,
    format_json,
    format_time,
    plan_steps,
    pretty,
    title_of,
    turn_line,
    verdict_line,
)
from sandbox_agent.wire.sessions import SessionInfo
from sandbox_agent.wire.universal import (
    FileRefPart,
    ImagePart,
    ReasoningPart,
    StatusPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

# Texts are converted in pieces, and very long ones without regard to their structure: one call on a long text
# would hold the interpreter's lock, and so block the event loop, for seconds.
PIECE_CHARACTERS = 64 * 1024
MAX_STRUCTURED = 256 * 1024


def _is_instance(*kinds: type) -> Callable[[object], bool]:
    return lambda value: isinstance(value, kinds)


_FILTERS: Mapping[str, Any] = {
    "json": format_json,
    "plan_steps": plan_steps,
    "pretty": pretty,
    "shown_time": format_time,
    "turn_line": turn_line,
    "verdict_line": verdict_line,
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
    shared: Mapping[str, Any] = {"notes": NOTES, "roles": ROLES}
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
        return self._render("head", title=title_of(info), facts=facts(info))

    def entry(self, entry: Entry) -> Iterator[str]:
        """Render an entry."""
        return self._render("entry", entry=entry, kind=type(entry).__name__)

    def end(self) -> Iterator[str]:
        """Render the end of the transcript."""
        return self._render("tail")

    def _render(self, name: str, **values: Any) -> Iterator[str]:
        return self.environment.get_template(f"{name}.{self.suffix}.jinja").generate(**values)
