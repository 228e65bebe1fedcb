"""An ACP agent that writes updates at a steady rate, each with the time at which it was written.

A prompt ``COUNT RATE`` makes COUNT text chunks, RATE a second; their text is ``@<nanoseconds>@`` of the
monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

__all__: list[str] = []


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def _tick(session_id: str, count: int, rate: float) -> None:
    begun = time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, begun + number / rate - time.monotonic()))
        text = f"@{time.monotonic_ns()}@"
        update = {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": text}}
        _say({"method": "session/update", "params": {"sessionId": session_id, "update": update}})


def _main() -> None:
    for line in sys.stdin:
        message = json.loads(line)
        method, request_id = message.get("method"), message.get("id")
        result: dict[str, Any] = {}
        if method == "initialize":
            result = {"protocolVersion": 1, "agentCapabilities": {}}
        elif method == "session/new":
            result = {"sessionId": "clock"}
        elif method == "session/prompt":
            count, rate = message["params"]["prompt"][0]["text"].split()
            _tick(message["params"]["sessionId"], int(count), float(rate))
            result = {"stopReason": "end_turn"}
        if request_id is not None:
            _say({"id": request_id, "result": result})


if __name__ == "__main__":
    _main()
