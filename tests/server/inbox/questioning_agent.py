"""An agent that asks a question in each turn and says what was answered."""

from __future__ import annotations

import json
import sys
from typing import Any

FORM: dict[str, Any] = {
    "sessionId": "x",
    "message": "Which colour?",
    "requestedSchema": {
        "type": "object",
        "properties": {"colour": {"type": "string", "oneOf": [{"const": "#f00", "title": "Red"}]}},
        "required": ["colour"],
    },
}


def send(message: dict[str, Any]) -> None:
    """Write an envelope."""
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Answer the client."""
    prompt: Any = None
    for line in sys.stdin:
        message = json.loads(line)
        method = message.get("method")
        if method == "session/new":
            send({"id": message["id"], "result": {"sessionId": "x"}})
        elif method == "session/prompt":
            prompt = message["id"]
            send({"id": 0, "method": "elicitation/create", "params": FORM})
        elif method is None:
            text = json.dumps(message.get("result"))
            update = {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": text}}
            send({"method": "session/update", "params": {"sessionId": "x", "update": update}})
            send({"id": prompt, "result": {"stopReason": "end_turn"}})
        elif "id" in message:
            send({"id": message["id"], "result": {}})


main()
