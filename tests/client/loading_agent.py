"""An ACP agent that keeps its sessions in a folder and opens them again in the ways of real ones.

Its arguments are the folder, and how it behaves there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FOLDER, HABIT = Path(sys.argv[1]), sys.argv[2]
CHOICES = [{"name": "Default", "value": "default"}, {"name": "Plan", "value": "plan"}]
NOT_FOUND, UNKNOWN, INTERNAL = -32002, -32601, -32603
settings = {"model": "default", "mode": "default"}


def send(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def update(session: str, kind: str, **fields: Any) -> None:
    send(
        {
            "method": "session/update",
            "params": {"sessionId": session, "update": {"sessionUpdate": kind, **fields}},
        }
    )


def say(session: str, kind: str, text: str) -> None:
    update(session, kind, content={"type": "text", "text": text})


def state() -> dict[str, Any]:
    if HABIT == "silent":
        return {}
    names = ["model", "mode"]
    options = [
        {
            "id": name,
            "name": name,
            "category": name,
            "type": "select",
            "currentValue": settings[name],
            "options": CHOICES,
        }
        for name in names
    ]
    return {"configOptions": options}


def path(session: str) -> Path:
    return FOLDER / f"{session}.jsonl"


def keep(session: str, kind: str, text: str) -> None:
    with path(session).open("a") as file:
        file.write(json.dumps([kind, text]) + "\n")


def refuse(request: dict[str, Any], code: int) -> None:
    send({"id": request["id"], "error": {"code": code, "message": f"{HABIT}: {request['method']}"}})


def new(request: dict[str, Any]) -> None:
    if HABIT == "dies at once":
        sys.exit(7)
    session = f"kept-{len(list(FOLDER.iterdir()))}"
    path(session).touch()
    send({"id": request["id"], "result": {"sessionId": session, **state()}})


def load(request: dict[str, Any]) -> None:
    session = request["params"]["sessionId"]
    if HABIT == "hangs":
        return
    if HABIT == "dies":
        sys.exit(7)
    if HABIT == "fails":
        refuse(request, INTERNAL)
        return
    if not path(session).exists():
        refuse(request, NOT_FOUND)
        return
    lines = [json.loads(line) for line in path(session).read_text().splitlines()]
    told = [(kind, "something else" if HABIT == "differs" else text) for kind, text in lines]
    early = told[:1] if HABIT == "late" else told
    update(session, "usage_update", used=1, size=10)
    if HABIT == "asks":
        params: dict[str, Any] = {"sessionId": session, "toolCall": {"toolCallId": "t"}, "options": []}
        send({"id": "old", "method": "session/request_permission", "params": params})
    for kind, text in early:
        say(session, kind, text)
    answer = json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": state()}) + "\n"
    rest = "".join(
        json.dumps(
            {
                "jsonrpc": "2.0",
                "method": "session/update",
                "params": {
                    "sessionId": session,
                    "update": {"sessionUpdate": kind, "content": {"type": "text", "text": text}},
                },
            }
        )
        + "\n"
        for kind, text in told[len(early) :]
    )
    sys.stdout.write(answer + rest)
    sys.stdout.flush()
    update(session, "available_commands_update", availableCommands=[])


def prompt(request: dict[str, Any]) -> None:
    session = request["params"]["sessionId"]
    blocks = request["params"]["prompt"]
    for block in blocks:
        keep(session, "user_message_chunk", block["text"])
    text = blocks[-1]["text"]
    if text == "die":
        sys.exit(3)
    answer = json.dumps([block["text"] for block in blocks]) if text == "blocks" else f"You said {text}."
    for start in range(0, len(answer), 7):
        say(session, "agent_message_chunk", answer[start : start + 7])
    keep(session, "agent_message_chunk", answer)
    send({"id": request["id"], "result": {"stopReason": "end_turn"}})


def initialize(request: dict[str, Any]) -> None:
    capabilities: dict[str, Any] = {"loadSession": True}
    if HABIT == "resume unknown":
        capabilities["sessionCapabilities"] = {"resume": {}}
    send({"id": request["id"], "result": {"protocolVersion": 1, "agentCapabilities": capabilities}})


def set_option(request: dict[str, Any]) -> None:
    params = request["params"]
    settings[params["configId"]] = params["value"]
    send({"id": request["id"], "result": state()})


METHODS = {
    "initialize": initialize,
    "session/new": new,
    "session/load": load,
    "session/prompt": prompt,
    "session/set_config_option": set_option,
}

FOLDER.mkdir(exist_ok=True)
for line in sys.stdin:
    message = json.loads(line)
    method = METHODS.get(message.get("method", ""))
    if method is not None:
        method(message)
    elif "method" in message and "id" in message:
        refuse(message, UNKNOWN)
