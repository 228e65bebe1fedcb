"""An ACP agent that runs each prompt in a shell and says what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

JsonObject = dict[str, Any]


def send(message: JsonObject) -> None:
    """Send a message to the client."""
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


def answer(method: str, params: JsonObject) -> JsonObject:
    """Return the result of a request."""
    if method == "initialize":
        return {"protocolVersion": 1, "agentCapabilities": {}}
    if method == "session/new":
        return {"sessionId": "shell"}
    command = params["prompt"][-1]["text"]
    done = subprocess.run(["sh", "-c", command], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    content = {"type": "text", "text": f"{done.stdout}{done.stderr}[{done.returncode}]"}
    update = {"sessionUpdate": "agent_message_chunk", "content": content}
    send({"method": "session/update", "params": {"sessionId": "shell", "update": update}})
    return {"stopReason": "end_turn"}


def main() -> None:
    """Answer the client."""
    for line in sys.stdin:
        request = json.loads(line)
        if "id" in request and "method" in request:
            send({"id": request["id"], "result": answer(request["method"], request["params"])})


if __name__ == "__main__":
    main()
