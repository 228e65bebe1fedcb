"""``sandbox-agent run``: a server, a session and one turn."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from sandbox_agent.cli.attachments import file_block, stdin_block
from sandbox_agent.cli.event_printer import EventPrinter
from sandbox_agent.cli.interrupts import Interrupts, handle_interrupts
from sandbox_agent.cli.launch import Launch, events_after, launch_options
from sandbox_agent.cli.live import live_region
from sandbox_agent.cli.logs import configure_logging
from sandbox_agent.cli.output import Screen
from sandbox_agent.cli.prompts import Prompts, ReadProgress
from sandbox_agent.cli.stores import store_option
from sandbox_agent.client.agent import SandboxAgent
from sandbox_agent.client.session import Session
from sandbox_agent.persist.open import parse_store_url
from sandbox_agent.wire.acp import ContentBlock, TextContent

# 2 is a wrong command line, as in other programs.
EXIT_CODES: Final = {
    "end_turn": 0,
    "max_tokens": 3,
    "max_turn_requests": 4,
    "refusal": 5,
    "cancelled": 128 + signal.SIGINT,  # as in shells
}
OTHER_STOP: Final = 6

_CODES = "\n".join(f"  {code:<4} {reason}" for reason, code in EXIT_CODES.items())
_EPILOG = f"""\b
Exit codes, by the agent's stop reason:
{_CODES}
  {OTHER_STOP:<4} another stop reason
  2    a wrong command line; for errors see docs/errors.md

\b
Examples:
  sandbox-agent run "Explain this repository." --agent claude
  git diff | sandbox-agent run "Review this." --agent codex --json > events.jsonl
  sandbox-agent run "What is on it?" --file photo.png --agent claude --store sessions.db
  sandbox-agent run "And now in French." --continue --store sessions.db
"""


@click.command(epilog=_EPILOG)
@click.argument("prompt")
@launch_options
@click.option(
    "--file",
    "-f",
    "files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file for the agent: an image, a text, or a link to it, as the agent supports. Can be repeated.",
)
@click.option("--yes", "-y", is_flag=True, help="Allow every tool call that asks for permission.")
@click.option("--json", "as_json", is_flag=True, help="Write the ACP envelopes of the turn, one per line.")
@store_option(
    "--store",
    envvar="SANDBOX_AGENT_STORE",
    show_envvar=True,
    must_exist=False,
    help="Where to store the session: the path of an SQLite file, or a store URL. Default: not stored.",
)
def run(*, prompt: str, files: tuple[Path, ...], launch: Launch, yes: bool, as_json: bool) -> None:
    """Run one PROMPT ("-": from standard input) and stream the agent's output.

    Starts a server, on this machine unless --sandbox names a service, and ends it afterwards. The agent's
    text goes to standard output; its thoughts, tool calls and plan go to standard error. Standard input that
    is a pipe or a file is sent with the prompt. If a tool call needs permission, you are asked; without a
    terminal it is rejected unless --yes is given. An agent can ask you questions on a terminal; the end of
    the input (Ctrl-D) declines them. Ctrl-C cancels the turn; a second Ctrl-C ends everything immediately.
    """
    if prompt == "-":
        prompt = sys.stdin.read()
    if not prompt.strip():
        raise click.UsageError('the prompt is empty: pass a text, or "-" to read standard input')
    launch = launch.prepared()
    turn = _Run(prompt=prompt, given=stdin_block(), files=files, launch=launch, yes=yes, as_json=as_json)
    raise SystemExit(asyncio.run(turn.run()))


@dataclass(frozen=True, kw_only=True)
class _Run:
    """The prompt and the options of ``run``."""

    prompt: str
    given: ContentBlock | None
    files: tuple[Path, ...]
    launch: Launch
    yes: bool
    as_json: bool

    async def run(self) -> int:
        """Run the turn and return the exit code."""
        configure_logging("warning", "text")
        screen = Screen(sys.stdout, sys.stderr)
        with handle_interrupts() as interrupts:
            work = asyncio.ensure_future(self._run_turn(screen, interrupts))
            interrupts.end = work.cancel
            try:
                return await work
            except asyncio.CancelledError:
                if interrupts.exit_code is None:
                    raise
                screen.note("ended immediately", "red")
                return interrupts.exit_code
            finally:
                await interrupts.stop_cancelling()

    async def _run_turn(self, screen: Screen, interrupts: Interrupts) -> int:
        prompts, progress = Prompts(screen, yes=self.yes), ReadProgress()
        async with self.launch.open_client(screen) as sdk:
            blocks = await self._blocks(sdk)
            record = self.launch.record
            before = 0 if record is None else await sdk.persist.last_event_index(record.id)
            session = await self.launch.open_session(
                sdk, prompts.reply, prompts.answer if prompts.can_ask else None
            )
            if record is not None and not self.as_json:
                for event in await events_after(sdk, record.id, before):
                    EventPrinter(screen).print_event(event)

            async def cancel() -> None:
                screen.note("cancelling; press Ctrl-C again to end immediately", "yellow")
                await session.cancel()

            interrupts.cancel = cancel
            prompts.ready = lambda: progress.catch_up(sdk, session)
            stop_reason = await self._stream(session, blocks, screen, progress.advance)
            if (store := self.launch.store) is not None:
                screen.note(f"session {session.id} is stored in {parse_store_url(store).shown}", "dim")
        if stop_reason != "end_turn":
            screen.note(f"stopped: {stop_reason or 'without a reason'}", "yellow")
        return EXIT_CODES.get(stop_reason, OTHER_STOP)

    async def _blocks(self, sdk: SandboxAgent) -> list[ContentBlock]:
        """Return the content blocks of the prompt: what it is about comes first."""
        blocks: list[ContentBlock] = [] if self.given is None else [self.given]
        if self.files:
            launch = self.launch
            info = await sdk.get_agent(launch.agent_id)
            blocks += [
                file_block(path, info.id, info.capabilities, launch.path_in_sandbox) for path in self.files
            ]
        return [*blocks, TextContent(text=self.prompt)]

    async def _stream(
        self, session: Session, blocks: list[ContentBlock], screen: Screen, advance: Callable[[int], None]
    ) -> str:
        live = None if self.as_json else live_region(screen)
        printer = EventPrinter(screen, live=live)
        turn = session.stream(blocks)
        try:
            async for event in turn:
                if self.as_json:
                    sys.stdout.buffer.write(event.payload_json + b"\n")
                    sys.stdout.buffer.flush()
                else:
                    printer.print_event(event)
                advance(event.event_index)
        finally:
            if live is not None:
                live.clear()
            screen.end_line()
        return turn.response.stop_reason
