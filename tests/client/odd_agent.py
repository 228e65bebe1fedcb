"""An ACP agent with the habits of real ones that the mock lacks; the prompt says which to show."""

from __future__ import annotations

import json
import sys
from typing import Any

# json.dumps writes it as the escape \\ud83d, as JavaScript does.
HALF = {"type": "text", "text": "\ud83d"}
OPTIONS = [{"optionId": "a", "name": "Always", "kind": "allow_always"}]
CHOICES = [{"name": "Default", "value": "default"}, {"name": "Plan", "value": "plan"}]
MODES = [{"name": "Default", "id": "default"}, {"name": "Plan", "id": "plan"}]
VALUES = {"options": CHOICES, "currentValue": "default"}
CONFIG = [
    {
        "id": name,
        "name": name,
        "category": name,
        "type": "select",
        "currentValue": "default",
        "options": CHOICES,
    }
    for name in ("model", "mode")
]
waiting: dict[str, Any] = {}
asked: dict[str, tuple[Any, str]] = {}
held: list[Any] = []
lost: set[str] = set()
sessions = 0


def send(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def update(session: str, **fields: Any) -> None:
    send({"method": "session/update", "params": {"sessionId": session, "update": fields}})


def say(session: str, text: str) -> None:
    update(session, sessionUpdate="agent_message_chunk", content={"type": "text", "text": text})


def prompt(request: dict[str, Any]) -> None:
    session = request["params"]["sessionId"]
    text = request["params"]["prompt"][-1]["text"]
    done = {"id": request["id"], "result": {"stopReason": "end_turn"}}
    if text == "blocks":
        say(session, json.dumps(request["params"]["prompt"]))
    elif text == "surrogate":
        params = {"sessionId": session, "update": {"sessionUpdate": "agent_message_chunk", "content": HALF}}
        send({"method": "session/update", "params": params})
    elif text == "fail":
        send(
            {
                "id": request["id"],
                "error": {"code": -32603, "message": "it broke", "data": {"why": "asked to"}},
            }
        )
        return
    elif text == "fail with a text":
        send({"id": request["id"], "error": "it broke"})
        return
    elif text == "ask without allowing":
        asked['"no"'] = (request["id"], session)
        options = [{"optionId": "n", "name": "No", "kind": "reject_once"}]
        params = {"sessionId": session, "toolCall": {"toolCallId": "t1"}, "options": options}
        send({"id": "no", "method": "session/request_permission", "params": params})
        return
    elif text == "act and lose this session":
        update(session, sessionUpdate="tool_call", toolCallId="c1", title="Pay", status="in_progress")
        lost.add(session)
        error = {"code": -32603, "message": "Internal error", "data": {"details": "Session not found"}}
        send({"id": request["id"], "error": error})
        return
    elif text == "end when cancelled":
        waiting["ends"] = done
        say(session, "begun")
        return
    elif text == "never end":
        say(session, "begun")
        return
    elif text.startswith("hold "):
        held.append(request["id"])
        if len(held) == int(text[5:]):
            for request_id in held:
                send({"id": request_id, "result": {"stopReason": "end_turn"}})
        return
    elif text.startswith("ask "):
        raw_id = json.loads(text[4:])
        asked[json.dumps(raw_id)] = (request["id"], session)
        call = {"toolCallId": "t1", "title": "Write"}
        params = {"sessionId": session, "toolCall": call, "options": OPTIONS}
        send({"id": raw_id, "method": "session/request_permission", "params": params})
        return
    elif text == "read a file":
        asked['"fs"'] = (request["id"], session)
        send({"id": "fs", "method": "fs/read_text_file", "params": {"sessionId": session, "path": "/x"}})
        return
    elif text.startswith("elicit"):  # whatever the client has announced; "elicit stranger": in a sub-agent
        asked['"elicit"'] = (request["id"], session)
        whose = "sub-4" if text.endswith("stranger") else session
        params = {"sessionId": whose, "message": "Well?", "requestedSchema": {"type": "object"}}
        send({"id": "elicit", "method": "elicitation/create", "params": params})
        return
    elif text == "stranger":
        asked['"stranger"'] = (request["id"], session)
        params = {"sessionId": "sub-2", "toolCall": {"toolCallId": "t1"}, "options": OPTIONS}
        send({"id": "stranger", "method": "session/request_permission", "params": params})
        return
    elif text.startswith("child of "):
        asked['"child"'] = (request["id"], session)
        meta = {"_meta": {"odd": {"parentSessionId": text.removeprefix("child of ")}}}
        params = {"sessionId": "sub-3", "toolCall": {"toolCallId": "t1"}, "options": OPTIONS, **meta}
        send({"id": "child", "method": "session/request_permission", "params": params})
        return
    elif text == "subagent":
        for _ in range(100):
            say("sub-1", "of no concern")
        say(session, "done")
    elif text == "lose this session":
        lost.add(session)
    elif text == "lose all sessions":
        lost.update(f"odd-{number}" for number in range(10_000))
    elif text == "unknown update":
        update(session, sessionUpdate="from_the_future", flux=1.21)
    send(done)


def answered(message: dict[str, Any]) -> None:
    request_id, session = asked.pop(json.dumps(message["id"]))
    say(session, json.dumps({key: message[key] for key in ("result", "error") if key in message}))
    send({"id": request_id, "result": {"stopReason": "end_turn"}})


def main() -> None:
    global sessions
    for line in sys.stdin:
        message = json.loads(line)
        method = message.get("method")
        if method is None:
            answered(message)
        elif method == "initialize":
            waiting["probe"] = message["params"]["clientInfo"]["name"] != "sandbox-agent-sdk"
            methods = [{"id": "browser", "name": "Browser"}, {"id": "anthropic-api-key", "name": "Key"}]
            send({"id": message["id"], "result": {"protocolVersion": 1, "authMethods": methods}})
        elif method == "authenticate":
            waiting["authenticated"] = message["params"]["methodId"]
            send({"id": message["id"], "error": {"code": -32000, "message": "no key"}})
        elif method == "session/new":
            sessions += 1
            session = f"odd-{sessions}"
            # Before the answer that says whose it is.
            say(session, f"early, authenticated with {waiting.get('authenticated')}")
            # An adapter of before config options; the catalogue, here played by itself, has them.
            extra = {"configOptions": CONFIG} if waiting["probe"] else {}
            if message["params"]["cwd"] == "/plan":
                extra = {"modes": {"currentModeId": "default", "availableModes": MODES}}
            answer = {"jsonrpc": "2.0", "id": message["id"], "result": {"sessionId": session, **extra}}
            sys.stdout.write(json.dumps(answer) + "\n")
            if "modes" in extra:
                # In one write with the answer.
                update(session, sessionUpdate="current_mode_update", currentModeId="plan")
            sys.stdout.flush()
        elif method == "session/prompt" and message["params"]["sessionId"] in lost:
            error = {"code": -32603, "message": "Internal error", "data": {"details": "Session not found"}}
            send({"id": message["id"], "error": error})
        elif method == "session/prompt":
            prompt(message)
        elif method == "session/set_config_option":
            send({"id": message["id"], "result": None})
        elif method == "session/cancel" and "ends" in waiting:
            send(waiting.pop("ends"))  # as Goose does: as if nothing had happened
        elif "id" in message:
            send({"id": message["id"], "error": {"code": -32601, "message": f"no {method}"}})


main()
