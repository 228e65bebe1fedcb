"""The commands: what agents can send, and how they can put load on the client or misbehave."""

from __future__ import annotations

import os
import sys
import time

from sandbox_agent.agents.mock.peer import INVALID_PARAMS, RpcError, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sandbox_agent.agents.mock.turn import Turn

    JsonObject = dict[str, Any]
    Command = Callable[[Turn, str], None]

_MARKDOWN = """\
# Mock agent

Some **bold**, some *italic*, some `code` and a [link](https://agentclientprotocol.com).

1. one
2. two
   - nested

| column | value |
|---|---|
| a | 1 |

```python
print("héllo, wörld 👋")
```
"""
_PERMISSION_OPTIONS = [
    {"optionId": "allow_once", "name": "Allow", "kind": "allow_once"},
    {"optionId": "allow_always", "name": "Always allow", "kind": "allow_always"},
    {"optionId": "reject_once", "name": "Reject", "kind": "reject_once"},
]
# Bytes per write. A write blocks until it is in the pipe, and cancellation is checked between writes.
_BATCH_BYTES = 256 * 1024
# A spawned child exits by itself after this many seconds.
_LIFETIME = 600
_OLD, _NEW = "hello\n", "hello, world\n"


def run(turn: Turn, command: str) -> None:
    """Run the command that the first word names. Any other text is echoed."""
    name, _, rest = command.strip().partition(" ")
    known = COMMANDS.get(name.lower())
    if known is None:
        turn.say(f"You said: {command}")
    else:
        known[0](turn, rest.strip())


def _help(turn: Turn, _rest: str) -> None:
    commands = [{"name": name, "description": text} for name, (_, text) in COMMANDS.items()]
    turn.update("available_commands_update", keep=False, availableCommands=commands)
    lines = [f"- `{name}`: {text}" for name, (_, text) in COMMANDS.items()]
    turn.say("I am the mock agent. The first word of a prompt is a command:\n\n" + "\n".join(lines) + "\n")


def _echo(turn: Turn, rest: str) -> None:
    turn.say(rest)


def _markdown(turn: Turn, _rest: str) -> None:
    turn.say(_MARKDOWN)


def _thought(turn: Turn, rest: str) -> None:
    turn.say(rest or "I wonder what the user wants of me.", "agent_thought_chunk")
    turn.next_message()
    turn.say("I have thought about it.")


def _plan(turn: Turn, _rest: str) -> None:
    steps = ["Read the request", "Pretend to work", "Say that it is done"]
    for done in range(len(steps) + 1):
        entries = [
            {
                "content": step,
                "priority": "high" if index == 0 else "medium",
                "status": "completed" if index < done else "in_progress" if index == done else "pending",
            }
            for index, step in enumerate(steps)
        ]
        turn.update("plan", keep=done == len(steps), entries=entries)
    turn.say("The plan is done.")


def _usage(turn: Turn, _rest: str) -> None:
    cost = {"amount": 0.0125, "currency": "USD"}
    turn.update("usage_update", keep=False, used=1234, size=200_000, cost=cost)
    turn.usage = {
        "inputTokens": 1000,
        "outputTokens": 234,
        "cachedReadTokens": 0,
        "cachedWriteTokens": 0,
        "totalTokens": 1234,
    }
    turn.say("That took 1,234 tokens.")


def _title(turn: Turn, rest: str) -> None:
    title = rest or "Mock session"
    turn.session.apply({"title": title})
    turn.update("session_info_update", keep=False, title=title, updatedAt=turn.session.updated_at)
    turn.say(f"This session is now called {title!r}.")


def _tool(turn: Turn, _rest: str) -> None:
    call = _start(turn, "Read hello.txt", "read", {"path": _path(turn)})["toolCallId"]
    turn.update("tool_call_update", keep=False, toolCallId=call, status="in_progress")
    _finish(
        turn,
        call,
        "completed",
        content=[
            {"type": "content", "content": {"type": "text", "text": "1 line changed"}},
            {"type": "diff", "path": _path(turn), "oldText": _OLD, "newText": _NEW},
        ],
        locations=[{"path": _path(turn), "line": 1}],
        rawOutput={"changed": 1},
    )
    turn.next_message()
    turn.say("The tool is done.")


def _permission(turn: Turn, rest: str) -> None:
    """Send the given number of permission requests at once and finish each tool call by its answer."""
    count = int(rest) if rest.isdigit() else 1
    raw_input = {"path": _path(turn), "content": _NEW}
    diff = {"type": "diff", "path": _path(turn), "oldText": _OLD, "newText": _NEW}
    calls = [_start(turn, "Write hello.txt", "edit", raw_input, [diff]) for _ in range(count)]
    requests: list[JsonObject] = [{"toolCall": call, "options": _PERMISSION_OPTIONS} for call in calls]
    responses = turn.ask("session/request_permission", requests)
    turn.next_message()
    for call, response in zip(calls, responses, strict=True):
        _conclude(turn, call["toolCallId"], response)


def _conclude(turn: Turn, call: str, response: JsonObject) -> None:
    option = _selected(response)
    if option is not None and option.startswith("allow"):
        turn.update("tool_call_update", keep=False, toolCallId=call, status="in_progress")
        _finish(turn, call, "completed", rawOutput="written")
        turn.say(f"Permission granted ({option}): hello.txt is written.\n")
    else:
        why = "rejected" if option is not None else "refused" if "error" in response else "cancelled"
        text = {"type": "text", "text": f"Permission {why}"}
        _finish(turn, call, "failed", content=[{"type": "content", "content": text}])
        turn.say(f"Permission {why} ({option or 'no option'}): hello.txt is not written.\n")


def _selected(response: JsonObject) -> str | None:
    try:
        outcome = response["result"]["outcome"]
        return str(outcome["optionId"]) if outcome["outcome"] == "selected" else None
    except (KeyError, TypeError):
        return None


def _demo(turn: Turn, _rest: str) -> None:
    turn.say("Here is what an agent can say: text, and next a thought, a plan, a tool call, markdown.\n")
    for command in (_thought, _plan, _permission, _markdown, _usage, _title):
        turn.next_message()
        command(turn, "")


def _start(
    turn: Turn, title: str, kind: str, raw_input: JsonObject, content: list[JsonObject] | None = None
) -> JsonObject:
    call: JsonObject = {
        "toolCallId": turn.tool_call_id(),
        "title": title,
        "kind": kind,
        "status": "pending",
        "rawInput": raw_input,
        "content": content or [],
        "locations": [{"path": raw_input["path"]}],
    }
    turn.update("tool_call", **call)
    return call


def _finish(turn: Turn, call: str, status: str, **fields: Any) -> None:
    turn.update("tool_call_update", toolCallId=call, status=status, **fields)


def _path(turn: Turn) -> str:
    return turn.session.cwd.rstrip("/") + "/hello.txt"


# Load and misbehavior.


def _parse_numbers(rest: str, usage: str, count: int) -> list[float]:
    words = rest.split()
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if len(numbers) != count or not all(0 <= number < float("inf") for number in numbers):
        raise RpcError(INVALID_PARAMS, f"Invalid params: expected the prompt `{usage}`")
    return numbers


def _burst(turn: Turn, rest: str) -> None:
    count, size = (int(number) for number in _parse_numbers(rest, "burst N SIZE", 2))
    before, after = turn.template()
    filler = b"x" * size
    batch = max(1, _BATCH_BYTES // (len(before) + len(after) + size))
    for start in range(1, count + 1, batch):
        turn.check()
        stop = min(start + batch, count + 1)
        heads = [b"%06d " % number for number in range(start, stop)]
        texts = [head + filler[len(head) :] for head in heads]
        turn.peer.write(before + (after + before).join(texts) + after)


def _stream(turn: Turn, rest: str) -> None:
    count, interval = _parse_numbers(rest, "stream N MS", 2)
    begin = time.monotonic()
    for number in range(1, int(count) + 1):
        turn.chunk(f"{number:06d} ")
        turn.sleep(max(0.0, begin + number * interval / 1000 - time.monotonic()))
    turn.keep_text(f"I streamed {int(count)} chunks.")


def _sleep(turn: Turn, rest: str) -> None:
    (seconds,) = _parse_numbers(rest, "sleep S", 1)
    turn.sleep(seconds)
    turn.say(f"I slept {seconds:g} s.")


def _stall(turn: Turn, _rest: str) -> None:
    turn.cancelled.wait()
    turn.check()


def _die(turn: Turn, rest: str) -> None:
    code = int(_parse_numbers(rest or "1", "die CODE", 1)[0])
    turn.chunk("I am about to die.")
    sys.stderr.write(f"mock: dying with code {code}, as the prompt asked\n")
    sys.stderr.flush()
    os._exit(code & 0xFF)


def _deaf(turn: Turn, _rest: str) -> None:
    turn.peer.deaf = True
    turn.say("I no longer listen to SIGTERM or the end of stdin.")


def _spawn(turn: Turn, rest: str) -> None:
    import subprocess

    # The child inherits stdout and stderr, so the pipes stay open after the agent exits.
    script = f"trap '' TERM; exec sleep {_LIFETIME}" if rest == "deaf" else f"exec sleep {_LIFETIME}"
    child = subprocess.Popen(["/bin/sh", "-c", script], stdin=subprocess.DEVNULL)  # noqa: S603 - fixed
    turn.say(f"I started process {child.pid} in my process group.")


def _allocate(turn: Turn, rest: str) -> None:
    (mebibytes,) = _parse_numbers(rest, "allocate MIB", 1)
    turn.held = b"x" * (int(mebibytes) << 20)
    turn.say(f"I hold {int(mebibytes)} MiB until the turn is cancelled.")
    turn.cancelled.wait()


def _garbage(turn: Turn, _rest: str) -> None:
    before, after = turn.template()
    turn.peer.write(b"this line is not JSON\n")
    turn.peer.write(b'{"jsonrpc":"2.0","method":"session/update","params":{"unfinished":\n')
    turn.peer.write(b'{"jsonrpc":"2.0","method":"_mock/noise","params":{"text":"\xff\xfe\x80"}}\n')
    turn.peer.write(b"\n")
    turn.peer.write(before + b"CRLF " + after[:-1] + b"\r\n")
    half = len(before) // 2
    turn.peer.write_parts([before[:half], before[half:] + b"half ", after], turn.cancelled)
    turn.say("That was garbage.")


def _ask_extension(turn: Turn, _rest: str) -> None:
    question = {"question": "Which colour?", "options": ["red", "blue"]}
    (response,) = turn.ask("_mock/question", [question])
    if "error" in response:
        turn.say(f"The client refused: {encode(response['error']).decode()}")
    else:
        turn.say(f"The client answered: {encode(response.get('result')).decode()}")


_QUESTION_FORM: JsonObject = {
    "type": "object",
    "properties": {
        "color": {
            "type": "string",
            "title": "Color",
            "oneOf": [
                {"const": "#f00", "title": "Red", "description": "like a rose"},
                {"const": "#00f", "title": "Blue", "description": "like the sky"},
            ],
        },
        "sizes": {
            "type": "array",
            "title": "Sizes",
            "items": {"type": "string", "anyOf": [{"const": size, "title": size} for size in "SML"]},
        },
        "note": {"type": "string", "title": "Note", "description": "Anything else (optional)."},
    },
    "required": ["color"],
}


def _question(turn: Turn, _rest: str) -> None:
    if "form" not in (turn.peer.client_capabilities.get("elicitation") or {}):
        turn.say("I have a question, but the client does not answer questions.")
        return
    form = {"mode": "form", "message": "What shall I paint?", "requestedSchema": _QUESTION_FORM}
    (response,) = turn.ask("elicitation/create", [form])
    answer = response.get("error") or response.get("result")
    turn.say(f"The user answered: {encode(answer).decode()}")


COMMANDS: dict[str, tuple[Command, str]] = {
    "help": (_help, "this list"),
    "demo": (_demo, "text, thought, plan, tool call with a permission, markdown, usage, title"),
    "echo": (_echo, "TEXT, said back"),
    "markdown": (_markdown, "a text with headings, a list, a table and code"),
    "tool": (_tool, "a tool call that reads and shows a diff"),
    "permission": (_permission, "[N] tool calls that ask first, all at once"),
    "question": (_question, "asks the user something, if the client answers questions"),
    "plan": (_plan, "a plan whose entries are completed one by one"),
    "thought": (_thought, "[TEXT] a thought"),
    "usage": (_usage, "tokens, context size and cost"),
    "title": (_title, "[TEXT] names the session"),
    "burst": (_burst, "N SIZE: N chunks of SIZE bytes, numbered, as fast as they are read"),
    "stream": (_stream, "N MS: N chunks, one each MS milliseconds"),
    "sleep": (_sleep, "S: waits S seconds"),
    "stall": (_stall, "never answers; cancel it"),
    "die": (_die, "CODE: exits in the middle of the turn"),
    "deaf": (_deaf, "ignores SIGTERM and the end of stdin from now on"),
    "spawn": (_spawn, "[deaf] starts a child that outlives the agent; a deaf one ignores SIGTERM"),
    "allocate": (_allocate, "MIB: holds that much memory; cancel it"),
    "garbage": (_garbage, "lines that are no JSON or no UTF-8, an empty one, CRLF, and one in two halves"),
    "ask-extension": (_ask_extension, "asks the client something that ACP doesn't know"),
}
