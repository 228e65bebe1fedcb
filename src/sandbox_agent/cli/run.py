"""``sandbox-agent run``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from sandbox_agent.cli.exit_codes import EXIT_CODES, OTHER_STOP
from sandbox_agent.cli.stores import store_option

__all__ = ["run"]

_CODES = "\n".join(f"  {code:<4} {reason}" for reason, code in EXIT_CODES.items())
_EPILOG = f"""\b
Exit codes, by the agent's stop reason:
{_CODES}
  {OTHER_STOP:<4} another stop reason
  2    a wrong command line; errors have the codes of docs/errors.md

\b
Examples:
  sandbox-agent run "Explain this repository." --agent claude
  git diff | sandbox-agent run - --agent codex --json > events.jsonl
"""


@click.command(epilog=_EPILOG)
@click.argument("prompt")
@click.option("--agent", "-a", required=True, metavar="ID", help="Which agent: mock, claude, codex, ...")
@click.option(
    "--cwd",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the agent works; default: here.",
)
@click.option("--model", metavar="ID", help="Which model, as the agent calls it.")
@click.option("--mode", metavar="ID", help="Which mode, as the agent calls it.")
@click.option("--thought-level", metavar="ID", help="How much it thinks, as the agent calls it.")
@click.option("--yes", "-y", is_flag=True, help="Allow every tool call that asks.")
@click.option("--json", "as_json", is_flag=True, help="Write the turn's ACP envelopes, one a line.")
@store_option(
    "--store",
    envvar="SANDBOX_AGENT_STORE",
    show_envvar=True,
    must_exist=False,
    help="Where to keep the session: a path of an SQLite file, or a store's URL; default: it is not kept.",
)
def run(
    *,
    prompt: str,
    agent: str,
    cwd: Path | None,
    model: str | None,
    mode: str | None,
    thought_level: str | None,
    yes: bool,
    as_json: bool,
    store: str | None,
) -> None:
    """Give an agent one PROMPT ("-": from standard input) and stream what it does.

    A server is started for it on this machine and ended with it. What the agent says goes to standard
    output; its thoughts, tool calls and plan go to standard error. Where a tool call needs a permission
    you are asked; without a terminal it is rejected, unless --yes is given. Ctrl-C cancels the turn, a
    second one ends everything at once.
    """
    if prompt == "-":
        prompt = sys.stdin.read()
    if not prompt.strip():
        raise click.UsageError('the prompt is empty: say something, or give "-" and pipe it in')
    import asyncio

    from sandbox_agent.cli.one_turn import OneTurn

    turn = OneTurn(
        prompt=prompt,
        agent=agent,
        cwd=None if cwd is None else str(cwd.absolute()),
        model=model,
        mode=mode,
        thought_level=thought_level,
        yes=yes,
        as_json=as_json,
        store=store,
    )
    raise SystemExit(asyncio.run(turn.run()))
