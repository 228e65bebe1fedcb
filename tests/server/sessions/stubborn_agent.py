"""An agent that ends no turn on "go" and ignores session/cancel.

It loses its session after "lose", after the tool call of "act and lose", and when it is sent "never". While
there is a file ``closed`` in the session's folder, it does not answer session/new.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def send(message: dict[str, Any]) -> None:
    """Write an envelope."""
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Answer the client."""
    lost = False
    for line in sys.stdin:
        message = json.loads(line)
        method = message.get("method")
        if method == "session/new":
            while (Path(message["params"]["cwd"]) / "closed").exists():
                time.sleep(0.01)
            send({"id": message["id"], "result": {"sessionId": f"stubborn-{os.getpid()}"}})
        elif method == "session/prompt" and (lost or message["params"]["prompt"][-1]["text"] == "never"):
            send({"id": message["id"], "error": "Session not found"})
        elif method == "session/prompt" and message["params"]["prompt"][-1]["text"] == "act and lose":
            call = {"sessionUpdate": "tool_call", "toolCallId": "c1", "title": "Pay", "status": "in_progress"}
            params = {"sessionId": message["params"]["sessionId"], "update": call}
            send({"method": "session/update", "params": params})
            send({"id": message["id"], "error": "Session not found"})
            lost = True
        elif method == "session/prompt":
            session, text = message["params"]["sessionId"], message["params"]["prompt"][-1]["text"]
            content = {"type": "text", "text": f"I got: {text}"}
            update = {"sessionUpdate": "agent_message_chunk", "content": content}
            send({"method": "session/update", "params": {"sessionId": session, "update": update}})
            lost = text == "lose"
            if text != "go":
                send({"id": message["id"], "result": {"stopReason": "end_turn"}})
        elif "id" in message:
            send({"id": message["id"], "result": {}})


main()
