"""``sandbox-agent run``: a server, a session and one turn."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from sandbox_agent.cli.completion import complete_agents
from sandbox_agent.cli.event_printer import EventPrinter
from sandbox_agent.cli.logs import configure_logging
from sandbox_agent.cli.output import Screen
from sandbox_agent.cli.prompts import Prompts, ReadProgress
from sandbox_agent.cli.stores import open_store, store_option
from sandbox_agent.cli.user_agents import agent_command_option, agents_options
from sandbox_agent.client.agent import SandboxAgent
from sandbox_agent.client.session import Session
from sandbox_agent.engine.permissions import PERMISSION_MODES, PermissionMode
from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.persist.memory import InMemorySessionPersistDriver
from sandbox_agent.persist.open import parse_store_url
from sandbox_agent.providers.base import SandboxProvider
from sandbox_agent.providers.jail import jail
from sandbox_agent.providers.local import local
from sandbox_agent.providers.services import SERVICES, WITH_IMAGE, open_service

# 2 is a wrong command line, as in other programs.
EXIT_CODES: Final = {
    "end_turn": 0,
    "max_tokens": 3,
    "max_turn_requests": 4,
    "refusal": 5,
    "cancelled": 128 + signal.SIGINT,  # as in shells
}
OTHER_STOP: Final = 6


_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """The reactions to signals.

    Attributes:
        cancel: Called at the first Ctrl-C. If None, the first Ctrl-C ends the command too.
        end: Called at the second Ctrl-C, at SIGTERM and at SIGHUP.
        exit_code: None, or 128 and the number of the signal that ended the command, as in shells.
    """

    def __init__(self) -> None:
        self.cancel: Callable[[], Awaitable[None]] | None = None
        self.end: Callable[[], object] | None = None
        self.exit_code: int | None = None
        self._cancelling: asyncio.Future[None] | None = None

    def handle(self, number: signal.Signals) -> None:
        """React to a signal."""
        if number is signal.SIGINT and self.cancel is not None and self._cancelling is None:
            self._cancelling = asyncio.ensure_future(self.cancel())
            return
        self.exit_code = 128 + number
        if self.end is not None:
            self.end()

    async def stop_cancelling(self) -> None:
        """Stop the call of ``cancel``: the turn has ended."""
        if self._cancelling is not None:
            self._cancelling.cancel()
            await asyncio.wait({self._cancelling})


@contextlib.contextmanager
def handle_interrupts() -> Generator[Interrupts]:
    """Handle SIGINT, SIGTERM and SIGHUP in the running loop until the context exits."""
    loop = asyncio.get_running_loop()
    interrupts = Interrupts()
    for number in _SIGNALS:
        loop.add_signal_handler(number, interrupts.handle, number)
    try:
        yield interrupts
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


# Without a store, events are kept for this turn only. This many suffice for a slow reader.
_KEPT_EVENTS: Final = 65_536
_CODES = "\n".join(f"  {code:<4} {reason}" for reason, code in EXIT_CODES.items())
_EPILOG = f"""\b
Exit codes, by the agent's stop reason:
{_CODES}
  {OTHER_STOP:<4} another stop reason
  2    a wrong command line; for errors see docs/errors.md

\b
Examples:
  sandbox-agent run "Explain this repository." --agent claude
  git diff | sandbox-agent run - --agent codex --json > events.jsonl
"""


@click.command(epilog=_EPILOG)
@click.argument("prompt")
@click.option(
    "--agent",
    "-a",
    required=True,
    metavar="ID",
    shell_complete=complete_agents,
    help="Agent id: mock, claude, codex, ...",
)
@click.option(
    "--cwd",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Working directory of the agent. Default: the current directory.",
)
@click.option(
    "--sandbox",
    type=click.Choice(["local", "jail", "docker", "podman", *SERVICES]),
    default="local",
    show_default=True,
    help="Where the agent runs: as a process like others, in a jail that has only the working directory "
    "(Linux, with bubblewrap), in a container of Docker or Podman that has it, too, or at a service with a "
    "copy of it.",
)
@click.option(
    "--image",
    metavar="NAME",
    help="Image of the container, or template, snapshot or image of the service. Default for containers: the "
    "one of 'sandbox-agent image build', which needs the agent.",
)
@click.option(
    "--keep",
    is_flag=True,
    help="With a container or a service: leave the sandbox running, and print its id.",
)
@click.option(
    "--allow-host",
    "allow_hosts",
    multiple=True,
    metavar="HOST",
    help="With --sandbox jail, docker or podman: a host that the agent may reach, such as api.anthropic.com "
    "or *.npmjs.org. Without this option it may reach all. Can be repeated.",
)
@click.option("--model", metavar="ID", help="Model id of the agent.")
@click.option("--mode", metavar="ID", help="Mode id of the agent.")
@click.option("--thought-level", metavar="ID", help="Thought level id of the agent.")
@click.option(
    "--permission-mode",
    type=click.Choice(PERMISSION_MODES),
    help="What the agent may do without asking. Default: the agent's own.",
)
@click.option("--yes", "-y", is_flag=True, help="Allow every tool call that asks for permission.")
@click.option("--json", "as_json", is_flag=True, help="Write the ACP envelopes of the turn, one per line.")
@click.option(
    "--agent-env",
    multiple=True,
    metavar="NAME",
    help="Another variable that the agent inherits, or a pattern such as AWS_*. Can be repeated.",
)
@agents_options
@agent_command_option
@store_option(
    "--store",
    envvar="SANDBOX_AGENT_STORE",
    show_envvar=True,
    must_exist=False,
    help="Where to store the session: the path of an SQLite file, or a store URL. Default: not stored.",
)
def run(*, prompt: str, cwd: Path | None, **options: Any) -> None:
    """Run one PROMPT ("-": from standard input) and stream the agent's output.

    Starts a server, on this machine unless --sandbox names a service, and ends it afterwards. The agent's
    text goes to standard output; its thoughts, tool calls and plan go to standard error. If a tool call needs
    permission, you are asked; without a terminal it is rejected unless --yes is given. An agent can ask you
    questions on a terminal; the end of the input (Ctrl-D) declines them. Ctrl-C cancels the turn; a second
    Ctrl-C ends everything immediately.
    """
    if prompt == "-":
        prompt = sys.stdin.read()
    if not prompt.strip():
        raise click.UsageError('the prompt is empty: pass a text, or "-" to read standard input')
    if options["allow_hosts"] and options["sandbox"] not in ("jail", "docker", "podman"):
        raise click.UsageError("--allow-host needs --sandbox jail, docker or podman: others reach all hosts")
    is_elsewhere = options["sandbox"] not in ("local", "jail")
    if options["image"] is not None and options["sandbox"] not in ("docker", "podman", *WITH_IMAGE):
        raise click.UsageError(f"--image is for --sandbox docker, podman, {', '.join(WITH_IMAGE)}")
    if options["keep"] and not is_elsewhere:
        raise click.UsageError("--keep is for a container or a service: other sandboxes end with the command")
    if is_elsewhere and options["agents"] is not None:
        raise click.UsageError("this sandbox does not have the file of --agents: use --agent-command")
    if not is_elsewhere:  # there it is the image's
        _install(options["agent"], options["agents"], options["agent_commands"], options["agent_registry"])
    turn = _Run(prompt=prompt, cwd=None if cwd is None else str(cwd.absolute()), **options)
    raise SystemExit(asyncio.run(turn.run()))


def _install(agent_id: str, agents: Path | None, commands: Sequence[str], registry: str | None) -> None:
    """Install the agent if it is not installed. Only here are the agents' modules loaded."""
    from sandbox_agent.agents.user_agents import load_user_agents
    from sandbox_agent.cli.agents import install_for_use

    load_user_agents(agents, commands, registry)
    install_for_use(agent_id)


def _known_variables(agent_id: str, names: Sequence[str]) -> dict[str, str]:
    """Return the variables of this machine that are known for the agent, and those with these names."""
    from sandbox_agent.agents.environment import AgentEnvironment

    known = AgentEnvironment(policy="strict", allow=tuple(names)).variables(agent_id)
    of_all = AgentEnvironment(policy="strict").variables("")  # this machine's PATH, HOME, ...
    return {name: value for name, value in known.items() if name not in of_all}


@dataclass(frozen=True, kw_only=True)
class _Run:
    """The options of ``run``."""

    prompt: str
    agent: str
    cwd: str | None
    model: str | None
    mode: str | None
    thought_level: str | None
    permission_mode: PermissionMode | None
    yes: bool
    as_json: bool
    sandbox: str
    image: str | None
    keep: bool
    allow_hosts: tuple[str, ...]
    agent_env: tuple[str, ...]
    agents: Path | None
    agent_commands: tuple[str, ...]
    agent_registry: str | None
    store: str | None

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
        async with self._start_server(screen) as sdk:
            session = await sdk.create_session(
                agent=self.agent,
                cwd=self.cwd if self.sandbox == "local" else None,
                model=self.model,
                mode=self.mode,
                thought_level=self.thought_level,
                permission_mode=self.permission_mode,
                permission_policy=prompts.reply,
                question_policy=prompts.answer if prompts.can_ask else None,
            )

            async def cancel() -> None:
                screen.note("cancelling; press Ctrl-C again to end immediately", "yellow")
                await session.cancel()

            interrupts.cancel = cancel
            prompts.ready = lambda: progress.catch_up(sdk, session)
            stop_reason = await self._stream(session, screen, progress)
            if self.store is not None:
                screen.note(f"session {session.id} is stored in {parse_store_url(self.store).shown}", "dim")
        if stop_reason != "end_turn":
            screen.note(f"stopped: {stop_reason or 'without a reason'}", "yellow")
        return EXIT_CODES.get(stop_reason, OTHER_STOP)

    async def _stream(self, session: Session, screen: Screen, progress: ReadProgress) -> str:
        printer = EventPrinter(screen)
        turn = session.stream(self.prompt)
        try:
            async for event in turn:
                if self.as_json:
                    sys.stdout.buffer.write(event.payload_json + b"\n")
                    sys.stdout.buffer.flush()
                else:
                    printer.print_event(event)
                progress.advance(event.event_index)
        finally:
            screen.end_line()
        return turn.response.stop_reason

    @contextlib.asynccontextmanager
    async def _start_server(self, screen: Screen) -> AsyncGenerator[SandboxAgent]:
        with tempfile.TemporaryDirectory(prefix="sandbox-agent-") as folder:
            async with self._open_driver() as driver:
                log = Path(folder) / "server.log"
                args = [
                    *(f"--agent-env={name}" for name in self.agent_env),
                    *(f"--agent-command={command}" for command in self.agent_commands),
                    *([f"--agent-registry={self.agent_registry}"] if self.agent_registry else []),
                ]
                provider = self._provider(log, args)
                sdk = await SandboxAgent.start(sandbox=provider, persist=driver)
                keep = self.keep
                try:
                    yield sdk
                except asyncio.CancelledError:
                    # Kill the server first: do not wait for a clean shutdown of the agent.
                    keep = False
                    await provider.kill((sdk.sandbox_id or "").partition("/")[2])
                    raise
                finally:
                    if keep:
                        screen.note(f"sandbox {sdk.sandbox_id} is kept: see 'sandbox-agent sandboxes'", "dim")
                        await sdk.dispose()
                    else:
                        await sdk.destroy_sandbox()

    def _provider(self, log: Path, args: Sequence[str]) -> SandboxProvider:
        if self.sandbox == "local":
            return local(log=log, agents=self.agents, args=args)
        if self.sandbox == "jail":
            hosts = self.allow_hosts or None
            return jail(workspace=self.cwd or ".", allow_hosts=hosts, log=log, agents=self.agents, args=args)
        from sandbox_agent.providers.engine.factories import docker, podman

        variables = _known_variables(self.agent, self.agent_env)
        workspace = self.cwd or "."
        if self.sandbox in SERVICES:
            own = {"mock", *(command.partition("=")[0] for command in self.agent_commands)}
            install = [] if self.agent in own else [self.agent]
            return open_service(
                self.sandbox,
                self.image,
                workspace=workspace,
                env=variables,
                install_agents=install,
                args=args,
            )
        make = docker if self.sandbox == "docker" else podman
        hosts = self.allow_hosts or None
        return make(self.image, workspace=workspace, env=variables, allow_hosts=hosts, args=args)

    @contextlib.asynccontextmanager
    async def _open_driver(self) -> AsyncGenerator[SessionPersistDriver]:
        if self.store is None:
            yield InMemorySessionPersistDriver(max_events_per_session=_KEPT_EVENTS)
            return
        async with open_store(self.store, to_write=True) as driver:
            # An unusable store must fail before anything is started.
            await driver.list_sessions(limit=1)
            yield driver
