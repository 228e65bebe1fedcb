"""Whose an envelope is: runs of updates go to their sessions' journals, the rest to the connection."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from sandbox_agent.client.envelopes import Envelope, decode
from sandbox_agent.client.journal import Journal
from sandbox_agent.client.ports import ClientSession
from sandbox_agent.client.replay_filter import Loading
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError

__all__ = ["Router"]

logger: logging.Logger = logging.getLogger("sandbox_agent.client")

# Updates may come before the answer that says whose they are; more than this for strangers is a fault.
MAX_HELD = 10_000
MAX_HELD_BYTES = 16 * 1024 * 1024
STATE_UPDATES = frozenset({"config_option_update", "current_mode_update"})


class Router:
    """Knows the sessions of one connection and holds what belongs to none yet.

    Args:
        connection_id: the connection, as events name it.
        on_other: takes what is no session's notification: the line, its head, the journals touched.
    """

    def __init__(self, connection_id: str, on_other: Callable[[bytes, Envelope, set[Journal]], None]) -> None:
        self._connection_id = connection_id
        self._on_other = on_other
        self._bound: dict[str, ClientSession] = {}
        self._held: dict[str, list[bytes]] = {}
        self._held_count = 0
        self._held_bytes = 0
        self._forgotten: set[str] = set()
        self._loading: dict[str, Loading] = {}

    @property
    def sessions(self) -> list[ClientSession]:
        """The sessions that are bound, each once."""
        return list(dict.fromkeys(self._bound.values()))

    def get(self, agent_session_id: str | None) -> ClientSession | None:
        """Return whose the agent session is, or None."""
        return self._bound.get(agent_session_id or "")

    def close(self) -> None:
        """Forget all."""
        if self._held_count:
            logger.warning("%d events of %s never found their session", self._held_count, self._connection_id)
        self._bound.clear()
        self._held.clear()
        self._loading.clear()
        self._held_count = self._held_bytes = 0

    def bind(self, agent_session_id: str, session: ClientSession) -> None:
        """Say whose the envelopes of that agent session are; what came before is handed over."""
        self._bound[agent_session_id] = session
        held = self._held.pop(agent_session_id, None)
        if held:
            self._held_count -= len(held)
            self._held_bytes -= sum(map(len, held))
            self.take(held)

    def unbind(self, agent_session_id: str) -> None:
        """Keep nothing of that agent session any more."""
        if self._bound.pop(agent_session_id, None) is not None:
            self.forget(agent_session_id)

    def unbind_all(self, session: ClientSession) -> list[str]:
        """Keep nothing any more of the agent sessions that are the session's, and return them."""
        agent_sessions = [name for name, bound in self._bound.items() if bound is session]
        for name in agent_sessions:
            self.unbind(name)
        return agent_sessions

    def forget(self, agent_session_id: str) -> None:
        """Keep nothing of an agent session that is no one's."""
        self._loading.pop(agent_session_id, None)
        self._forgotten.add(agent_session_id)

    def knows(self, agent_session_id: str) -> bool:
        """Whether the agent has had that session in this connection."""
        return agent_session_id in self._bound or agent_session_id in self._forgotten

    def load(self, agent_session_id: str) -> Loading:
        """The agent is asked for a session that it has had before: what it tells until then is the past."""
        loading = self._loading[agent_session_id] = Loading()
        return loading

    def loaded(self, agent_session_id: str, session: ClientSession, result: dict[str, Any]) -> None:
        """The agent has opened it: say whose it is."""
        loading = self._loading.get(agent_session_id)
        held = loading.answer(result) if loading is not None else []
        self.bind(agent_session_id, session)
        self.take(held)

    def prompted(self, session: ClientSession) -> None:
        """A prompt goes out: whatever its agent says from now on is new."""
        for agent_session_id in list(self._loading):
            if self._bound.get(agent_session_id) is session:
                del self._loading[agent_session_id]

    def take(self, lines: list[bytes]) -> set[Journal]:
        """Put every line where it belongs, in order, and return the journals that got some."""
        touched: set[Journal] = set()
        runs: dict[str, list[bytes]] = {}
        bound = self._bound
        for line in lines:
            try:
                head = decode(line)
            except InvalidEnvelopeError as error:
                logger.warning(
                    "the feed of %s holds a line that is no envelope: %s", self._connection_id, error
                )
                continue
            if head.method is not None and not head.id and (params := head.params) is not None:
                agent_session = params.sessionId
                if agent_session is not None:
                    run = runs.get(agent_session)
                    if run is None:
                        run = runs[agent_session] = []
                    run.append(line)
                    if params.update is not None and params.update.sessionUpdate in STATE_UPDATES:
                        session = bound.get(agent_session)
                        if session is not None:
                            session.on_state_update(line)
                    continue
            self._put_runs(runs, touched)
            runs = {}
            self._on_other(line, head, touched)
        self._put_runs(runs, touched)
        return touched

    def _put_runs(self, runs: dict[str, list[bytes]], touched: set[Journal]) -> None:
        for agent_session, run in runs.items():
            session = self._bound.get(agent_session)
            loading = self._loading.get(agent_session)
            lines = run if loading is None else loading.present(run)
            if not lines:
                continue
            if session is None:
                self._hold(agent_session, lines)
            else:
                session.journal.put("agent", lines, self._connection_id)
                touched.add(session.journal)

    def _hold(self, agent_session: str, lines: list[bytes]) -> None:
        if agent_session in self._forgotten:
            return
        size = sum(map(len, lines))
        if self._held_count + len(lines) > MAX_HELD or self._held_bytes + size > MAX_HELD_BYTES:
            # Once per session: it is one of the agent's own that this client never asked for.
            self._forgotten.add(agent_session)
            logger.warning("agent session %s is no session of this client: not kept", agent_session)
            return
        self._held.setdefault(agent_session, []).extend(lines)
        self._held_count += len(lines)
        self._held_bytes += size
