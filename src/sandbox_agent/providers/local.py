"""The local provider: the server runs as a child process, and ends with this program."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

from sandbox_agent.errors import SandboxAgentError, SandboxDestroyedError
from sandbox_agent.extras import require_server
from sandbox_agent.keywords import check_keywords, keywords
from sandbox_agent.providers.base import SandboxProvider, finish
from sandbox_agent.providers.server_process import (
    CONNECT_TIMEOUT,
    STOP_TIMEOUT,
    Log,
    ServerProcess,
    written_pipe,
)

if TYPE_CHECKING:
    from sandbox_agent.providers.jail import JailOptions, JailProvider

# The server of a program that was killed ends a moment after it, and has its store until then.
STORE_WAIT = 6.0
# Neither another server nor agents need it: the server of this package reads the token from a descriptor.
TOKEN_VARIABLE = "SANDBOX_AGENT_TOKEN"  # noqa: S105 - its name


@dataclass(frozen=True, slots=True)
class _Running:
    """A server that this provider has started."""

    process: ServerProcess
    token: str


class ServerOptions(TypedDict, total=False):
    """The options of ``local()`` and ``jail()``, which explain them."""

    port: int | None
    token: str | None
    env: Mapping[str, str] | None
    log: Log
    store: str | None
    agents: str | os.PathLike[str] | None
    agent_commands: Mapping[str, str | Sequence[str]] | None
    args: Sequence[str]


class LocalOptions(ServerOptions, total=False):
    """The options of ``local()``, which explains them."""

    host: str
    binary: str | os.PathLike[str] | None
    agent_env_policy: Literal["strict", "default"]


class LocalProvider(SandboxProvider):
    """Starts sandbox-agent servers on this machine. Created by ``local``."""

    name = "local"
    _ends_by_lifeline: bool = False

    def __init__(self, **options: Unpack[LocalOptions]) -> None:
        """Store the options. See ``local`` for the arguments."""
        check_keywords(options, LocalOptions, self.name)
        binary, agents = options.get("binary"), options.get("agents")
        agent_commands = options.get("agent_commands")
        if binary is None:
            require_server("local()")
        elif agents is not None or agent_commands:
            raise ValueError(
                "agents and agent_commands are for this package's server: leave them out, or leave binary out"
            )
        self._host = options.get("host", "127.0.0.1").strip("[]")
        self._port = options.get("port")
        self._token = options.get("token")
        self._env = dict(options.get("env") or {})
        self._log: Log = options.get("log", "inherit")
        self._binary = binary
        self._store = options.get("store")
        self._agent_env_policy = options.get("agent_env_policy", "strict")
        self._agents = None if agents is None else Path(agents).absolute()
        self._agent_commands = dict(agent_commands or {})
        self._args = list(options.get("args", ()))
        self._running: dict[str, _Running] = {}
        self._restarting: set[str] = set()

    async def create(self) -> str:
        """Start a server and return ``host:port`` when it responds.

        Raises:
            SandboxAgentError: The port is in use, or the server did not start. The message ends with the
                server's last output.
        """
        raw_id = self._new_id()
        running = self._running.get(raw_id)
        if running is not None and not running.process.has_exited():
            raise SandboxAgentError(f"a local server of this provider already listens on {raw_id}")
        await self.kill(raw_id)  # what is left of one that has ended
        try:
            await finish(asyncio.to_thread(self._prepare, raw_id))
            await self._start(raw_id, self._token or secrets.token_urlsafe(24))
        except BaseException:
            await finish(self.kill(raw_id))
            raise
        return raw_id

    def _new_id(self) -> str:
        port = self._port or _free_port(self._host)
        return f"[{self._host}]:{port}" if ":" in self._host else f"{self._host}:{port}"

    def _prepare(self, raw_id: str) -> None:
        """Make what lasts as long as the sandbox."""
        return

    async def _start(self, raw_id: str, token: str) -> None:
        # Without this check, another program on the port would be mistaken for the server.
        if await self._is_listening(raw_id):
            raise SandboxAgentError(
                f"the local server could not be started: another program listens on {raw_id}. "
                "Stop it or use another port."
            )
        process = self._spawn(raw_id, token)
        self._running[raw_id] = _Running(process, token)
        try:
            url, transport = await self.get_url(raw_id), await self.get_transport(raw_id)
            await process.wait_responding(url, token, transport)
        except BaseException:
            await finish(asyncio.to_thread(process.stop, STOP_TIMEOUT))
            raise

    def _spawn(self, raw_id: str, token: str) -> ServerProcess:
        """Start the server of a sandbox."""
        if self._binary is not None:
            # Another server may not read the token in another way. It may begin with "-".
            command = [os.fspath(self._binary), "server", *self._address(raw_id), f"--token={token}"]
            return ServerProcess(
                [*command, *self._options()], self._environment(), log=self._log, is_watched=True
            )
        token_pipe = written_pipe(token)
        return ServerProcess(
            [*self._command(raw_id), "--token-file", f"/dev/fd/{token_pipe}", *self._options()],
            self._environment(),
            log=self._log,
            descriptors=[token_pipe, *self._descriptors(raw_id)],
            ends_by_lifeline=self._ends_by_lifeline,
        )

    def _descriptors(self, raw_id: str) -> list[int]:
        """Return what else the server inherits; this process closes it."""
        return []

    def _command(self, raw_id: str) -> list[str]:
        """Return the command line of our server, up to its own options."""
        return [sys.executable, "-m", "sandbox_agent.cli.main", "server", *self._address(raw_id)]

    def _address(self, raw_id: str) -> list[str]:
        """Return the options that say where the server listens."""
        return ["--host", self._host, "--port", raw_id.rpartition(":")[2]]

    def _options(self) -> list[str]:
        options: list[str] = []
        if self._binary is None:
            options += ["--agent-env-policy", self._agent_env_policy]
            options += [f"--agent-env={name}" for name in self._env]
            options += [] if self._agents is None else [f"--agents={self._agents}"]
            for agent, words in self._agent_commands.items():
                line = words if isinstance(words, str) else shlex.join(words)
                options.append(f"--agent-command={agent}={line}")
        if self._store is not None:
            options += ["--store", self._store]
            if self._binary is None:
                options += ["--store-wait", f"{STORE_WAIT:g}"]
        elif self._binary is None:
            # The default store allows one server at a time, and here the SDK stores the sessions.
            options += ["--store", "memory"]
        return [*options, *self._args]

    def _environment(self) -> dict[str, str]:
        environment = {**os.environ, **self._env}
        environment.pop(TOKEN_VARIABLE, None)
        return environment

    async def destroy(self, sandbox_id: str, /) -> None:
        """Stop the server: SIGTERM, 5 s, SIGKILL to its group. Servers of others are not stopped."""
        await self._stop(sandbox_id, STOP_TIMEOUT)

    async def kill(self, sandbox_id: str, /) -> None:
        """Kill the server and its group."""
        await self._stop(sandbox_id, 0.0)

    async def _stop(self, raw_id: str, grace: float) -> None:
        running = self._running.pop(raw_id, None)
        if running is not None:
            await asyncio.to_thread(running.process.stop, grace)

    async def get_url(self, sandbox_id: str, /) -> str:
        """Return ``http://host:port``."""
        return f"http://{sandbox_id}"

    async def get_token(self, sandbox_id: str, /) -> str | None:
        """Return the token of a server that this provider started, otherwise the token option."""
        running = self._running.get(sandbox_id)
        return running.token if running is not None else self._token

    async def reconnect(self, sandbox_id: str, /) -> None:
        """Check that the server exists.

        Raises:
            SandboxDestroyedError: Nothing listens there, and this provider did not start it.
        """
        if sandbox_id not in self._running and not await self._is_listening(sandbox_id):
            raise SandboxDestroyedError(sandbox_id, self.name)

    async def _is_listening(self, raw_id: str) -> bool:
        host, _, port = raw_id.rpartition(":")
        return port.isdecimal() and await _is_listening(host, int(port))

    async def ensure_server(self, sandbox_id: str, /) -> None:
        """Restart a server that this provider started and that has ended, on the same port."""
        running = self._running.get(sandbox_id)
        if running is None or not running.process.has_exited() or sandbox_id in self._restarting:
            return
        self._restarting.add(sandbox_id)
        try:
            await asyncio.to_thread(running.process.stop, 0.0)
            await self._start(sandbox_id, running.token)
        finally:
            self._restarting.discard(sandbox_id)

    def pid(self, sandbox_id: str, /) -> int | None:
        """Return the process id of a server that this provider started, or None."""
        running = self._running.get(sandbox_id)
        return running.process.pid if running is not None else None


@overload
def local(*, isolation: None = None, **options: Unpack[LocalOptions]) -> LocalProvider: ...


@overload
def local(*, isolation: Literal["jail"], **options: Unpack[JailOptions]) -> JailProvider: ...


@keywords(LocalOptions)
def local(*, isolation: Literal["jail"] | None = None, **options: Any) -> LocalProvider:
    """Return a provider that starts the server on this machine. Its sandbox ids are ``local/host:port``.

    The server ends with ``destroy_sandbox``, and with this program: when it exits, and within 5 s when it is
    killed (SIGTERM, SIGHUP, SIGKILL, out of memory). It then stops its agents and flushes its store: the next
    program finds all events there, and the running turn as ``interrupted``. Forks by Python do not keep the
    server running; a fork by C code that does not call exec does.

    If ``binary`` is another server, a small process of ours watches for it. When this program ends, it sends
    SIGTERM to the server, and after its exit, at the latest after 3 s, SIGKILL to its process group and, on
    Linux, to all other processes that the server has started.

    Args:
        isolation: None, or "jail" for a server in a jail: the other arguments are then those of ``jail``.
        **options: The arguments below.
        host: The address to listen on.
        port: The port, or None for a free one.
        token: The bearer token, or None for a random one.
        env: Variables to add to the environment of the server and its agents.
        log: Where its output goes: "inherit" (this program's stderr), "silent", or the path of a file.
        binary: Another ``sandbox-agent`` program to run instead of this package's.
        store: Its ``--store`` (``memory``, ``sqlite:PATH``).
        agent_env_policy: Which other variables of this program agents get: "strict" for those that programs
            need (PATH, HOME, proxies, ...) and those that are known for the agent, such as
            ANTHROPIC_API_KEY for claude; "default" for all but the server's secrets. Not with ``binary``.
        agents: A TOML file with more agents; see docs/agents.md. Not with ``binary``.
        agent_commands: More agents: the command line that speaks ACP, by id. Not with ``binary``.
        args: More command line arguments.

    Raises:
        TypeError: There is no such argument.
        ValueError: Agents are given with ``binary``, or the isolation is unknown.
        ImportError: The extra ``server`` is not installed, and ``binary`` is not given.
    """
    if isolation is None:
        return LocalProvider(**options)
    if isolation != "jail":
        raise ValueError(f"isolation must be 'jail' or None, not {isolation!r}")
    from sandbox_agent.providers.jail import jail

    return jail(**options)


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind((host, 0))
        port: int = listener.getsockname()[1]
        return port


async def _is_listening(host: str, port: int) -> bool:
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            _, writer = await asyncio.open_connection(host.strip("[]"), port)
    except (OSError, OverflowError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
