"""The SDK without async: the same names and arguments, and each call waits for its result.

All clients work in one thread with an event loop, which ends with the program. Their methods may be called
from any thread. Listeners and policies are called in threads of their own, and may use the client.
A KeyboardInterrupt cancels the call, and the turn that it waits for.

Everything else of ``sandbox_agent`` has the same name here: values, errors, drivers and providers.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Generator
from typing import Any

import sandbox_agent
from sandbox_agent.client.agent import SandboxAgent as _SandboxAgent
from sandbox_agent.client.configuration import FolderConfig as _FolderConfig
from sandbox_agent.client.files import Files as _Files
from sandbox_agent.client.processes import Processes as _Processes
from sandbox_agent.client.server_sessions.api import ServerSessions as _ServerSessions
from sandbox_agent.client.session import Session as _Session
from sandbox_agent.client.session import Turn as _Turn
from sandbox_agent.client.terminal import ProcessTerminal as _ProcessTerminal
from sandbox_agent.sync.mirror import EventIterator as EventIterator
from sandbox_agent.sync.mirror import Mirror, call, mirror, next_of, wait_for


@mirror(_Turn)
class Turn(Mirror):
    _session: Any = None

    def __next__(self) -> Any:
        with _cancelling(self._session):
            return next_of(self)

    def wait(self) -> Any:
        with _cancelling(self._session):
            return wait_for(self)


@mirror(_Session)
class Session(Mirror):
    @functools.wraps(_Session.prompt)
    def prompt(self, *args: Any, **options: Any) -> Any:
        with _cancelling(self):
            return call(self.async_object.prompt, self.portal, args, options)

    @functools.wraps(_Session.stream)
    def stream(self, *args: Any, **options: Any) -> Any:
        turn = call(self.async_object.stream, self.portal, args, options)
        turn._session = self
        return turn


@contextlib.contextmanager
def _cancelling(session: Any) -> Generator[None]:
    """Cancel the turn that is waited for if the user interrupts the program."""
    try:
        yield
    except KeyboardInterrupt:
        if session is not None:
            session.cancel()
        raise


@mirror(_ServerSessions)
class ServerSessions(Mirror):
    pass


@mirror(_Files)
class Files(Mirror):
    pass


@mirror(_FolderConfig)
class FolderConfig(Mirror):
    pass


@mirror(_ProcessTerminal)
class ProcessTerminal(Mirror):
    pass


@mirror(_Processes)
class Processes(Mirror):
    pass


@mirror(_SandboxAgent)
class SandboxAgent(Mirror):
    pass


# The name of the TypeScript SDK's type.
SandboxAgentClient = SandboxAgent

_CLASSES = (
    "EventIterator",
    "Files",
    "FolderConfig",
    "ProcessTerminal",
    "Processes",
    "SandboxAgent",
    "SandboxAgentClient",
    "ServerSessions",
    "Session",
    "Turn",
)
__all__ = sorted({*sandbox_agent.__all__, *_CLASSES})  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    return getattr(sandbox_agent, name)


def __dir__() -> list[str]:
    return list(__all__)
