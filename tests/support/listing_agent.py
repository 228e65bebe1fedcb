"""An ACP agent that reports modes and models and no config options of theirs, as Gemini and Hermes do.

It appends its start and every prompt, with the settings, to the file that it is started with. With the second
argument "silent" it reports nothing at all, and takes any model, as Copilot does; with "option" it has
its mode as the option "how", too.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

JsonObject = dict[str, Any]

MODELS = [{"modelId": name, "name": name.upper()} for name in ("m1", "m2")]
MODES = [{"id": name, "name": name} for name in ("default", "plan", "yolo")]


def main() -> None:
    """Answer the client."""
    log, is_silent, has_option = Path(sys.argv[1]), sys.argv[2:] == ["silent"], sys.argv[2:] == ["option"]
    state: JsonObject = {"model": "m1", "mode": "default", "fast": False}

    def note(text: str) -> None:
        with log.open("a") as file:
            file.write(text + "\n")

    def options() -> list[JsonObject]:
        found: list[JsonObject] = [
            {"id": "fast", "name": "Fast", "type": "boolean", "currentValue": state["fast"]}
        ]
        if has_option:
            choices = [{"value": mode["id"], "name": mode["id"]} for mode in MODES]
            how = {"id": "how", "name": "How", "category": "mode", "type": "select", "options": choices}
            found.append({**how, "currentValue": state["mode"]})
        return found

    def answer(method: str, params: JsonObject) -> JsonObject:
        opened = (
            {}
            if is_silent
            else {
                "models": {"currentModelId": state["model"], "availableModels": MODELS},
                "modes": {"currentModeId": state["mode"], "availableModes": MODES},
                "configOptions": options(),
            }
        )
        if method == "initialize":
            note(f"client {params['clientInfo']['name']} {sorted(params['clientCapabilities'])}")
            return {"protocolVersion": 1, "agentCapabilities": {"loadSession": True}}
        if method == "session/new":
            return {"sessionId": f"listing-{os.getpid()}", **opened}
        if method == "session/load":
            return opened
        if method == "session/set_model":
            state["model"] = params["modelId"]
        elif method == "session/set_mode":
            state["mode"] = params["modeId"]
        elif method == "session/set_config_option":
            assert params["type"] == "boolean"
            state[params["configId"]] = params["value"]
            return {"configOptions": options()}
        elif method == "session/prompt":
            note(f"prompt {state['model']} {state['mode']} {state['fast']}")
            return {"stopReason": "end_turn"}
        return {}

    note(f"start {os.getpid()}")
    for line in sys.stdin:
        message = json.loads(line)
        if "id" in message:
            result = answer(message["method"], message.get("params") or {})
            sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}) + "\n")
            sys.stdout.flush()


main()
