"""``sandbox-agent api sessions``: one command per route."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sandbox_agent.cli.remote import Remote, remote_options, run_remote

if TYPE_CHECKING:
    from sandbox_agent.client.server_sessions.api import ExportFormat
    from sandbox_agent.engine.permissions import PermissionReply

__all__ = ["sessions"]

_session = click.argument("session_id", metavar="SESSION")
_raw = click.option("--include-raw", is_flag=True, help="With the ACP envelope each event was made from.")
_offset = click.option(
    "--offset",
    "-o",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="SEQUENCE",
    help="The last event you have.",
)
_message = click.option("--message", "-m", required=True, metavar="TEXT", help='The text; "-": from stdin.')
_key = click.option(
    "--idempotency-key", metavar="KEY", help="The same key never sends twice; default: a new one."
)


@click.group()
def sessions() -> None:
    """The server's own sessions: make them, talk to them, follow them."""


@sessions.command()
@_session
@click.option("--agent", "-a", required=True, metavar="ID", help="Which agent: mock, claude, codex, ...")
@click.option("--agent-mode", "-g", metavar="ID", help="Which mode, as the agent calls it.")
@click.option("--permission-mode", "-p", metavar="MODE", help="ask, acceptEdits, allow or reject.")
@click.option("--model", "-m", metavar="ID", help="Which model, as the agent calls it.")
@click.option("--variant", "-v", metavar="ID", help="The model's variant: how much it thinks.")
@click.option("--directory", metavar="PATH", help="Where the agent works; default: the server's folder.")
@click.option("--title", metavar="TEXT", help="For people.")
@click.option(
    "--permission-timeout",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Reject what nobody has answered by then; default: never.",
)
@remote_options
def create(*, remote: Remote, session_id: str, permission_timeout: float | None, **options: Any) -> None:
    """Make a session."""
    from sandbox_agent.cli import api_calls

    if permission_timeout is not None:
        options["permission_timeout_seconds"] = permission_timeout
    run_remote(remote, lambda api: api_calls.create(api, session_id, options))


@sessions.command("list")
@click.option("--limit", "-l", type=click.IntRange(1, 10_000), metavar="COUNT", help="Sessions a page.")
@click.option("--cursor", help="Where the page before ended: its nextCursor.")
@remote_options
def list_(*, remote: Remote, limit: int | None, cursor: str | None) -> None:
    """List sessions, newest first."""
    from sandbox_agent.cli import api_calls

    run_remote(remote, lambda api: api_calls.list_page(api, limit, cursor))


@sessions.command()
@_session
@remote_options
def get(*, remote: Remote, session_id: str) -> None:
    """Show one session, with its newest turns and what they cost."""
    from sandbox_agent.cli import api_calls

    run_remote(remote, lambda api: api_calls.get(api, session_id))


@sessions.command("send-message")
@_session
@_message
@_key
@remote_options
def send_message(*, remote: Remote, session_id: str, message: str, idempotency_key: str | None) -> None:
    """Send a message; it ends when the server has stored it."""
    from sandbox_agent.cli import api_calls

    text = _text(message)
    run_remote(remote, lambda api: api_calls.send_message(api, session_id, text, idempotency_key))


@sessions.command("send-message-stream")
@_session
@_message
@_key
@_raw
@remote_options
def send_message_stream(
    *, remote: Remote, session_id: str, message: str, idempotency_key: str | None, include_raw: bool
) -> None:
    """Send a message and write its turn's events until it ended."""
    from sandbox_agent.cli import api_calls

    text = _text(message)
    run_remote(
        remote,
        lambda api: api_calls.send_message_stream(
            api, session_id, text, idempotency_key, include_raw=include_raw
        ),
    )


@sessions.command()
@_session
@_offset
@click.option("--limit", "-l", type=click.IntRange(1), metavar="COUNT", help="Events at most.")
@_raw
@remote_options
def events(*, remote: Remote, session_id: str, offset: int, limit: int | None, include_raw: bool) -> None:
    """Show events behind an offset."""
    from sandbox_agent.cli import api_calls

    run_remote(remote, lambda api: api_calls.events(api, session_id, offset, limit, include_raw=include_raw))


@sessions.command("events-sse")
@_session
@_offset
@_raw
@remote_options
def events_sse(*, remote: Remote, session_id: str, offset: int, include_raw: bool) -> None:
    """Follow a session's events until it has ended."""
    from sandbox_agent.cli import api_calls

    run_remote(remote, lambda api: api_calls.events_sse(api, session_id, offset, include_raw=include_raw))


@sessions.command()
@_session
@remote_options
def cancel(*, remote: Remote, session_id: str) -> None:
    """Stop the turn that runs; the session stays."""
    run_remote(remote, lambda api: api.cancel(session_id))


@sessions.command()
@_session
@remote_options
def terminate(*, remote: Remote, session_id: str) -> None:
    """End a session and its agent; its history stays."""
    run_remote(remote, lambda api: api.terminate(session_id))


@sessions.command()
@_session
@remote_options
def delete(*, remote: Remote, session_id: str) -> None:
    """Erase a session with its history."""
    run_remote(remote, lambda api: api.delete(session_id))


@sessions.command()
@_session
@click.option(
    "--format",
    "-f",
    "format_",
    type=click.Choice(["jsonl", "markdown", "html"]),
    default="jsonl",
    show_default=True,
    help="Events one a line, or a document to read.",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="The file to write; default: standard output.",
)
@remote_options
def export(*, remote: Remote, session_id: str, format_: ExportFormat, output: Path | None) -> None:
    """Export a whole session."""
    from sandbox_agent.cli import api_calls

    run_remote(remote, lambda api: api_calls.export(api, session_id, format_, output))


@sessions.command("reply-permission")
@_session
@click.argument("permission_id", metavar="PERMISSION")
@click.option(
    "--reply", "-r", required=True, type=click.Choice(["once", "always", "reject"]), help="The answer."
)
@remote_options
def reply_permission(*, remote: Remote, session_id: str, permission_id: str, reply: PermissionReply) -> None:
    """Answer a permission request; the first answer counts."""
    run_remote(remote, lambda api: api.reply_permission(session_id, permission_id, reply))


@sessions.command("reply-question")
@_session
@click.argument("question_id", metavar="QUESTION")
@click.option(
    "--answers",
    "-a",
    required=True,
    metavar="JSON",
    help="For each question the chosen options: '[[\"yes\"]]'.",
)
@remote_options
def reply_question(*, remote: Remote, session_id: str, question_id: str, answers: str) -> None:
    """Answer a question; the first answer counts."""
    import msgspec

    try:
        chosen = msgspec.json.decode(answers, type=list[list[str]])
    except msgspec.DecodeError as error:
        raise click.UsageError(
            f"--answers is no JSON array of arrays of texts, such as '[[\"yes\"]]' ({error})"
        ) from error
    run_remote(remote, lambda api: api.reply_question(session_id, question_id, chosen))


@sessions.command("reject-question")
@_session
@click.argument("question_id", metavar="QUESTION")
@remote_options
def reject_question(*, remote: Remote, session_id: str, question_id: str) -> None:
    """Refuse to answer a question."""
    run_remote(remote, lambda api: api.reject_question(session_id, question_id))


def _text(message: str) -> str:
    text = sys.stdin.read() if message == "-" else message
    if not text.strip():
        raise click.UsageError('the message is empty: say something, or give "-" and pipe it in')
    return text
