"""An agent whose turns are functions of a test."""

from __future__ import annotations

import contextlib
import inspect
import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from sandbox_agent.agents.mock.agent import Agent, prompt_text
from sandbox_agent.agents.mock.peer import RpcError
from sandbox_agent.agents.mock.sessions import CHOICES, DEFAULTS, SessionStore
from sandbox_agent.agents.mock.turn import Cancelled, Turn
from sandbox_agent.testing.scripted_peer import ScriptedPeer
from sandbox_agent.testing.scripted_turn import PermissionOutcome, ScriptedTurn
from sandbox_agent.wire.jsonrpc import members

if TYPE_CHECKING:
    from sandbox_agent.agents.mock.sessions import Session

__all__ = ["Script", "ScriptedAgent", "SettingChange", "relay_command"]

Script: TypeAlias = str | Callable[[ScriptedTurn], object]


@dataclass(frozen=True, slots=True)
class SettingChange:
    """A setting that the client has changed.

    Attributes:
        session_id: The agent's own id of the session.
        option: "model", "mode" or "thought_level".
        value: The new value.
    """

    session_id: str
    option: str
    value: str


class ScriptedAgent:
    """An ACP agent that does what a test says, in a real process behind a real server.

    Each script is one turn: a text to say, or a function that receives a ScriptedTurn. They are used in the
    order of the prompts, whichever session these are for, and the last one is used for all further prompts::

        def fix(turn):
            turn.think("First the file.").tool("Read a.py", kind="read", output="print(1)")
            if turn.ask_permission("Write a.py").allowed:
                turn.say("Fixed.")

        with ScriptedAgent(fix, "You are welcome.") as agent:
            async with SandboxAgent.start(sandbox=local(agent_commands=agent.commands)) as sdk:
                session = await sdk.create_session(agent="scripted", permission_policy="allow_once")
                await session.prompt("Fix it.")
                assert agent.permissions[0].allowed

    The server starts a process that relays its pipes to this object, so scripts run in this program, those of
    each session in a thread of its own, and may use the variables of the test. The server has to run on this
    machine, as the same user. Sessions survive the agent's process: a new one loads them.

    Use it with ``with`` or ``async with``, or call ``close`` at the end. All attributes may be read at any
    time.

    Attributes:
        prompts: The texts of the prompts that were received, without restored history.
        permissions: The answers to permission requests.
        settings: The settings that the client has changed.
        cancels: The agent's ids of the sessions whose turns the client has canceled.
        methods: The methods of all requests and notifications of the client, such as "session/load".
        errors: The exceptions that scripts have raised; the turn ends with an error. ``check`` raises them.
    """

    def __init__(
        self,
        *scripts: Script,
        id: str = "scripted",  # noqa: A002 - the agent's id
        socket_path: str | os.PathLike[str] | None = None,
        models: Sequence[str] | None = None,
        modes: Sequence[str] | None = None,
        thought_levels: Sequence[str] | None = None,
        can_restore: bool = True,
    ) -> None:
        """Store the scripts, and listen for the agent's process.

        Args:
            *scripts: What the agent does at each prompt. Without any, it says "Done.".
            id: The agent's id on the server. With that of a known agent, such as "claude", the scripted agent
                replaces that agent.
            socket_path: The Unix socket for the agent's process; None makes one in a temporary folder.
            models: The models that it offers, the default first; an empty list offers none, and None those of
                the agent ``mock``.
            modes: Its modes.
            thought_levels: Its thought levels.
            can_restore: Whether it supports ``session/load`` and ``session/resume``. Without, sessions are
                restored by a replay of their history.

        Raises:
            TypeError: A script is neither a text nor a function, or it is a coroutine function.
            OSError: The socket cannot be made.
        """
        self.id = id
        self.prompts: list[str] = []
        self.permissions: list[PermissionOutcome] = []
        self.settings: list[SettingChange] = []
        self.cancels: list[str] = []
        self.methods: list[str] = []
        self.errors: list[BaseException] = []
        self._lock = threading.Lock()
        self._scripts: list[Script] = []
        self._done = 0
        self.script(*scripts or ("Done.",))
        self._can_restore = can_restore
        given = {"mode": modes, "model": models, "thought_level": thought_levels}
        self._choices = _choices(given)
        self._connections: dict[socket.socket, Agent] = {}
        self._closed = False
        # A short path, as sockets need it, and private: a process that connects is the agent's.
        self._folder = tempfile.mkdtemp(prefix="sandbox-agent-")
        self._path = os.fspath(socket_path or os.path.join(self._folder, "agent.sock"))  # noqa: PTH118
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            self._listener.bind(self._path)
            self._listener.listen()
        except BaseException:
            self._listener.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        threading.Thread(target=self._accept, name="scripted-agent", daemon=True).start()

    @property
    def command(self) -> list[str]:
        """The command line of the agent's process."""
        return relay_command(self._path)

    @property
    def commands(self) -> dict[str, list[str]]:
        """The command line by the agent's id, for ``local(agent_commands=...)``."""
        return {self.id: self.command}

    def script(self, *scripts: Script) -> Self:
        """Replace the scripts: the next prompt is answered by the first one of these.

        Raises:
            TypeError: A script is neither a text nor a function, or it is a coroutine function.
        """
        for script in scripts:
            _check(script)
        if not scripts:
            raise TypeError("script() needs at least one script: a text to say, or a function of the turn")
        with self._lock:
            self._scripts, self._done = list(scripts), 0
        return self

    def check(self) -> None:
        """Raise the first exception that a script has raised.

        Raises:
            BaseException: What the script has raised, such as an AssertionError.
        """
        if self.errors:
            raise self.errors[0]

    def close(self) -> None:
        """End the agent's processes, and stop listening. The attributes stay."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            connections = list(self._connections)
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as waking:
            waking.connect(self._path)  # accept() does not notice that its socket was closed
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            os.unlink(self._path)  # noqa: PTH108 - also for a path that is given as text
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        """Return the agent."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close it."""
        self.close()

    async def __aenter__(self) -> Self:
        """Return the agent."""
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Close it."""
        self.close()

    def _accept(self) -> None:
        with self._listener:
            while True:
                connection, _ = self._listener.accept()
                with self._lock:  # the folder of the store exists until close() has the lock
                    if self._closed:
                        connection.close()
                        return
                    peer = ScriptedPeer(connection)
                    agent = _Agent(self, self._next_script, peer, self._store())
                    self._connections[connection] = agent
                threading.Thread(target=self._serve, args=(connection, agent), daemon=True).start()

    def _store(self) -> SessionStore:
        # Each process has sessions of its own, and finds those of previous ones in the folder.
        return SessionStore(f"{self._folder}/sessions" if self._can_restore else None, self._choices)

    def _serve(self, connection: socket.socket, agent: Agent) -> None:
        agent.can_restore = self._can_restore
        agent.info = {"name": self.id, "title": "Scripted agent", "version": "1.0.0"}
        with connection, connection.makefile("rb") as lines, contextlib.suppress(OSError):
            for line in lines:
                if line.strip():
                    agent.handle(line)
        with self._lock:
            self._connections.pop(connection, None)
        agent.close()

    def _next_script(self, prompt: str) -> Script:
        """Note a prompt, and return the script that answers it."""
        with self._lock:
            script = self._scripts[min(self._done, len(self._scripts) - 1)]
            self._done += 1
            self.prompts.append(prompt)
            return script


class _Agent(Agent):
    """The agent in one of its processes."""

    def __init__(
        self,
        owner: ScriptedAgent,
        next_script: Callable[[str], Script],
        peer: ScriptedPeer,
        store: SessionStore,
    ) -> None:
        super().__init__(peer, store)
        self._owner = owner
        self._next_script = next_script
        self._scripted_peer = peer

    def on_message(self, method: str, params: object) -> None:
        self._owner.methods.append(method)
        if method == "session/cancel":
            self._owner.cancels.append(str(members(params).get("sessionId")))

    def on_setting(self, session: Session, option: str, value: str) -> None:
        self._owner.settings.append(SettingChange(session.id, option, value))

    def run_turn(self, turn: Turn, blocks: list[dict[str, Any]]) -> None:
        text = prompt_text(blocks) or ""
        script = self._next_script(text)
        scripted = ScriptedTurn(turn, self, self._scripted_peer, text, blocks, self._owner.permissions)
        try:
            if isinstance(script, str):
                scripted.say(script)
            else:
                script(scripted)
        except (Cancelled, RpcError):
            raise
        except BaseException as error:
            self._owner.errors.append(error)
            raise RpcError(-32603, f"the script failed: {error!r}") from error


def relay_command(socket_path: str) -> list[str]:
    """Return the command line of the process of a ScriptedAgent that listens on a socket."""
    # -P: modules in the working directory must not shadow ours.
    return [sys.executable, "-P", "-m", "sandbox_agent.testing.relay", socket_path]


def _check(script: object) -> None:
    if inspect.iscoroutinefunction(script) or inspect.isasyncgenfunction(script):
        raise TypeError(
            f"the script {script!r} is a coroutine function: make it a plain one; it runs in a "
            "thread of its own, so it may wait"
        )
    if not isinstance(script, str) and not callable(script):
        raise TypeError(f"a script is a text to say or a function of the turn, not {script!r}")


def _choices(given: Mapping[str, Sequence[str] | None]) -> dict[str, list[tuple[str, str, str]]]:
    choices = {
        option: sorted(CHOICES[option], key=lambda choice: choice[0] != DEFAULTS[option])
        if values is None
        else [(value, value, "") for value in values]
        for option, values in given.items()
    }
    return {option: values for option, values in choices.items() if values}
