"""What ``run`` and ``chat`` share: the options of an agent and its sandbox, the server, and the session."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import tempfile
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import click

from sandbox_agent.cli.completion import complete_agents
from sandbox_agent.cli.output import Screen
from sandbox_agent.cli.stores import open_store
from sandbox_agent.cli.user_agents import agent_command_option, agents_options
from sandbox_agent.client.agent import SandboxAgent
from sandbox_agent.client.permissions import PermissionPolicy
from sandbox_agent.client.questions import QuestionPolicy
from sandbox_agent.client.session import Session
from sandbox_agent.engine.permissions import PERMISSION_MODES, PermissionMode
from sandbox_agent.errors import InvalidRequestError, SessionNotFoundError
from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.persist.memory import InMemorySessionPersistDriver
from sandbox_agent.persist.open import parse_store_url
from sandbox_agent.persist.transfer.sessions import list_all_sessions
from sandbox_agent.providers.base import SandboxProvider
from sandbox_agent.providers.jail import jail
from sandbox_agent.providers.local import local
from sandbox_agent.providers.services import SERVICES, WITH_IMAGE, open_service
from sandbox_agent.wire.records import SessionEvent, SessionRecord

# Without a store, events are kept for this process only. This many suffice for a slow reader.
_KEPT_EVENTS: Final = 65_536
# These read files of this machine; in the jail, only those in the working directory.
_ON_THIS_MACHINE: Final = ("local", "jail")

_OPTIONS: Final = (
    click.option(
        "--agent",
        "-a",
        metavar="ID",
        shell_complete=complete_agents,
        help="Agent id: mock, claude, codex, ... A session that is continued moves to this agent; default: "
        "its own.",
    ),
    click.option("--session", "session_id", metavar="ID", help="Continue this session of the store."),
    click.option(
        "--continue",
        "-c",
        "newest",
        is_flag=True,
        help="Continue the newest session of the store that has this working directory.",
    ),
    click.option(
        "--cwd",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Working directory of the agent. Default: the current directory.",
    ),
    click.option(
        "--sandbox",
        type=click.Choice(["local", "jail", "docker", "podman", *SERVICES]),
        default="local",
        show_default=True,
        help="Where the agent runs: as a process like others, in a jail that has only the working directory "
        "(Linux, with bubblewrap), in a container of Docker or Podman that has it, too, or at a service with "
        "a copy of it.",
    ),
    click.option(
        "--image",
        metavar="NAME",
        help="Image of the container, or template, snapshot or image of the service. Default for containers: "
        "the one of 'sandbox-agent image build', which needs the agent.",
    ),
    click.option(
        "--keep",
        is_flag=True,
        help="With a container or a service: leave the sandbox running, and print its id.",
    ),
    click.option(
        "--allow-host",
        "allow_hosts",
        multiple=True,
        metavar="HOST",
        help="With --sandbox jail, docker or podman: a host that the agent may reach, such as "
        "api.anthropic.com or *.npmjs.org. Without this option it may reach all. Can be repeated.",
    ),
    click.option("--model", metavar="ID", help="Model id of the agent."),
    click.option("--mode", metavar="ID", help="Mode id of the agent."),
    click.option("--thought-level", metavar="ID", help="Thought level id of the agent."),
    click.option(
        "--permission-mode",
        type=click.Choice(PERMISSION_MODES),
        help="What the agent may do without asking. Default: the agent's own.",
    ),
    click.option(
        "--agent-env",
        multiple=True,
        metavar="NAME",
        help="Another variable that the agent inherits, or a pattern such as AWS_*. Can be repeated.",
    ),
    agents_options,
    agent_command_option,
)


def launch_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of an agent and its sandbox to a command, which receives them as ``launch``."""
    names = {each.name for each in Launch.__dataclass_fields__.values() if each.init} - {"record"}

    @functools.wraps(command)
    def launched(**options: Any) -> None:
        launch = Launch(**{name: options.pop(name) for name in names})
        command(launch=launch, **options)

    for option in reversed(_OPTIONS):
        launched = option(launched)
    return launched


@dataclass(frozen=True, kw_only=True)
class Launch:
    """An agent, its sandbox, and the session to create or to continue.

    Attributes:
        record: the session to continue, None to create one.
    """

    agent: str | None
    session_id: str | None
    newest: bool
    cwd: Path | None
    sandbox: str
    image: str | None
    keep: bool
    allow_hosts: tuple[str, ...]
    model: str | None
    mode: str | None
    thought_level: str | None
    permission_mode: PermissionMode | None
    agent_env: tuple[str, ...]
    agents: Path | None
    agent_registry: str | None
    agent_commands: tuple[str, ...]
    store: str | None
    record: SessionRecord | None = field(default=None)

    @property
    def agent_id(self) -> str:
        """The agent of the session."""
        return self.agent or (self.record.agent if self.record is not None else "")

    @property
    def folder(self) -> Path:
        """The working directory on this machine."""
        return (self.cwd or Path()).absolute()

    def prepared(self) -> Launch:
        """Check the options, find the session to continue, and install the agent.

        Raises:
            UsageError: options contradict each other.
            SessionNotFoundError: the store does not have the session.
            InvalidRequestError: the store has no session of this working directory.
        """
        self._check()
        found = asyncio.run(self._find()) if self.session_id is not None or self.newest else None
        launch = replace(self, record=found)
        if self.sandbox in _ON_THIS_MACHINE:  # elsewhere it is the image's
            _install(launch.agent_id, self.agents, self.agent_commands, self.agent_registry)
        return launch

    def _check(self) -> None:
        resumes = self.session_id is not None or self.newest
        if self.session_id is not None and self.newest:
            raise click.UsageError("pass --session or --continue, not both")
        if self.store is None and resumes:
            raise click.UsageError("--session and --continue need --store: other sessions are not stored")
        if self.agent is None and not resumes:
            raise click.UsageError("Missing option '--agent' / '-a'.")
        if self.allow_hosts and self.sandbox not in ("jail", "docker", "podman"):
            raise click.UsageError(
                "--allow-host needs --sandbox jail, docker or podman: others reach all hosts"
            )
        is_elsewhere = self.sandbox not in _ON_THIS_MACHINE
        if self.image is not None and self.sandbox not in ("docker", "podman", *WITH_IMAGE):
            raise click.UsageError(f"--image is for --sandbox docker, podman, {', '.join(WITH_IMAGE)}")
        if self.keep and not is_elsewhere:
            raise click.UsageError(
                "--keep is for a container or a service: other sandboxes end with the command"
            )
        if is_elsewhere and self.agents is not None:
            raise click.UsageError("this sandbox does not have the file of --agents: use --agent-command")

    async def _find(self) -> SessionRecord:
        async with open_store(self.store or "", to_write=True) as driver:
            if self.session_id is not None:
                record = await driver.get_session(self.session_id)
                if record is None:
                    raise SessionNotFoundError(self.session_id)
                return record
            newest: SessionRecord | None = None
            async with aclosing(list_all_sessions(driver)) as records:
                async for record in records:
                    if self._is_here(record) and (newest is None or record.created_at >= newest.created_at):
                        newest = record
        if newest is None:
            raise InvalidRequestError(
                f"there is no session of '{self.folder}' in {parse_store_url(self.store or '').shown}: leave "
                "out --continue, or name a session with --session"
            )
        return newest

    def _is_here(self, record: SessionRecord) -> bool:
        """Return whether a session has this working directory; in other sandboxes all have the same."""
        if self.sandbox not in _ON_THIS_MACHINE:
            return True
        return (record.session_init or {}).get("cwd") in (str(self.folder), str(self.folder.resolve()))

    # the client and the session

    async def open_session(
        self, sdk: SandboxAgent, permission_policy: PermissionPolicy, question_policy: QuestionPolicy | None
    ) -> Session:
        """Create the session, or continue it, with the settings of the options."""
        if self.record is None:
            return await self.create_session(sdk, self.agent_id, permission_policy, question_policy)
        session = await sdk.resume_session(
            self.record.id,
            agent=self.agent if self.agent != self.record.agent else None,
            permission_policy=permission_policy,
            question_policy=question_policy,
        )
        if self.permission_mode is not None:
            await session.set_permission_mode(self.permission_mode)
        if self.mode is not None:
            await session.set_mode(self.mode)
        if self.model is not None:
            await session.set_model(self.model)
        if self.thought_level is not None:
            await session.set_thought_level(self.thought_level)
        return session

    async def create_session(
        self,
        sdk: SandboxAgent,
        agent: str,
        permission_policy: PermissionPolicy | None,
        question_policy: QuestionPolicy | None,
    ) -> Session:
        """Create a session of an agent. The settings of the options are for their own agent only."""
        own = agent == self.agent_id
        return await sdk.create_session(
            agent=agent,
            cwd=str(self.folder) if self.cwd is not None and self.sandbox == "local" else None,
            model=self.model if own else None,
            mode=self.mode if own else None,
            thought_level=self.thought_level if own else None,
            permission_mode=self.permission_mode,
            permission_policy=permission_policy,
            question_policy=question_policy,
        )

    def path_in_sandbox(self, path: Path) -> str | None:
        """Return where the agent finds a file of this machine, or None if its sandbox does not have it."""
        if self.sandbox == "local":
            return str(path.absolute())
        try:
            relative = path.resolve().relative_to(self.folder.resolve())
        except ValueError:
            return None
        if self.sandbox in ("docker", "podman"):
            from sandbox_agent.providers.engine.container import WORKSPACE

            return f"{WORKSPACE}/{relative}"
        return str(path.absolute()) if self.sandbox == "jail" else None

    @contextlib.asynccontextmanager
    async def open_client(self, screen: Screen) -> AsyncGenerator[SandboxAgent]:
        """Start the server; end it at the exit, without waiting for its agents if the task is cancelled."""
        with tempfile.TemporaryDirectory(prefix="sandbox-agent-") as folder:
            async with self._open_driver() as driver:
                provider = self._provider(Path(folder) / "server.log")
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

    def _provider(self, log: Path) -> SandboxProvider:
        args = [
            *(f"--agent-env={name}" for name in self.agent_env),
            *(f"--agent-command={command}" for command in self.agent_commands),
            *([f"--agent-registry={self.agent_registry}"] if self.agent_registry else []),
        ]
        if self.sandbox == "local":
            return local(log=log, agents=self.agents, args=args)
        workspace = "." if self.cwd is None else str(self.folder)
        hosts = self.allow_hosts or None
        if self.sandbox == "jail":
            return jail(workspace=workspace, allow_hosts=hosts, log=log, agents=self.agents, args=args)
        from sandbox_agent.providers.engine.factories import docker, podman

        agent = self.agent_id
        variables = _known_variables(agent, self.agent_env)
        if self.sandbox in SERVICES:
            own = {"mock", *(command.partition("=")[0] for command in self.agent_commands)}
            return open_service(
                self.sandbox,
                self.image,
                workspace=workspace,
                env=variables,
                install_agents=[] if agent in own else [agent],
                args=args,
            )
        make = docker if self.sandbox == "docker" else podman
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


async def events_after(sdk: SandboxAgent, session_id: str, index: int) -> list[SessionEvent]:
    """Return the stored events of a session after an index: how it was restored."""
    cursor = sdk.persist.cursor_after(index) if index else None
    page = await sdk.get_events(session_id=session_id, cursor=cursor)
    return [event for event in page.items if event.event_index > index]


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
