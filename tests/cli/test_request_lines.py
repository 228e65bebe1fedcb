"""What ``run`` and ``chat`` show of a permission request."""

from __future__ import annotations

import json
from typing import Any

from sandbox_agent import SessionEvent
from sandbox_agent.cli.prompts import request_lines
from sandbox_agent.wire.requests import PERMISSION_METHOD, read_permission


def lines_of(**call: Any) -> list[str]:
    payload = {"method": PERMISSION_METHOD, "params": {"toolCall": {"toolCallId": "t", **call}}}
    return request_lines(
        read_permission(SessionEvent("e", 1, "s", 0, "c", "agent", json.dumps(payload).encode()))
    )


def test_many_files_do_not_hide_the_command() -> None:
    locations = [{"path": f"/{number}"} for number in range(100)]
    shown = lines_of(rawInput={"command": "rm -rf /"}, locations=locations)
    assert shown[0] == "$ rm -rf /"
    assert shown[-1] == "… 61 more lines"


def test_the_other_arguments_of_a_command_are_shown() -> None:
    assert lines_of(rawInput={"command": "npm", "args": ["publish"], "cwd": "/x"}) == [
        "$ npm",
        "args: ['publish']",
        "cwd: /x",
    ]
