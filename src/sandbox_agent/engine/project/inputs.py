"""Inputs of the projector other than envelopes: start and end, exits, interruptions, failures."""

from __future__ import annotations

from typing import Any

from sandbox_agent.engine.project.emit import Emitter
from sandbox_agent.engine.project.state import State
from sandbox_agent.engine.project.statuses import Statuses
from sandbox_agent.engine.project.texts import Texts
from sandbox_agent.engine.project.turns import Turns
from sandbox_agent.wire.universal import (
    ErrorData,
    SessionEndedData,
    SessionEndReason,
    SessionStartedData,
    StderrOutput,
    TerminatedBy,
    TurnEventData,
    UniversalEvent,
)


class Inputs:
    """The inputs other than ``feed``. Each has its time in milliseconds and returns its events."""

    _state: State
    _emit: Emitter
    _statuses: Statuses
    _texts: Texts
    _turns: Turns

    @property
    def sequence(self) -> int:
        """The sequence of the last event, or 0 before the first."""
        return self._state.sequence

    @property
    def native_session_id(self) -> str | None:
        """The agent's own id of the session, or None if it is not known."""
        return self._state.native_session_id

    @property
    def open_turns(self) -> list[str]:
        """The ids of the running turns, oldest first."""
        return [turn.turn_id for turn in self._state.turns.values()]

    def is_refused(self, turn_id: str) -> bool:
        """Whether the agent has lost the session of this turn, and the prompt was not sent again yet."""
        return any(turn.refused for turn in self._state.turns.values() if turn.turn_id == turn_id)

    @property
    def has_late_texts(self) -> bool:
        """Whether a message is open though no turn runs: the agent began it after its response."""
        return bool(self._state.texts) and not self._state.turns

    @property
    def pending_permissions(self) -> dict[str, str]:
        """The open permission requests: permission id -> the request id as JSON."""
        return {ask.ask_id: request_id for request_id, ask in self._state.permissions.items()}

    @property
    def pending_questions(self) -> dict[str, str]:
        """The open questions: question id -> the request id as JSON."""
        return {ask.ask_id: request_id for request_id, ask in self._state.questions.items()}

    def session_started(
        self, time_ms: int, *, native_session_id: str | None = None, metadata: Any = None
    ) -> list[UniversalEvent]:
        """The session was created. ``metadata`` contains its options."""
        events = self._emit.begin(time_ms)
        if native_session_id is not None:
            self._state.native_session_id = native_session_id
        self._emit.event("session.started", SessionStartedData(metadata), "daemon")
        return events

    def session_ended(
        self,
        time_ms: int,
        *,
        reason: SessionEndReason,
        terminated_by: TerminatedBy,
        message: str | None = None,
        exit_code: int | None = None,
        stderr: StderrOutput | None = None,
    ) -> list[UniversalEvent]:
        """The session has ended. Everything that is open ends with it."""
        events = self._emit.begin(time_ms)
        self._turns.interrupt("session_ended")
        data = SessionEndedData(reason, terminated_by, message, exit_code, stderr)
        self._emit.event("session.ended", data, "daemon")
        return events

    def turn_interrupted(
        self, time_ms: int, *, reason: str, turn_id: str | None = None
    ) -> list[UniversalEvent]:
        """No response will come: the server died or lost its agent.

        Args:
            time_ms: The time when this was noticed.
            reason: The reason as an identifier ("server_restarted").
            turn_id: A turn that was accepted but maybe never sent. It ends too.
        """
        events = self._emit.begin(time_ms)
        known = turn_id is None or turn_id in self.open_turns
        self._turns.interrupt(reason)
        if not known:
            metadata = {"stop_reason": "interrupted", "reason": reason}
            self._emit.event("turn.ended", TurnEventData("ended", turn_id, metadata), "daemon")
        return events

    def late_texts_ended(self, time_ms: int) -> list[UniversalEvent]:
        """The agent has added nothing for a while to messages that it began after its response."""
        events = self._emit.begin(time_ms)
        if self.has_late_texts:
            self._texts.close()
        return events

    def turn_dropped(
        self, time_ms: int, *, turn_id: str, message: str | None = None, code: str | None = None
    ) -> list[UniversalEvent]:
        """A turn has ended that was accepted and never sent, or refused and not sent again.

        Args:
            time_ms: The time when this was noticed.
            turn_id: The turn.
            message: The error that prevented sending or was the response, or None if the turn was cancelled.
            code: The name of the error.
        """
        events = self._emit.begin(time_ms)
        if message is None:
            metadata: dict[str, Any] = {"stop_reason": "cancelled", "cancelled": True}
        else:
            self._emit.event("error", ErrorData(message, code), "daemon")
            metadata = {"stop_reason": "error", "error": {"message": message, "code": code}}
        self._turns.drop(turn_id, metadata)
        return events

    def agent_exited(
        self, time_ms: int, *, exit_code: int | None = None, stderr: str | None = None
    ) -> list[UniversalEvent]:
        """The agent's process exited. A second report, by ``_adapter/agent_exited``, is ignored."""
        events = self._emit.begin(time_ms)
        self._process_exit(exit_code, success=exit_code == 0, stderr=stderr)
        return events

    def error(
        self, time_ms: int, *, message: str, code: str | None = None, details: Any = None
    ) -> list[UniversalEvent]:
        """A part of the server failed, such as its store."""
        events = self._emit.begin(time_ms)
        self._emit.event("error", ErrorData(message, code, details), "daemon")
        return events

    def restoring(self, time_ms: int) -> list[UniversalEvent]:
        """A restore starts. Its requests produce no events; ``restored`` reports its end."""
        self._state.told_elsewhere = True
        return self._emit.begin(time_ms)

    def restored(
        self,
        time_ms: int,
        *,
        method: str,
        replayed: int = 0,
        left_out: int = 0,
        verified: bool | None = None,
        applied: dict[str, Any] | None = None,
        failed: dict[str, str] | None = None,
    ) -> list[UniversalEvent]:
        """The session was restored in another process of its agent (fields as in ``SessionRestored``)."""
        events = self._emit.begin(time_ms)
        outcome = {"method": method, "replayed": replayed, "leftOut": left_out, "verified": verified}
        self._statuses.show_restored({**outcome, "applied": applied, "failed": failed})
        self._state.told_elsewhere = False
        return events

    def status(self, time_ms: int, *, label: str, detail: str, value: Any = None) -> list[UniversalEvent]:
        """Any other fact that the server reports, as a status item."""
        events = self._emit.begin(time_ms)
        self._statuses.show(label, detail, value, source="daemon")
        return events

    def _process_exit(
        self,
        exit_code: int | None,
        *,
        success: bool,
        stderr: str | None = None,
        reason: str | None = None,
    ) -> None:
        state = self._state
        if state.exited:
            return
        state.exited = True
        is_busy = any(not turn.refused for turn in state.turns.values())
        if is_busy or not success:
            code = "by a signal or with an unknown code" if exit_code is None else f"with code {exit_code}"
            busy = " before it answered" if is_busy else ""
            details = {"exit_code": exit_code, "stderr": stderr, "reason": reason}
            known = {name: value for name, value in details.items() if value is not None}
            what = f"exited {code}{busy}" if reason is None else f"was ended by the server: {reason}"
            message = f"the agent's process {what}: the next message starts it again"
            self._emit.event("error", ErrorData(message, "agent_process_exited", known or None), "daemon")
        self._turns.interrupt("agent_exited")
