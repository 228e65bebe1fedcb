"""``sandbox-agent tail``: the universal events of a session, printed for users."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING

import click

from sandbox_agent.cli.output import Screen
from sandbox_agent.cli.remote import Remote, remote_options, run_remote
from sandbox_agent.wire.jsonrpc import members
from sandbox_agent.wire.universal import (
    AgentUnparsedData,
    ContentPart,
    ErrorData,
    FileRefPart,
    ImagePart,
    ItemDeltaData,
    ItemEventData,
    PermissionEventData,
    QuestionEventData,
    ReasoningPart,
    SessionEndedData,
    StatusPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    TurnEventData,
    UniversalEvent,
    UniversalItem,
    encode_event,
)

if TYPE_CHECKING:
    from sandbox_agent.client.server_sessions.api import ServerSessions

# Of a tool's output only the beginning is printed.
_OUTPUT_CHARS = 200
_ORDINARY_STOPS = {"", "end_turn"}


class UniversalPrinter:
    """Prints events in their order.

    Args:
        screen: Where to print.
        session_id: The session of the events.
        replies: After an open request, print the command that answers it.
    """

    def __init__(self, screen: Screen, session_id: str, *, replies: bool) -> None:
        self._screen = screen
        self._session_id = session_id
        self._replies = replies
        # The agent's incomplete messages by item id; the value says whether it is a thought.
        self._open: dict[str, bool] = {}
        # The items of which deltas were printed, and the one that was printed last.
        self._printed: set[str] = set()
        self._current = ""

    def print_event(self, event: UniversalEvent) -> None:
        """Print an event."""
        match event.data:
            case ItemDeltaData(item_id=item_id, delta=delta):
                self._print_delta(item_id, delta)
            case ItemEventData(item=item):
                if event.type == "item.started":
                    self._open_item(item)
                else:
                    self._print_completed(item)
            case TurnEventData() as turn:
                self._print_turn(turn)
            case PermissionEventData() as request:
                self._print_permission(request)
            case QuestionEventData() as request:
                self._print_question(request)
            case ErrorData(message=message, code=code):
                self._screen.note(f"error  {_line(message)}{f' ({code})' if code else ''}", "red")
            case SessionEndedData() as ended:
                why = f": {_line(ended.message)}" if ended.message else ""
                self._screen.note(f"ended  {ended.reason} by the {ended.terminated_by}{why}", "yellow")
            case AgentUnparsedData(error=error, location=location):
                self._screen.note(f"not understood  {_line(error)} ({location})", "dim")
            case _:
                pass

    def _print_delta(self, item_id: str, delta: str) -> None:
        is_thought = self._open.get(item_id)
        if is_thought is None:
            return  # the user's own message is printed when it is complete
        if self._current != item_id:
            self._screen.end_line()
            self._current = item_id
        self._printed.add(item_id)
        if is_thought:
            self._screen.write_thought(delta)
        else:
            self._screen.write_text(delta)

    def _open_item(self, item: UniversalItem) -> None:
        if item.kind in {"message", "system"} and item.role != "user":
            self._open[item.item_id] = any(isinstance(part, ReasoningPart) for part in item.content)

    def _print_completed(self, item: UniversalItem) -> None:
        if item.kind in {"message", "system"} and item.role != "user":
            self._end_message(item)
        elif item.kind == "message":
            self._screen.note(f"> {_text(item.content)}", "bold")
        elif item.kind == "tool_call":
            self._screen.note(f"tool   {_title(item.content)}", "cyan")
        elif item.kind == "tool_result":
            self._print_result(item)
        else:
            for part in item.content:
                if isinstance(part, StatusPart):
                    self._print_status(part, failed=item.status == "failed")

    def _end_message(self, item: UniversalItem) -> None:
        self._open.pop(item.item_id, None)
        if item.item_id in self._printed:
            self._printed.discard(item.item_id)
        elif text := _text(item.content):
            # Its start and its deltas came before the first event that was read.
            self._screen.end_line()
            self._screen.write_text(text)
        self._screen.end_line()

    def _print_result(self, item: UniversalItem) -> None:
        output = next((part.output for part in item.content if isinstance(part, ToolResultPart)), "")
        shown = _line(output)
        if len(shown) > _OUTPUT_CHARS:
            shown = shown[:_OUTPUT_CHARS] + "…"
        failed = item.status == "failed"
        self._screen.note(f"       {item.status}  {shown}".rstrip(), "red" if failed else "dim")
        for part in item.content:
            if isinstance(part, FileRefPart) and part.action != "read":
                self._screen.note(f"       {part.action}  {part.path}", "dim")

    def _print_status(self, part: StatusPart, *, failed: bool) -> None:
        first, *more = (part.detail or "").splitlines() or [""]
        self._screen.note(f"{part.label:<6} {first}".rstrip(), "red" if failed else "dim")
        for line in more:
            self._screen.note(f"       {line}", "dim")

    def _print_turn(self, turn: TurnEventData) -> None:
        if turn.phase == "started":
            return
        metadata = members(turn.metadata)
        reason = str(metadata.get("stop_reason") or "")
        if reason in _ORDINARY_STOPS:
            self._screen.end_line()
            return
        error = members(metadata.get("error")).get("message") or metadata.get("reason")
        self._screen.note(f"stopped  {reason}{f': {_line(str(error))}' if error else ''}", "yellow")

    def _print_permission(self, request: PermissionEventData) -> None:
        if request.status != "requested":
            by = members(request.metadata).get("answered_by")
            by = f" by {by}" if by else ""
            self._screen.note(f"permission {request.permission_id}  {request.status}{by}", "yellow")
            return
        self._screen.note(f"permission {request.permission_id}  {_line(request.action)}", "yellow")
        self._print_command(
            f"reply-permission {self._session_id} {request.permission_id} --reply once|always|reject"
        )

    def _print_question(self, request: QuestionEventData) -> None:
        if request.status != "requested":
            answer = f": {request.response}" if request.response else ""
            self._screen.note(f"question {request.question_id}  {request.status}{answer}", "yellow")
            return
        options = f" ({' | '.join(request.options)})" if request.options else ""
        self._screen.note(f"question {request.question_id}  {_line(request.prompt)}{options}", "yellow")
        self._print_command(f"reply-question {self._session_id} {request.question_id} --answers '[[\"…\"]]'")

    def _print_command(self, command: str) -> None:
        if self._replies:
            self._screen.note(f"       sandbox-agent api sessions {command}", "dim")


def _text(content: Sequence[ContentPart]) -> str:
    return "\n".join(shown for part in content if (shown := _part(part)))


def _part(part: ContentPart) -> str:
    match part:
        case TextPart(text=text) | ReasoningPart(text=text):
            return text
        case ImagePart(mime=mime):
            return f"[image{f' {mime}' if mime else ''}]"
        case FileRefPart(path=path):
            return f"[{path}]"
        case _:
            return ""


def _title(content: Sequence[ContentPart]) -> str:
    label = next((part.label for part in content if isinstance(part, StatusPart)), "")
    name = next((part.name for part in content if isinstance(part, ToolCallPart)), "tool")
    return _line(label or name)


def _line(text: str) -> str:
    return " ".join(text.split())


@click.command()
@click.argument("session_id", metavar="SESSION")
@click.option(
    "--offset",
    "-o",
    type=click.IntRange(0),
    default=0,
    metavar="SEQUENCE",
    help="Start after the event with this sequence.",
)
@click.option("--no-follow", is_flag=True, help="End at the end of the history.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON event per line.")
@remote_options
def tail(*, remote: Remote, session_id: str, offset: int, no_follow: bool, as_json: bool) -> None:
    """Show the history of a server's SESSION, then follow it until it ends.

    Reconnects when the connection or the server is lost.
    """
    run_remote(
        remote, lambda api: _tail_session(api, session_id, offset, follow=not no_follow, as_json=as_json)
    )


async def _tail_session(
    api: ServerSessions, session_id: str, offset: int, *, follow: bool, as_json: bool
) -> None:
    info = await api.get(session_id)
    screen = Screen(sys.stdout, sys.stdout)
    printer = UniversalPrinter(screen, session_id, replies=follow)
    if not as_json:
        title = f"  {info.title}" if info.title else ""
        screen.note(f"session {session_id}  agent {info.agent}{title}", "dim")
    stream = api.stream_events(session_id, offset=offset) if follow else _history(api, session_id, offset)
    try:
        async with contextlib.aclosing(stream):
            async for event in stream:
                if as_json:
                    click.echo(encode_event(event))
                else:
                    printer.print_event(event)
    finally:
        screen.end_line()


async def _history(api: ServerSessions, session_id: str, offset: int) -> AsyncGenerator[UniversalEvent]:
    while True:
        page = await api.get_events(session_id, offset=offset)
        for event in page.events:
            yield event
        if not page.has_more or not page.events:
            return
        offset = page.events[-1].sequence
