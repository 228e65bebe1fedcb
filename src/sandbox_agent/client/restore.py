"""The client's side of a restore: a session continues on another connection."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from sandbox_agent.client.connection import Connection
from sandbox_agent.client.outgoing import NotSentError
from sandbox_agent.client.session_core import SessionCore
from sandbox_agent.client.settings import SET_METHODS, chosen_settings, refusal_of
from sandbox_agent.engine import config_options as config
from sandbox_agent.engine.permissions import AgentModes
from sandbox_agent.engine.restore.ladder import Ladder, OpenSession, Plan, ReadNewest, native_methods
from sandbox_agent.engine.restore.replay import EVENTS_PER_ENTRY
from sandbox_agent.engine.settings import Call, ChosenSettings
from sandbox_agent.errors import (
    AgentProcessExitedError,
    ConnectionLostError,
    SandboxAgentError,
)
from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.wire.jsonrpc import dumps, members
from sandbox_agent.wire.records import RESTORED_METHOD, SessionEvent, SessionRecord, SessionRestored

logger: logging.Logger = logging.getLogger("sandbox_agent.client")

# The most events that opening an agent session again stores; reading too many is harmless.
_ASKED = 32


class Limits(NamedTuple):
    """Limits of a replay: the newest events, counting a text as one, and characters."""

    max_events: int
    max_chars: int


class Restorer:
    """Restores sessions on a connection.

    Args:
        driver: stores the history.
        limits: how much of the history is replayed.
    """

    def __init__(self, driver: SessionPersistDriver, limits: Limits) -> None:
        self._driver = driver
        self._limits = limits

    async def restore(self, session: SessionCore, connection: Connection, init: dict[str, Any]) -> None:
        """Bind a session to the connection's agent, which may be another agent than before.

        Args:
            session: the session; its ``binding`` is held.
            connection: the connection on which it continues.
            init: the params of session/new.

        Raises:
            NotSentError: retry on a new connection: this one is gone, or its agent exited while it opened
                the agent session, which is not opened again.
            SandboxAgentError: the agent refuses even a new session, or is gone.
            PersistError: the store failed.
        """
        await session.journal.flush()
        total = await self._driver.last_event_index(session.id)
        tail = await self._driver.tail_events(session.id, limit=self._limits.max_events)
        session.settings.adopt()
        session.store_policies()
        session.settings.expect_confirmation()
        before, modes = session.record, session.host.modes.get(connection.agent)
        ladder = Ladder(self._plan(before, connection, init, tail, total, session.unopenable, modes))
        try:
            for step in ladder:
                if isinstance(step, Call):
                    await _call(step, session, connection)
                elif isinstance(step, ReadNewest):
                    step.events = await self._newest(session.id, step.limit, total)
                else:
                    await session.settings.perform(step)
        except BaseException:
            # Lost again, or the caller gave up: the next restore needs the previous state.
            session.journal.change(
                agent=before.agent,
                agent_session_id=before.agent_session_id,
                last_connection_id=before.last_connection_id,
                config_options=before.config_options,
                modes=before.modes,
            )
            raise
        outcome = ladder.outcome
        session.replay = outcome.text
        if before.agent_session_id != session.agent_session_id and connection.agent == before.agent:
            connection.router.unbind(before.agent_session_id)
        for category, why in (outcome.failed or {}).items():
            logger.warning("session %s: %s could not be set again: %s", session.id, category, why)
        handed_over = connection.agent != before.agent
        session.settings.restored(outcome, connection.agent, handed_over=handed_over)
        restored = SessionRestored(
            session_id=session.id,
            method=outcome.method,
            replayed=outcome.replayed,
            left_out=outcome.left_out,
            verified=outcome.verified,
            applied=outcome.applied,
            failed=outcome.failed,
            agent=connection.agent if handed_over else None,
            from_agent=before.agent if handed_over else None,
        )
        envelope = dumps({"jsonrpc": "2.0", "method": RESTORED_METHOD, "params": restored.params()})
        session.journal.append("client", [envelope], connection.connection_id)
        await session.journal.flush()

    async def _newest(self, session_id: str, limit: int, total: int) -> list[SessionEvent]:
        # The requests of this restore may be stored by now; they are not part of the history.
        newest = await self._driver.tail_events(session_id, limit=limit + _ASKED)
        return [event for event in newest if event.event_index <= total][-limit:]

    def _plan(
        self,
        record: SessionRecord,
        connection: Connection,
        init: dict[str, Any],
        tail: Sequence[SessionEvent],
        total: int,
        unopenable: str,
        modes: AgentModes | None,
    ) -> Plan:
        native_id, chosen = record.agent_session_id, chosen_settings(record)
        handed_over = record.agent != connection.agent
        # If the agent has it open already, it lacks what another process or agent added since.
        askable = native_id != unopenable and not connection.router.has_seen(native_id)
        return Plan(
            agent=connection.agent,
            from_agent=record.agent if handed_over else None,
            native_id=native_id if askable else "",
            methods=native_methods(connection.initialize_result),
            init=init,
            wanted=_wanted_of_another(record, chosen) if handed_over else chosen.wanted(record.agent),
            config_ids={} if handed_over else chosen.config_ids,
            permission_mode=chosen.permission_mode,
            modes=modes,
            known_options=record.config_options,
            known_modes=record.modes,
            events=tail,
            total=total,
            max_events=self._limits.max_events,
            max_chars=self._limits.max_chars,
            max_read=self._limits.max_events * EVENTS_PER_ENTRY,
        )


def _wanted_of_another(record: SessionRecord, chosen: ChosenSettings) -> dict[str, Any]:
    """Return what to set in another agent: what was chosen, else the model and thought level in use.

    A mode that was not chosen stays behind: it may be one that does not ask.
    """
    in_use = {
        name: config.setting(record.config_options, record.modes, name) for name in ("model", "thought_level")
    }
    return {**{name: value for name, value in in_use.items() if value}, **chosen.wanted()}


async def _call(step: Call, session: SessionCore, connection: Connection) -> None:
    opens = step.opens if isinstance(step, OpenSession) else None
    replay_filter = connection.router.start_filter(opens) if opens is not None else None
    try:
        if step.method in SET_METHODS:
            result = await session.send_setting(connection, step.method, step.params)
        else:
            result = await connection.request(step.method, step.params, session=session, opens=opens)
    except NotSentError:
        raise
    except (ConnectionLostError, AgentProcessExitedError) as error:
        if opens is None:
            raise
        session.unopenable = opens
        raise NotSentError(f"the agent was lost in {step.method}: {error}") from error
    except SandboxAgentError as error:
        if not step.may_fail:
            raise
        logger.info("session %s: %s failed: %s", session.id, step.method, error)
        step.refusal = refusal_of(error)
        if opens is not None:
            connection.router.ignore(opens)
        return
    step.result = members(result)
    if isinstance(step, OpenSession):
        step.reported = replay_filter.reported if replay_filter is not None else None
    if step.method == "session/new":
        check_new_session(connection.agent, result)


def check_new_session(agent: str, result: object) -> None:
    """Check the result of session/new.

    Raises:
        SandboxAgentError: it has no sessionId.
    """
    if not isinstance(members(result).get("sessionId"), str):
        raise SandboxAgentError(
            f"agent '{agent}' sent a session/new result without a sessionId, which the protocol requires"
        )
