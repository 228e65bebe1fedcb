"""Where a connection hands over what passes through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sandbox_agent.engine.route import Router
from sandbox_agent.server.recorder.intake import Entry, Intake

if TYPE_CHECKING:
    from sandbox_agent.server.recorder.published_session import LiveSession

__all__ = ["Tap"]


class Tap:
    """One connection's; the calls only queue, in the order in which they are made.

    Attributes:
        connection_id: the epoch of the connection's feed.
        server_id: the connection's name.
        agent: the agent's id.
        router: whose session an envelope is; the worker's.
        sessions: the open ones by the agent's id of them, the one that was used last at the end; the
            worker's.
        bound: the managed session that new ones belong to; the worker's.
    """

    def __init__(
        self,
        intake: Intake,
        *,
        connection_id: str,
        server_id: str,
        agent: str,
        on_bind: Callable[[Tap, LiveSession], None],
        on_close: Callable[[Tap], None],
        clock: Callable[[], int],
    ) -> None:
        self.connection_id = connection_id
        self.server_id = server_id
        self.agent = agent
        self.router: Router = Router()
        self.sessions: dict[str, LiveSession] = {}
        self.bound: LiveSession | None = None
        self._intake = intake
        self._on_bind = on_bind
        self._on_close = on_close
        self._clock = clock
        self._closed = False

    def sent(self, line: bytes, client: str) -> None:
        """Take what a client sent to the agent, as the agent reads it."""
        self._intake.put(Entry(self, "client", line, self._clock(), client))

    def received(self, lines: Sequence[bytes]) -> None:
        """Take what the agent wrote."""
        if lines:
            self._intake.put(Entry(self, "agent", b"\n".join(lines), self._clock(), ""))

    def bind(self, session: LiveSession) -> None:
        """Give the sessions that this connection makes or loads from now on to a managed one."""
        self._on_bind(self, session)

    def close(self) -> None:
        """The connection is over."""
        if not self._closed:
            self._closed = True
            self._on_close(self)
