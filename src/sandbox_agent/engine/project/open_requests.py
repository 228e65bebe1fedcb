"""The agent's open requests to the user: permissions and questions, and their answers."""

from __future__ import annotations

from typing import Any

import msgspec

from sandbox_agent.engine.project.emit import Emitter
from sandbox_agent.engine.project.state import Ask, State
from sandbox_agent.engine.project.tools import Tools
from sandbox_agent.engine.questions import read_answer
from sandbox_agent.wire.acp import PermissionRequest
from sandbox_agent.wire.jsonrpc import loads, members
from sandbox_agent.wire.questions import Question
from sandbox_agent.wire.universal import PermissionEventData, PermissionStatus, QuestionEventData


class OpenRequests:
    """The requests of the agent that wait for an answer, by their id as JSON."""

    def __init__(self, state: State, emit: Emitter, tools: Tools) -> None:
        self._state = state
        self._emit = emit
        self._tools = tools

    def open_permission(self, request_id: str, request: PermissionRequest, ask_id: str | None) -> None:
        """Add a permission request. Its tool call may not have been announced yet."""
        self.close(request_id, "superseded")
        call = request.tool_call
        item_id = self._tools.announce(call)
        action = call.title or call.name or call.kind or "permission"
        metadata: dict[str, Any] = {
            "request_id": loads(request_id.encode()),
            "tool_call_id": call.tool_call_id or None,
            "item_id": item_id,
            "kind": call.kind,
            "options": msgspec.to_builtins(request.options),
            "raw_input": call.raw_input,
            "paths": [location.path for location in call.locations or []] or None,
        }
        ask = Ask(
            ask_id or self._emit.next_id("perm"),
            action,
            {option.option_id: option.kind for option in request.options},
            call.tool_call_id,
        )
        self._state.permissions[request_id] = ask
        known = {name: value for name, value in metadata.items() if value is not None}
        self._emit.event(
            "permission.requested", PermissionEventData(ask.ask_id, action, "requested", known), "agent"
        )

    def open_question(self, request_id: str, question: Question, ask_id: str | None) -> None:
        """Add a question."""
        self.close(request_id, "superseded")
        ask = Ask(ask_id or self._emit.next_id("qst"), question.prompt, dict.fromkeys(question.options, ""))
        self._state.questions[request_id] = ask
        self._emit.event(
            "question.requested",
            QuestionEventData(ask.ask_id, ask.text, list(ask.options), "requested"),
            "agent",
        )

    def answer(self, request_id: str, result: object, error: object, by: str | None) -> None:
        """Process the client's response. A response to a closed request is ignored."""
        if request_id in self._state.permissions:
            selection = members(members(result).get("outcome"))
            option_id: Any = selection.get("optionId")
            kind = self._state.permissions[request_id].options.get(str(option_id), "")
            verdict = "error" if error is not None else str(selection.get("outcome") or "cancelled")
            metadata = {"outcome": verdict, "option_id": option_id, "kind": kind or None, "answered_by": by}
            status = _permission_status(kind) if verdict == "selected" else "reject"
            self._resolve_permission(request_id, status, metadata)
        elif request_id in self._state.questions:
            self._resolve_question(request_id, None if error is not None else read_answer(result))

    def close(self, request_id: str, outcome: str) -> None:
        """Close a request without an answer."""
        if request_id in self._state.permissions:
            self._resolve_permission(request_id, "reject", {"outcome": outcome})
        elif request_id in self._state.questions:
            self._resolve_question(request_id, None)

    def close_all(self, outcome: str) -> None:
        """Close all requests without an answer."""
        for request_id in [*self._state.permissions, *self._state.questions]:
            self.close(request_id, outcome)

    def _resolve_permission(
        self, request_id: str, status: PermissionStatus, metadata: dict[str, Any]
    ) -> None:
        ask = self._state.permissions.pop(request_id)
        self._tools.set_rejected(ask.call_id, rejected=status == "reject")
        known = {name: value for name, value in metadata.items() if value is not None}
        self._emit.event(
            "permission.resolved", PermissionEventData(ask.ask_id, ask.text, status, known), "daemon"
        )

    def _resolve_question(self, request_id: str, response: str | None) -> None:
        ask = self._state.questions.pop(request_id)
        self._emit.event(
            "question.resolved",
            QuestionEventData(
                ask.ask_id,
                ask.text,
                list(ask.options),
                "rejected" if response is None else "answered",
                response,
            ),
            "daemon",
        )


def _permission_status(kind: str) -> PermissionStatus:
    if kind.startswith("allow"):
        return "accept_for_session" if kind.endswith("always") else "accept"
    return "reject"
