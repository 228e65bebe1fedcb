"""The client's other requests whose answers show: a restored session, a mode or an option that was set."""

from __future__ import annotations

from typing import Any

from sandbox_agent.engine.project.emit import Emitter
from sandbox_agent.engine.project.state import Call, State
from sandbox_agent.engine.project.statuses import Statuses
from sandbox_agent.engine.project.texts import Texts
from sandbox_agent.engine.project.tools import Tools
from sandbox_agent.engine.project.turns import error_data
from sandbox_agent.wire import acp

__all__ = ["Calls"]

# A method, and the param that says what it wants.
_METHODS = {
    "session/new": "cwd",
    "session/load": "sessionId",
    "session/resume": "sessionId",
    "session/set_mode": "modeId",
    "session/set_config_option": "configId",
    "session/set_model": "modelId",
}
_RESTORES = {"session/load", "session/resume"}
_METHOD_NOT_FOUND = -32601


class Calls:
    """The requests that have no response yet."""

    def __init__(self, state: State, emit: Emitter, texts: Texts, tools: Tools, statuses: Statuses) -> None:
        self._state = state
        self._emit = emit
        self._texts = texts
        self._tools = tools
        self._statuses = statuses

    def sent(self, request_id: str, method: str, params: dict[str, Any]) -> None:
        """Take a request of the client's."""
        named = _METHODS.get(method)
        if named is None:
            return
        value = params.get(named)
        self._state.calls[request_id] = Call(method, value if isinstance(value, str) else "")
        if method in _RESTORES:
            # What the agent tells until its response is history: it is said again only to who never saw it.
            self._state.skipped = 0
            if self._state.seen:
                self._state.retelling.begin()

    def succeed(self, request_id: str, result: dict[str, Any]) -> None:
        """Take a response."""
        call = self._state.calls.pop(request_id, None)
        if call is None:
            return
        if call.method == "session/set_mode":
            # Most agents also send an update; the same mode is shown once.
            self._statuses.mode(call.value, "daemon")
        elif call.method == "session/new":
            self._adopt(result.get("sessionId"))
        elif call.method in _RESTORES:
            self._adopt(call.value)
            self._loaded(call.method)
        options = result.get("configOptions")
        if call.method == "session/set_config_option" and isinstance(options, list):
            # The same view reads the options of an update.
            update = acp.parse_update({"sessionUpdate": "config_option_update", "configOptions": options})
            if isinstance(update, acp.ConfigOptionUpdate):
                self._statuses.config(update.config_options, "daemon")

    def fail(self, request_id: str, error: object) -> None:
        """Take an error; a method that the agent doesn't know is no event, its client tries another."""
        call = self._state.calls.pop(request_id, None)
        if call is None:
            return
        if call.method in _RESTORES:
            self._state.retelling.end()
            self._end_loading()
            if self._state.told_elsewhere:
                return
        data = error_data(error, call.method)
        if data.code != str(_METHOD_NOT_FOUND):
            self._emit.event("error", data, "agent")

    def _loaded(self, method: str) -> None:
        self._state.retelling.answer()
        self._end_loading()
        if not self._state.told_elsewhere:
            self._statuses.restored({"method": method})

    def _end_loading(self) -> None:
        # A message or a call that its history leaves open will not go on.
        if not self._state.turns:
            self._texts.close()
            self._tools.close()

    def _adopt(self, native_id: object) -> None:
        if isinstance(native_id, str) and native_id:
            self._state.native_session_id = native_id
