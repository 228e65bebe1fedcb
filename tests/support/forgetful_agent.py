"""An ACP agent whose process starts with its own mode and model, whatever the session was set to before.

It runs in process (``ForgetfulAgent``) or on stdin and stdout (``forgetful_agent.py LOG HABIT``).
In mode "auto" it acts without asking; each prompt that reaches it is a line of its log. The prompt
"ask KIND OPTION..." makes it request a permission for that kind of tool, with options of those kinds.

What it does after ``session/resume`` or ``session/load`` is its habit:

========================  =============================================================================
"answers default"         the response has its own defaults
"answers nothing"         the response says nothing about settings
"answers late"            the response says nothing; the defaults are reported a moment later
"answers slowly"          each set request is answered a moment later
"updates"                 the response has the defaults, and each set request is followed by an update
"ignores"                 set requests succeed, change nothing, and a report after the response says so
"reverts"                 set requests succeed, and then the agent goes back to its defaults
"errors"                  set requests fail
"hangs"                   set requests are never answered
"modes of claude"         its modes are those of Claude Code
"warns"                   the response has its own defaults, and the agent prints a warning before it
========================  =============================================================================
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["COMPLIANT", "HABITS", "LATE_SECONDS", "REFUSING", "ForgetfulAgent"]

JsonObject = dict[str, Any]
COMPLIANT = ("answers default", "answers nothing", "answers late", "answers slowly", "updates")
REFUSING = ("ignores", "reverts", "errors", "hangs")
HABITS = (*COMPLIANT, *REFUSING)
LATE_SECONDS = 0.01
_CLAUDE = ["auto", "default", "acceptEdits", "plan"]
_VALUES = {
    "mode": ["auto", "ask"],
    "model": ["small", "big"],
    "thought_level": ["low", "high"],
    "color": ["red", "blue"],
}


class ForgetfulAgent:
    """One process of the agent.

    Args:
        habit: how it behaves after it has opened a session again.
        prompted: called with its settings when a prompt arrives.
        send: sends a message to the client.
        later: calls a function a moment later.
    """

    def __init__(
        self,
        habit: str,
        prompted: Callable[[JsonObject], None],
        send: Callable[[JsonObject], None],
        later: Callable[[Callable[[], None]], object],
    ) -> None:
        self._values = {**_VALUES, "mode": _CLAUDE} if habit == "modes of claude" else _VALUES
        self._settings = {name: values[0] for name, values in self._values.items()}
        self._chosen_habit = habit
        self._habit = ""
        self._prompted = prompted
        self._send = send
        self._later = later
        self._asking: str | None = None
        self._prompt: object = None
        self.outcomes: list[str] = []

    def receive(self, message: JsonObject) -> None:
        """Handle a message of the client's."""
        method, request_id = message.get("method"), message.get("id")
        if request_id is not None and request_id == self._asking:
            self._asking = None
            self.outcomes.append(message["result"]["outcome"].get("optionId", "cancelled"))
            self._answer(self._prompt, {"stopReason": "end_turn"})
            return
        if method is None or request_id is None:
            return
        params: JsonObject = message.get("params") or {}
        if method == "initialize":
            capabilities: JsonObject = {"loadSession": True, "sessionCapabilities": {"resume": {}}}
            self._answer(request_id, {"protocolVersion": 1, "agentCapabilities": capabilities})
        elif method == "session/new":
            self._answer(request_id, {"sessionId": "n", **self._state()})
        elif method in ("session/resume", "session/load"):
            self._open(request_id)
        elif method == "session/prompt":
            self._prompted({**self._settings, "blocks": params["prompt"]})
            if params["prompt"][-1]["text"] == "leave the mode":
                self._settings["mode"] = "auto"
                self._update("current_mode_update", currentModeId="auto")
            text = params["prompt"][-1]["text"]
            if text.startswith("ask "):
                self._ask(request_id, text.split()[1], text.split()[2:])
                return
            self._update("agent_message_chunk", content={"type": "text", "text": "done"})
            self._answer(request_id, {"stopReason": "end_turn"})
        elif method == "session/set_mode":
            self._set(request_id, "mode", params["modeId"], {})
        elif method == "session/set_config_option":
            self._set(request_id, params["configId"], params["value"], None)
        else:
            self._send({"id": request_id, "error": {"code": -32601, "message": "unknown"}})

    def _ask(self, prompt: object, kind: str, options: list[str]) -> None:
        self._prompt, self._asking = prompt, f"asking-{len(self.outcomes)}"
        params = {
            "sessionId": "n",
            "toolCall": {"toolCallId": "t", "title": "Do it", "kind": kind},
            "options": [{"optionId": option, "name": option, "kind": option} for option in options],
        }
        self._send({"id": self._asking, "method": "session/request_permission", "params": params})

    def _open(self, request_id: object) -> None:
        self._habit = self._chosen_habit
        if self._habit in ("answers nothing", "answers late"):
            self._answer(request_id, {})
            if self._habit == "answers late":
                self._report()
            return
        if self._habit == "warns":
            self._update("agent_message_chunk", content={"type": "text", "text": "Warning: old model."})
        self._answer(request_id, self._state())

    def _set(self, request_id: object, name: str, value: str, result: JsonObject | None) -> None:
        habit = self._habit
        if habit == "hangs":
            return
        if habit == "errors":
            self._send({"id": request_id, "error": {"code": -32603, "message": "not now"}})
            return
        if habit == "ignores":
            self._answer(request_id, {"configOptions": self._options()} if result is None else result)
            self._report()
            return
        self._settings[name] = value
        answer = {"configOptions": self._options()} if result is None else result
        if habit == "answers slowly":
            self._later(lambda: self._answer(request_id, answer))
            return
        self._answer(request_id, answer)
        if habit == "updates":
            self._report()
        elif habit == "reverts":
            self._revert()

    def _revert(self) -> None:
        self._settings = {name: values[0] for name, values in self._values.items()}
        self._report()

    def _answer(self, request_id: object, result: JsonObject) -> None:
        self._send({"id": request_id, "result": result})

    def _update(self, kind: str, **fields: object) -> None:
        update = {"sessionUpdate": kind, **fields}
        self._send({"method": "session/update", "params": {"sessionId": "n", "update": update}})

    def _report(self) -> None:
        self._update("current_mode_update", currentModeId=self._settings["mode"])
        self._update("config_option_update", configOptions=self._options())

    def _options(self) -> list[JsonObject]:
        return [
            {
                "id": name,
                "name": name,
                "type": "select",
                "currentValue": self._settings[name],
                "options": [{"value": value, "name": value} for value in values],
                **({} if name == "color" else {"category": name}),
            }
            for name, values in self._values.items()
        ]

    def _state(self) -> JsonObject:
        available = [{"id": mode, "name": mode} for mode in self._values["mode"]]
        modes = {"currentModeId": self._settings["mode"], "availableModes": available}
        return {"modes": modes, "configOptions": self._options()}


def _main() -> None:
    log, habit = Path(sys.argv[1]), sys.argv[2]
    lock = threading.Lock()

    def send(message: JsonObject) -> None:
        with lock:
            sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
            sys.stdout.flush()

    def later(action: Callable[[], None]) -> None:
        threading.Timer(LATE_SECONDS, action).start()

    def prompted(entry: JsonObject) -> None:
        with log.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        if entry["mode"] == "auto":
            log.with_suffix(".written").write_text("written without asking")

    agent = ForgetfulAgent(habit, prompted, send, later)
    for line in sys.stdin:
        agent.receive(json.loads(line))


if __name__ == "__main__":
    _main()
