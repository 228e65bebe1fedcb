"""Requests of the client, other than prompts, whose responses produce events: opening and setting."""

from __future__ import annotations

from typing import Any

from sandbox_agent.engine.project.emit import Emitter
from sandbox_agent.engine.project.state import Call, State
from sandbox_agent.engine.project.statuses import Statuses
from sandbox_agent.engine.project.texts import Texts
from sandbox_agent.engine.project.tools import Tools
from sandbox_agent.engine.project.turns import error_data
from sandbox_agent.engine.restore.load_phase import OPENING_METHODS
from sandbox_agent.engine.settings import METHOD_NOT_FOUND
from sandbox_agent.wire import acp

# Each method, and the param with the value to set.
_METHODS = {
    "session/new": "cwd",
    "session/load": "sessionId",
    "session/resume": "sessionId",
    "session/set_mode": "modeId",
    "session/set_config_option": "configId",
    "session/set_model": "modelId",
}


class Calls:
    """The requests without a response."""

    def __init__(self, state: State, emit: Emitter, texts: Texts, tools: Tools, statuses: Statuses) -> None:
        self._state = state
        self._emit = emit
        self._texts = texts
        self._tools = tools
        self._statuses = statuses

    def add(self, request_id: str, method: str, params: dict[str, Any]) -> None:
        """Process a request of the client."""
        named = _METHODS.get(method)
        if named is None:
            return
        value = params.get(named)
        self._state.calls[request_id] = Call(method, value if isinstance(value, str) else "")
        if method in OPENING_METHODS:
            # Updates before the response are the history, which is already here if the session has content.
            self._state.skipped = 0
            if self._state.seen:
                self._state.retelling.begin()

    def succeed(self, request_id: str, result: dict[str, Any]) -> None:
        """Process a successful response."""
        call = self._state.calls.pop(request_id, None)
        if call is None:
            return
        if call.method == "session/set_mode":
            # Most agents also send an update. The same mode is shown only once.
            self._statuses.show_mode(call.value, "daemon")
        elif call.method == "session/new":
            self._set_native_id(result.get("sessionId"))
        elif call.method in OPENING_METHODS:
            self._set_native_id(call.value)
            self._finish_restore(call.method)
        options = result.get("configOptions")
        if call.method == "session/set_config_option" and isinstance(options, list):
            # Parse the options like those of an update.
            update = acp.parse_update({"sessionUpdate": "config_option_update", "configOptions": options})
            if isinstance(update, acp.ConfigOptionUpdate):
                self._statuses.show_config(update.config_options, "daemon")

    def fail(self, request_id: str, error: object) -> None:
        """Process an error. An unknown method produces no event, because the client tries another one."""
        call = self._state.calls.pop(request_id, None)
        if call is None:
            return
        if call.method in OPENING_METHODS:
            self._state.retelling.end()
            self._close_items()
            if self._state.told_elsewhere:
                return
        data = error_data(error, call.method)
        if data.code != str(METHOD_NOT_FOUND):
            self._emit.event("error", data, "agent")

    def _finish_restore(self, method: str) -> None:
        self._state.retelling.answer()
        self._close_items()
        if not self._state.told_elsewhere:
            self._statuses.show_restored({"method": method})

    def _close_items(self) -> None:
        # A message or a call that is incomplete in the history will not continue.
        if not self._state.turns:
            self._texts.close()
            self._tools.close()

    def _set_native_id(self, native_id: object) -> None:
        if isinstance(native_id, str) and native_id:
            self._state.native_session_id = native_id
