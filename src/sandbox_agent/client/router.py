"""Routes envelopes: runs of updates go to their sessions' journals, everything else to the connection."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast
from zlib import crc32

from sandbox_agent.client.broker import Respond
from sandbox_agent.client.envelopes import Envelope, Line, decode
from sandbox_agent.client.journal import Journal
from sandbox_agent.engine.restore.load_phase import Retelling
from sandbox_agent.engine.restore.replay_check import ReportedHistory
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, loads, members
from sandbox_agent.wire.records import Sender, SessionEvent


class ReplayFilter:
    """Filters an agent session's updates from the request that opens it to the next prompt.

    Attributes:
        reported: the history that the agent reported.
    """

    def __init__(self) -> None:
        self.reported: ReportedHistory = ReportedHistory()
        self._retelling = Retelling()
        self._retelling.begin()
        self._undecided: list[Line] = []
        self._present: dict[str, Line] = {}

    def filter(self, lines: list[Line]) -> list[Line]:
        """Return the updates that belong to the history.

        Until the response, updates that describe the present (commands, usage) are held: the last of each
        kind. So are updates that may repeat the history, until that is known.
        """
        return [line for line in lines if self._is_present(line)]

    def _is_present(self, line: Line) -> bool:
        params = decode(line.data).params
        kind = params.update.sessionUpdate if params is not None and params.update is not None else None
        verdict = self._retelling.classify(kind)
        is_open = self._retelling.state == "open"
        if verdict == "undecided":
            self._undecided.append(line)
        elif verdict == "past" and is_open:
            for each in (*self._undecided, line):
                self._add_reported(each)
            self._undecided.clear()
        elif verdict == "news" and is_open:
            self._present[kind or ""] = line
        return verdict == "news" and not is_open

    def _add_reported(self, line: Line) -> None:
        update: object = members(loads(line.data)["params"]).get("update")
        if isinstance(update, dict):
            self.reported.add(cast("dict[str, Any]", update))

    def finish(self, result: dict[str, Any]) -> list[Line]:
        """Handle the response; return the held updates, except for state that the response contains."""
        self._retelling.answer()
        undecided, self._undecided = self._undecided, []
        held, self._present = self._present, {}
        if isinstance(result.get("modes"), dict):
            held.pop("current_mode_update", None)
        if isinstance(result.get("configOptions"), list):
            held.pop("config_option_update", None)
        return [*undecided, *held.values()]


logger: logging.Logger = logging.getLogger("sandbox_agent.client")

# Updates may arrive before the response that names their session; more than this is a fault.
MAX_HELD = 10_000
MAX_HELD_BYTES = 16 * 1024 * 1024
STATE_UPDATES = frozenset({"config_option_update", "current_mode_update"})
_TOOL_CALLS = frozenset({"tool_call", "tool_call_update"})
_NOTED = STATE_UPDATES | _TOOL_CALLS


class ClientSession(Protocol):
    """What a connection needs of a session that is bound to it.

    ``on_bound`` is called before the first update of the opened agent session is routed.
    ``on_agent_request`` returns at once; ``respond`` sends the result later. ``acted`` is set when the agent
    uses a tool.
    """

    acted: bool

    @property
    def journal(self) -> Journal: ...
    @property
    def answers_questions(self) -> bool: ...
    def on_bound(self, agent: str, connection_id: str, result: Mapping[str, Any]) -> None: ...
    def on_unbound(self, connection_id: str) -> None: ...
    def on_state_update(self, line: bytes) -> None: ...
    def on_permission_request(self, event: SessionEvent, respond: Respond, *, must_ask: bool) -> None: ...
    def on_question_request(self, event: SessionEvent, respond: Respond, *, must_ask: bool) -> None: ...


class Router:
    """Knows the sessions of one connection and holds updates whose session is not known yet.

    Args:
        connection_id: the connection's id in events.
        on_other: handles a line that is not a session's notification: the line, its head, and the set of
            journals that received events.

    Attributes:
        is_shared: whether other sessions of the connection belong to other clients.
    """

    def __init__(self, connection_id: str, on_other: Callable[[Line, Envelope, set[Journal]], None]) -> None:
        self._connection_id = connection_id
        self._on_other = on_other
        self._bound: dict[str, ClientSession] = {}
        self._held: dict[str, list[Line]] = {}
        self._held_count = 0
        self._held_bytes = 0
        self._ignored: set[str] = set()
        self._filters: dict[str, ReplayFilter] = {}
        self.is_shared: bool = False

    @property
    def sessions(self) -> list[ClientSession]:
        """The bound sessions, each once."""
        return list(dict.fromkeys(self._bound.values()))

    def get(self, agent_session_id: str | None) -> ClientSession | None:
        """Return the session of an agent session, or None."""
        return self._bound.get(agent_session_id or "")

    def append_to_all(self, sender: Sender, line: Line) -> set[Journal]:
        """Append an envelope to all bound sessions; return their journals."""
        journals = {session.journal for session in self.sessions}
        for journal in journals:
            # One event for each session: an id is unique in a store.
            number = crc32(journal.record.id.encode())
            event_id = f"{line.event_id}.{number}" if line.event_id is not None else None
            journal.append(sender, [line.data], self._connection_id, [event_id])
        return journals

    def append_invalid_line(self, notice: Line) -> set[Journal]:
        """Append the notice of a line that is not a message to all bound sessions; return their journals."""
        params = members(members(loads(notice.data)).get("params"))
        logger.warning(
            "the agent of %s wrote a line that is not a message (%s; %s): %.200r",
            self._connection_id,
            params.get("error"),
            "repaired" if params.get("repaired") else "not repaired",
            params.get("raw"),
        )
        return self.append_to_all("agent", notice)

    def close(self) -> None:
        """Unbind all sessions."""
        if self._held_count:
            logger.warning("%d events of %s have no session: dropped", self._held_count, self._connection_id)
        self._bound.clear()
        self._held.clear()
        self._filters.clear()
        self._held_count = self._held_bytes = 0

    def bind(self, agent_session_id: str, session: ClientSession) -> None:
        """Bind an agent session to a session; updates held for it are delivered."""
        self._bound[agent_session_id] = session
        held = self._held.pop(agent_session_id, None)
        if held:
            self._held_count -= len(held)
            self._held_bytes -= _size(held)
            self.route(held)

    def unbind(self, agent_session_id: str) -> None:
        """Drop the agent session's updates from now on."""
        if self._bound.pop(agent_session_id, None) is not None:
            self.ignore(agent_session_id)

    def unbind_all(self, session: ClientSession) -> list[str]:
        """Unbind all agent sessions of a session and return their ids."""
        agent_sessions = [name for name, bound in self._bound.items() if bound is session]
        for name in agent_sessions:
            self.unbind(name)
        return agent_sessions

    def forget(self, agent_session_id: str) -> None:
        """Unbind an agent session that the agent has lost; it may be opened again."""
        self._bound.pop(agent_session_id, None)
        self._filters.pop(agent_session_id, None)

    def ignore(self, agent_session_id: str) -> None:
        """Drop the updates of an agent session that has no session."""
        self._filters.pop(agent_session_id, None)
        self._ignored.add(agent_session_id)

    def has_seen(self, agent_session_id: str) -> bool:
        """Whether the agent has had that session on this connection."""
        return agent_session_id in self._bound or agent_session_id in self._ignored

    def start_filter(self, agent_session_id: str) -> ReplayFilter:
        """Filter an agent session's updates while the agent opens it again: it may replay the history."""
        replay_filter = self._filters[agent_session_id] = ReplayFilter()
        return replay_filter

    def finish_filter(self, agent_session_id: str, session: ClientSession, result: dict[str, object]) -> None:
        """Bind an agent session that the agent has opened again."""
        replay_filter = self._filters.get(agent_session_id)
        held = replay_filter.finish(result) if replay_filter is not None else []
        self.bind(agent_session_id, session)
        self.route(held)

    def end_filter(self, session: ClientSession) -> None:
        """Stop filtering a session's updates: a prompt is sent, so everything after it is new."""
        for agent_session_id in list(self._filters):
            if self._bound.get(agent_session_id) is session:
                del self._filters[agent_session_id]

    def route(self, lines: Sequence[Line]) -> set[Journal]:
        """Route every line, in order; return the journals that received events."""
        touched: set[Journal] = set()
        runs: dict[str, list[Line]] = {}
        bound = self._bound
        for line in lines:
            try:
                head = decode(line.data)
            except InvalidEnvelopeError as error:
                logger.warning("invalid envelope in the feed of %s: %s", self._connection_id, error)
                continue
            if head.method is not None and not head.id and (params := head.params) is not None:
                agent_session = params.sessionId
                if agent_session is not None:
                    run = runs.get(agent_session)
                    if run is None:
                        run = runs[agent_session] = []
                    run.append(line)
                    if params.update is not None and params.update.sessionUpdate in _NOTED:
                        session = bound.get(agent_session)
                        if session is None:
                            pass
                        elif params.update.sessionUpdate in _TOOL_CALLS:
                            session.acted = True
                        else:
                            session.on_state_update(line.data)
                    continue
            self._deliver_runs(runs, touched)
            runs = {}
            self._on_other(line, head, touched)
        self._deliver_runs(runs, touched)
        return touched

    def _deliver_runs(self, runs: dict[str, list[Line]], touched: set[Journal]) -> None:
        for agent_session, run in runs.items():
            session = self._bound.get(agent_session)
            replay_filter = self._filters.get(agent_session)
            lines = run if replay_filter is None else replay_filter.filter(run)
            if not lines:
                continue
            if session is None:
                self._hold(agent_session, lines)
            else:
                payloads, ids = [line.data for line in lines], [line.event_id for line in lines]
                session.journal.append("agent", payloads, self._connection_id, ids)
                touched.add(session.journal)

    def _hold(self, agent_session: str, lines: list[Line]) -> None:
        if self.is_shared or agent_session in self._ignored:
            return
        size = _size(lines)
        if self._held_count + len(lines) > MAX_HELD or self._held_bytes + size > MAX_HELD_BYTES:
            # Logged once per session: the agent opened it without a request of this client.
            self._ignored.add(agent_session)
            logger.warning("agent session %s belongs to no session of this client: dropped", agent_session)
            return
        self._held.setdefault(agent_session, []).extend(lines)
        self._held_count += len(lines)
        self._held_bytes += size


def _size(lines: Sequence[Line]) -> int:
    return sum(len(line.data) for line in lines)
