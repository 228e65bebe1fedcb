"""``sandbox-agent api``; ``sessions`` has one command per route of the server's sessions."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncGenerator, Awaitable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from sandbox_agent.cli.api_agents import agents
from sandbox_agent.cli.api_config import config
from sandbox_agent.cli.api_files import fs
from sandbox_agent.cli.api_processes import processes
from sandbox_agent.cli.completion import complete_agents
from sandbox_agent.cli.output import echo_document, echo_json, open_output
from sandbox_agent.cli.remote import Remote, remote_options, run_remote
from sandbox_agent.wire.universal import UniversalEvent, encode_event

if TYPE_CHECKING:
    from sandbox_agent.client.server_sessions.api import ExportFormat, ServerSessions
    from sandbox_agent.engine.permissions import PermissionReply

_session = click.argument("session_id", metavar="SESSION")
_raw = click.option("--include-raw", is_flag=True, help="Include the ACP envelope of each event.")
_offset = click.option(
    "--offset",
    "-o",
    type=click.IntRange(0),
    default=0,
    metavar="SEQUENCE",
    help="Start after the event with this sequence.",
)
_message = click.option(
    "--message", "-m", required=True, metavar="TEXT", help='The text, or "-" for standard input.'
)
_key = click.option(
    "--idempotency-key", metavar="KEY", help="The same key never sends twice. Default: a new key."
)


@click.group()
def api() -> None:
    """Call the HTTP API of a running server.

    Output is JSON; streams write one JSON object per line.
    """


for _group in (agents, config, fs, processes):
    api.add_command(_group)


@api.group()
def sessions() -> None:
    """Create, prompt and follow the server's sessions."""


@sessions.command()
@_session
@click.option(
    "--agent",
    "-a",
    required=True,
    metavar="ID",
    shell_complete=complete_agents,
    help="Agent id: mock, claude, codex, ...",
)
@click.option("--agent-mode", "-g", metavar="ID", help="Mode id of the agent.")
@click.option(
    "--permission-mode", "-p", metavar="MODE", help="ask, accept_edits, allow, plan, read_only or reject."
)
@click.option("--model", "-m", metavar="ID", help="Model id of the agent.")
@click.option("--variant", "-v", metavar="ID", help="Variant of the model: its thought level.")
@click.option("--directory", metavar="PATH", help="Working directory. Default: that of the server.")
@click.option("--title", metavar="TEXT", help="Title of the session.")
@click.option(
    "--permission-timeout",
    "permission_timeout_seconds",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Reject permission requests without an answer after this time. Default: never.",
)
@remote_options
def create(*, remote: Remote, session_id: str, **options: Any) -> None:
    """Create a session."""
    run_remote(remote, lambda api: _print_json(api.create(session_id, **options)))


@sessions.command("list")
@click.option("--limit", "-l", type=click.IntRange(1, 10_000), metavar="COUNT", help="Sessions per page.")
@click.option("--cursor", help="The nextCursor of the previous page.")
@remote_options
def list_(*, remote: Remote, limit: int | None, cursor: str | None) -> None:
    """List sessions, newest first."""
    from sandbox_agent.wire.sessions import SessionListResponse

    async def list_page(api: ServerSessions) -> None:
        page = await api.list(limit=limit, cursor=cursor)
        echo_json(SessionListResponse(sessions=page.items, next_cursor=page.next_cursor))

    run_remote(remote, list_page)


@sessions.command()
@_session
@remote_options
def get(*, remote: Remote, session_id: str) -> None:
    """Show one session, with its latest turns and their cost."""
    run_remote(remote, lambda api: _print_json(api.get(session_id)))


@sessions.command("send-message")
@_session
@_message
@_key
@remote_options
def send_message(*, remote: Remote, session_id: str, message: str, idempotency_key: str | None) -> None:
    """Send a message and return when the server has stored it."""
    text = _read_message(message)

    async def post(api: ServerSessions) -> None:
        turn_id = await api.post_message(session_id, text, idempotency_key=idempotency_key)
        echo_json({"turnId": turn_id})

    run_remote(remote, post)


@sessions.command("send-message-stream")
@_session
@_message
@_key
@_raw
@remote_options
def send_message_stream(
    *, remote: Remote, session_id: str, message: str, idempotency_key: str | None, include_raw: bool
) -> None:
    """Send a message and write the events of its turn until the turn has ended."""
    text = _read_message(message)
    run_remote(
        remote,
        lambda api: _print_events(
            api.stream_turn(session_id, text, idempotency_key=idempotency_key, include_raw=include_raw)
        ),
    )


@sessions.command()
@_session
@_offset
@click.option("--limit", "-l", type=click.IntRange(1), metavar="COUNT", help="Maximum number of events.")
@_raw
@remote_options
def events(*, remote: Remote, session_id: str, **options: Any) -> None:
    """Show the events after an offset."""

    async def get_page(api: ServerSessions) -> None:
        page = await api.get_events(session_id, **options)
        lines = [msgspec.Raw(encode_event(event)) for event in page.events]
        echo_json({"events": lines, "hasMore": page.has_more})

    run_remote(remote, get_page)


@sessions.command("events-sse")
@_session
@_offset
@_raw
@remote_options
def events_sse(*, remote: Remote, session_id: str, offset: int, include_raw: bool) -> None:
    """Follow the events of a session until it ends."""
    run_remote(
        remote,
        lambda api: _print_events(api.stream_events(session_id, offset=offset, include_raw=include_raw)),
    )


@sessions.command()
@_session
@remote_options
def cancel(*, remote: Remote, session_id: str) -> None:
    """Cancel the running turn. The session stays open."""
    run_remote(remote, lambda api: api.cancel(session_id))


@sessions.command()
@_session
@remote_options
def terminate(*, remote: Remote, session_id: str) -> None:
    """End a session and its agent. Its history stays."""
    run_remote(remote, lambda api: api.terminate(session_id))


@sessions.command()
@_session
@remote_options
def delete(*, remote: Remote, session_id: str) -> None:
    """Delete a session and its history."""
    run_remote(remote, lambda api: api.delete(session_id))


@sessions.command()
@_session
@click.option(
    "--format",
    "-f",
    "format_",
    type=click.Choice(["jsonl", "markdown", "html"]),
    default="jsonl",
    help="One event per line, or a document to read.",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="File to write. Default: standard output.",
)
@remote_options
def export(*, remote: Remote, session_id: str, format_: ExportFormat, output: Path | None) -> None:
    """Export a whole session."""

    async def export_document(api: ServerSessions) -> None:
        document = await api.export(session_id, format=format_)
        if output is None:
            echo_document(document)
            return
        with open_output(output) as file:
            file.write(document)

    run_remote(remote, export_document)


@sessions.command("reply-permission")
@_session
@click.argument("permission_id", metavar="PERMISSION")
@click.option(
    "--reply", "-r", required=True, type=click.Choice(["once", "always", "reject"]), help="The answer."
)
@remote_options
def reply_permission(*, remote: Remote, session_id: str, permission_id: str, reply: PermissionReply) -> None:
    """Answer a permission request. The first answer wins."""
    run_remote(remote, lambda api: api.reply_permission(session_id, permission_id, reply))


@sessions.command("reply-question")
@_session
@click.argument("question_id", metavar="QUESTION")
@click.option(
    "--answers",
    "-a",
    required=True,
    metavar="JSON",
    help="The chosen options of each question: '[[\"yes\"]]'.",
)
@remote_options
def reply_question(*, remote: Remote, session_id: str, question_id: str, answers: str) -> None:
    """Answer a question. The first answer wins."""
    try:
        chosen = msgspec.json.decode(answers, type=list[list[str]])
    except msgspec.DecodeError as error:
        raise click.UsageError(
            f"--answers must be a JSON array of arrays of strings such as '[[\"yes\"]]' ({error})"
        ) from error
    run_remote(remote, lambda api: api.reply_question(session_id, question_id, chosen))


@sessions.command("reject-question")
@_session
@click.argument("question_id", metavar="QUESTION")
@remote_options
def reject_question(*, remote: Remote, session_id: str, question_id: str) -> None:
    """Refuse to answer a question."""
    run_remote(remote, lambda api: api.reject_question(session_id, question_id))


def _read_message(message: str) -> str:
    text = sys.stdin.read() if message == "-" else message
    if not text.strip():
        raise click.UsageError('the message is empty: pass a text, or "-" to read standard input')
    return text


async def _print_json(response: Awaitable[object]) -> None:
    echo_json(await response)


async def _print_events(stream: AsyncGenerator[UniversalEvent]) -> None:
    async with contextlib.aclosing(stream):
        async for event in stream:
            echo_document(encode_event(event))
