"""Turns: from a prompt to its response. Everything that is open ends with the turn."""

from __future__ import annotations

from typing import Any

from sandbox_agent.engine.handshake import is_lost_session_error
from sandbox_agent.engine.project.content import parts_text, prompt_parts
from sandbox_agent.engine.project.emit import Emitter
from sandbox_agent.engine.project.open_requests import OpenRequests
from sandbox_agent.engine.project.state import State, Turn
from sandbox_agent.engine.project.texts import Texts
from sandbox_agent.engine.project.tools import Tools
from sandbox_agent.errors import agent_reason
from sandbox_agent.wire.jsonrpc import members
from sandbox_agent.wire.universal import ErrorData, EventSource, ItemStatus, TurnEventData

# The reasons of an interruption that only the agent's process is the cause of.
_PROCESS_ENDS = frozenset({"session_lost", "agent_exited", "connection_closed"})


class Turns:
    """The prompts of a session without a response, oldest first."""

    def __init__(
        self, state: State, emit: Emitter, texts: Texts, tools: Tools, requests: OpenRequests
    ) -> None:
        self._state = state
        self._emit = emit
        self._texts = texts
        self._tools = tools
        self._requests = requests

    def start(self, request_id: str, prompt: object, turn_id: str | None) -> None:
        """Process a prompt: start the turn and add the user's message."""
        state = self._state
        former = state.turns.get(request_id)
        is_resent = former is not None and former.refused
        if former is not None and not is_resent:
            self._end(request_id, {"stop_reason": "interrupted", "reason": "its id was used again"}, "daemon")
        self._texts.close()
        self._tools.forget_ended()
        state.retelling.end()
        parts = prompt_parts(prompt)
        state.echo = parts_text(parts)
        if former is not None and is_resent:
            former.refused = False
            return
        turn = Turn(turn_id or self._emit.next_id("turn"), by_server=turn_id is not None)
        state.turns[request_id] = turn
        self._emit.event("turn.started", TurnEventData("started", turn.turn_id), "daemon")
        self._texts.add_message("user_message_chunk", parts, state.echo)

    def act(self) -> None:
        """Note that the agent has used a tool, or asked for something."""
        for turn in self._state.turns.values():
            turn.acted = True

    def cancel(self) -> None:
        """Process a cancel. The turns continue until their response, which may not mention it."""
        for turn in self._state.turns.values():
            turn.cancelled = True

    def respond(self, request_id: str, result: object) -> None:
        """Process the result of a prompt."""
        fields = members(result)
        reason = fields.get("stopReason")
        stop_reason = reason if isinstance(reason, str) else ""
        metadata: dict[str, Any] = {"stop_reason": stop_reason}
        usage: Any = fields.get("usage") or _quota(fields)
        if isinstance(usage, dict):
            metadata["usage"] = usage
        cancelled = self._state.turns[request_id].cancelled or stop_reason == "cancelled"
        if cancelled:
            metadata["cancelled"] = True
        self._close("failed" if cancelled else "completed", cancelled=cancelled)
        self._end(request_id, metadata, "agent")

    def fail(self, request_id: str, error: object) -> None:
        """Process the error of a prompt.

        A turn of the server continues if the agent has lost the session, and has done nothing yet.
        """
        turn = self._state.turns[request_id]
        if turn.by_server and not turn.acted and is_lost_session_error(error):
            turn.refused = True
            return
        self._close("failed")
        data = error_data(error, "session/prompt")
        self._emit.event("error", data, "agent")
        cancelled = {"cancelled": True} if turn.cancelled else {}
        summary = {"message": data.message, "code": data.code}
        self._end(request_id, {"stop_reason": "error", "error": summary, **cancelled}, "agent")

    def interrupt(self, reason: str) -> None:
        """End all turns and everything that is open, because no response will come.

        The reason ``cancelled`` means that the turns were cancelled and the agent did not respond to that.
        A turn whose prompt is sent again to another process of the agent does not end with this process.
        """
        cancelled = reason == "cancelled"
        metadata: dict[str, Any] = {"stop_reason": "interrupted", "reason": reason}
        if cancelled:
            metadata = {"stop_reason": "cancelled", "cancelled": True}
        self._requests.close_all("cancelled" if cancelled else "interrupted")
        self._close("failed", cancelled=cancelled)
        for request_id, turn in list(self._state.turns.items()):
            if not (turn.refused and reason in _PROCESS_ENDS):
                self._end(request_id, metadata, "daemon")
        self._state.calls = {}
        self._state.retelling.end()

    def drop(self, turn_id: str, metadata: dict[str, Any]) -> None:
        """End a turn whose prompt was not sent, or was refused and is not sent again."""
        for request_id, turn in self._state.turns.items():
            if turn.turn_id == turn_id:
                self._end(request_id, metadata, "daemon")
                return
        self._emit.event("turn.ended", TurnEventData("ended", turn_id, metadata), "daemon")

    def _close(self, status: ItemStatus, *, cancelled: bool = False) -> None:
        # The text of a cancelled turn is complete; a text that an error ends has failed.
        self._texts.close("completed" if cancelled else status)
        if len(self._state.turns) <= 1:
            self._requests.close_all("cancelled" if cancelled else "turn_ended")
        self._tools.close(status)

    def _end(self, request_id: str, metadata: dict[str, Any], source: EventSource) -> None:
        turn = self._state.turns.pop(request_id)
        if not self._state.turns:
            self._state.echo = ""
        self._emit.event("turn.ended", TurnEventData("ended", turn.turn_id, metadata), source)


def error_data(error: object, method: str) -> ErrorData:
    """Return the event data of a JSON-RPC error in the response to a method."""
    fields = members(error)
    code: Any = fields.get("code")
    message: Any = fields.get("message")
    details: dict[str, Any] = {"method": method}
    if fields.get("data") is not None:
        details["data"] = fields["data"]
    if isinstance(error, str) and error:
        message = error
    elif not isinstance(message, str) or not message:
        message = f"the agent answered {method} with an error that has no message"
    return ErrorData(agent_reason(message, details.get("data")), None if code is None else str(code), details)


def _quota(result: dict[str, Any]) -> dict[str, Any] | None:
    # Gemini reports the tokens of the turn in _meta.
    count = result
    for name in ("_meta", "quota", "token_count"):
        count = members(count.get(name))
    usage = {"inputTokens": count.get("input_tokens"), "outputTokens": count.get("output_tokens")}
    return usage if all(isinstance(tokens, int) for tokens in usage.values()) else None
