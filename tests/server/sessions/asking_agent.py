"""An agent that asks its client for more than the mock does; the prompt says what."""

from __future__ import annotations

import json
import sys
from typing import Any

OPTIONS = [{"optionId": "a", "name": "Allow", "kind": "allow_once"}]
PERMISSION: dict[str, Any] = {"options": OPTIONS, "toolCall": {}}


def send(message: dict[str, Any]) -> None:
    """Write an envelope."""
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """Say something in the session."""
    update = {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": text}}
    send({"method": "session/update", "params": {"sessionId": "x", "update": update}})


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
            if message["params"]["prompt"][-1]["text"] == "read":
                params = {"sessionId": "x", "path": "/etc/hosts"}
                send({"id": "fs", "method": "fs/read_text_file", "params": params})
            else:
                say("working")
        elif method == "session/cancel":
            # it had asked before it heard of the cancellation
            params: dict[str, Any] = {"sessionId": "x", **PERMISSION}
            send({"id": 7, "method": "session/request_permission", "params": params})
        elif method is None:
            say(json.dumps(message.get("error") or message.get("result")))
            send({"id": prompt, "result": {"stopReason": "end_turn"}})
        else:
            send({"id": message["id"], "result": {}})


main()
