"""An agent that lists its commands, half a megabyte of them, whenever it creates or loads a session."""

from __future__ import annotations

import json
import sys
from typing import Any

COMMANDS = [
    {"name": f"command-{number}", "description": f"does what command {number} does " * 80}
    for number in range(250)
]
UPDATE = {"sessionUpdate": "available_commands_update", "availableCommands": COMMANDS}


def send(message: dict[str, Any]) -> None:
    """Write an envelope."""
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Answer the client."""
    for line in sys.stdin:
        message = json.loads(line)
        result: dict[str, Any] = {}
        match message.get("method"):
            case "initialize":
                result = {"protocolVersion": 1, "agentCapabilities": {"loadSession": True}}
            case "session/new" | "session/load":
                send({"method": "session/update", "params": {"sessionId": "x", "update": UPDATE}})
                result = {"sessionId": "x"} if message["method"] == "session/new" else {}
            case "session/prompt":
                result = {"stopReason": "end_turn"}
            case _:
                pass
        if "id" in message:
            send({"id": message["id"], "result": result})


if __name__ == "__main__":
    main()
