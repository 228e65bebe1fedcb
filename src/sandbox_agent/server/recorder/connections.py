"""The connections that are recorded, and the sessions that each of them has open."""

from __future__ import annotations

from dataclasses import dataclass, field

from sandbox_agent.engine.route import Router
from sandbox_agent.server.recorder.queue import Tap
from sandbox_agent.server.recorder.registry import RecordedSession


@dataclass(eq=False, slots=True)
class Connection:
    """What the recorder knows of one connection.

    Attributes:
        router: finds the session of an envelope.
        sessions: the open ones by the agent's id of them; the one that was opened last is at the end.
        bound: the session that new ones belong to.
    """

    router: Router = field(default_factory=lambda: Router())
    sessions: dict[str, RecordedSession] = field(default_factory=dict[str, RecordedSession])
    bound: RecordedSession | None = None


class Connections:
    """All connections, by their taps."""

    def __init__(self) -> None:
        self._connections: dict[Tap, Connection] = {}
        self._open: dict[RecordedSession, set[tuple[Connection, str]]] = {}

    def get(self, tap: Tap) -> Connection:
        """Return a tap's connection, a new one for a new tap."""
        connection = self._connections.get(tap)
        if connection is None:
            connection = self._connections[tap] = Connection()
        return connection

    def has_open(self, session: RecordedSession) -> bool:
        """Return whether any connection has the session open."""
        return session in self._open

    def bind(self, tap: Tap, session: RecordedSession) -> None:
        """Give the sessions that a connection opens from now on to that one."""
        connection = self.get(tap)
        connection.bound = session
        connection.router.bind()

    def add(self, connection: Connection, native: str, session: RecordedSession) -> None:
        """Open a session on a connection under the agent's id of it."""
        connection.sessions[native] = session
        self._open.setdefault(session, set()).add((connection, native))

    def remove(self, connection: Connection, native: str) -> None:
        """Close a session on a connection."""
        session = connection.sessions.pop(native, None)
        if session is not None:
            self._release(session, {(connection, native)})

    def close(self, tap: Tap) -> list[RecordedSession]:
        """Remove a connection and return the sessions that no other connection has open."""
        connection = self._connections.pop(tap, None)
        if connection is None:
            return []
        held: dict[RecordedSession, set[tuple[Connection, str]]] = {}
        for native, session in connection.sessions.items():
            held.setdefault(session, set()).add((connection, native))
        for session, names in held.items():
            self._release(session, names)
        return [session for session in held if session not in self._open]

    def forget(self, session: RecordedSession) -> None:
        """Close a session on all connections; one that continues it opens a new session."""
        for connection, native in self._open.pop(session, ()):
            connection.sessions.pop(native, None)
            connection.router.forget(native)
        for connection in self._connections.values():
            if connection.bound is session:
                connection.bound = None

    def _release(self, session: RecordedSession, names: set[tuple[Connection, str]]) -> None:
        left = self._open.get(session, set()) - names
        if left:
            self._open[session] = left
        else:
            self._open.pop(session, None)
