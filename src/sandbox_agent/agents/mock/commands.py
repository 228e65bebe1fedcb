"""Commands that show what agents can send. Each runs a turn like those of real agents."""

from __future__ import annotations

from sandbox_agent.agents.mock.faults import FAULTS

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
    turn.session.set_title(title)
    turn.update("session_info_update", keep=False, title=title, updatedAt=turn.session.updated_at)
    turn.say(f"This session is now called {title!r}.")


def _tool(turn: Turn, _rest: str) -> None:
    call = _start(turn, "Read hello.txt", "read", {"path": _path(turn)})
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
    diff = {"type": "diff", "path": _path(turn), "oldText": _OLD, "newText": _NEW}
    calls = [
        _start(turn, "Write hello.txt", "edit", {"path": _path(turn), "content": _NEW}, [diff])
        for _ in range(count)
    ]
    requests: list[JsonObject] = [
        {
            "toolCall": {
                "toolCallId": call,
                "title": "Write hello.txt",
                "kind": "edit",
                "status": "pending",
                "rawInput": {"path": _path(turn), "content": _NEW},
                "content": [diff],
                "locations": [{"path": _path(turn)}],
            },
            "options": _PERMISSION_OPTIONS,
        }
        for call in calls
    ]
    responses = turn.ask("session/request_permission", requests)
    turn.next_message()
    for call, response in zip(calls, responses, strict=True):
        _conclude(turn, call, response)


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
) -> str:
    call = turn.tool_call_id()
    locations = [{"path": raw_input["path"]}]
    turn.update(
        "tool_call",
        toolCallId=call,
        title=title,
        kind=kind,
        status="pending",
        rawInput=raw_input,
        content=content or [],
        locations=locations,
    )
    return call


def _finish(turn: Turn, call: str, status: str, **fields: Any) -> None:
    turn.update("tool_call_update", toolCallId=call, status=status, **fields)


def _path(turn: Turn) -> str:
    return turn.session.cwd.rstrip("/") + "/hello.txt"


COMMANDS: dict[str, tuple[Command, str]] = {
    "help": (_help, "this list"),
    "demo": (_demo, "text, thought, plan, tool call with a permission, markdown, usage, title"),
    "echo": (_echo, "TEXT, said back"),
    "markdown": (_markdown, "a text with headings, a list, a table and code"),
    "tool": (_tool, "a tool call that reads and shows a diff"),
    "permission": (_permission, "[N] tool calls that ask first, all at once"),
    "plan": (_plan, "a plan whose entries are completed one by one"),
    "thought": (_thought, "[TEXT] a thought"),
    "usage": (_usage, "tokens, context size and cost"),
    "title": (_title, "[TEXT] names the session"),
    **FAULTS,
}
