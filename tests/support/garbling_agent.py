"""An ACP agent that answers each prompt with the bytes that the prompt's text says.

The text is Latin-1, so that it can name any byte. ``ID`` in it stands for the id of the prompt, ``SESSION``
for the id of the session. Text in front of the prompt, such as a replay, is ignored. The request ``silence``
is not answered.
"""

from __future__ import annotations

import itertools
import json
import sys
from typing import Any

numbers = itertools.count(1)


def send(data: bytes) -> None:
    sys.stdout.buffer.write(data + b"\n")
    sys.stdout.buffer.flush()


def answer(request: dict[str, Any]) -> bytes:
    params: dict[str, Any] = request["params"]
    if request["method"] == "session/prompt":
        text: str = params["prompt"][-1]["text"]
        text = text.replace("ID", json.dumps(request["id"])).replace("SESSION", params["sessionId"])
        return text.encode("latin-1")
    opened = {"sessionId": f"garbled-{next(numbers)}"} if request["method"] == "session/new" else {}
    result = {"protocolVersion": 1, **opened}
    return json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}).encode()


for received in sys.stdin:
    message = json.loads(received)
    if "id" in message and message.get("method") not in {None, "silence"}:
        send(answer(message))
