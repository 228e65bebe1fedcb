"""An ACP agent that stops for the reason that the prompt names, or ignores being cancelled."""

from __future__ import annotations

import json
import sys
from typing import Any


def write(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    update = {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": text}}
    write({"method": "session/update", "params": {"sessionId": "s", "update": update}})


for line in sys.stdin:
    message = json.loads(line)
    method, request_id = message.get("method"), message.get("id")
    if method == "initialize":
        write({"id": request_id, "result": {"protocolVersion": 1, "agentCapabilities": {}}})
    elif method == "session/new":
        write({"id": request_id, "result": {"sessionId": "s"}})
    elif method == "session/prompt":
        word = message["params"]["prompt"][-1]["text"]
        say({"escape": "\x1b]0;owned\x07red\n"}.get(word, f"{word}\n"))
        if word != "deaf":
            write({"id": request_id, "result": {"stopReason": "end_turn" if word == "escape" else word}})
