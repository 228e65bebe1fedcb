"""The recorder in front of an agent, and what a check looks for afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from sandbox_agent.runtime.process_tree import TAG_VARIABLE
from sandbox_agent.testing.agents import Profile, check_agent, profile_of
from sandbox_agent.testing.agents.bed import open_bed, processes_of
from sandbox_agent.testing.agents.log import log_faults
from sandbox_agent.testing.mcp import answer
from sandbox_agent.wire.universal import (
    AgentUnparsedData,
    EventData,
    EventType,
    ItemEventData,
    PermissionEventData,
    TextPart,
    TurnEventData,
    UniversalEvent,
    UniversalItem,
)

RECORD = [sys.executable, "-m", "sandbox_agent.testing.record"]
SECONDS = 20.0
# Says hello, repeats each line, and says something that is not JSON.
ECHO = """
import sys
print('{"hello": "sk-live-abcdefghijklmnop"}', flush=True)
for line in sys.stdin:
    print(line, end="", flush=True)
print("not JSON", flush=True)
sys.exit(3)
"""
WAITS = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print('{"ready": true}', flush=True)
signal.pause()
"""


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_both_directions_are_recorded_and_passed_on(tmp_path: Path) -> None:
    file = tmp_path / "traffic.ndjson"
    secret, said = 'p"ss\\word', '{"key": "p\\"ss\\\\word", "n": 1}\n'
    for _ in range(2):
        done = subprocess.run(
            [*RECORD, file, "--", sys.executable, "-c", ECHO],
            input=said,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env={**os.environ, "MY_TOKEN": secret, "SHORT_KEY": "n"},
        )
        assert done.returncode == 3
        assert done.stdout == f'{{"hello": "sk-live-abcdefghijklmnop"}}\n{said}not JSON\n'
    lines = lines_of(file)
    assert [line["dir"] for line in lines].count("meta") == 5
    assert "started" in lines[0]["msg"]
    assert [line["t"] for line in lines] == sorted(line["t"] for line in lines)
    assert [line["msg"] for line in lines if line["dir"] == "c2a"] == [{"key": "[redacted]", "n": 1}] * 2
    from_agent = [{"hello": "[redacted]"}, {"key": "[redacted]", "n": 1}, "not JSON"]
    assert [line["msg"] for line in lines if line["dir"] == "a2c"] == from_agent * 2
    assert lines[-1]["msg"] == {"exit": 3}
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_signal_reaches_the_agent_while_its_input_is_open(tmp_path: Path) -> None:
    file = tmp_path / "traffic.ndjson"
    with subprocess.Popen(
        [*RECORD, file, "--", sys.executable, "-c", WAITS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as recorder:
        assert recorder.stdout is not None
        assert json.loads(recorder.stdout.readline()) == {"ready": True}
        recorder.send_signal(signal.SIGTERM)
        assert recorder.wait(SECONDS) == 7


def test_a_recorder_without_a_command_says_how_it_is_used(tmp_path: Path) -> None:
    done = subprocess.run([*RECORD, tmp_path / "file"], capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
def test_processes_are_found_by_their_home(tmp_path: Path) -> None:
    def sleeping(**env: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "input()"]
        return subprocess.Popen(command, stdin=subprocess.PIPE, env={**os.environ, **env})

    home = str(tmp_path)
    children = [sleeping(HOME=home), sleeping(HOME=home, **{TAG_VARIABLE: "a"}), sleeping(HOME=f"{home}2")]
    try:
        assert processes_of(tmp_path).keys() == {children[0].pid, children[1].pid}
        assert processes_of(tmp_path, tagged=True).keys() == {children[1].pid}
    finally:
        for child in children:
            child.communicate(b"\n")
    assert processes_of(tmp_path) == {}


@pytest.mark.anyio
async def test_the_variables_of_the_user_do_not_reach_an_agent_that_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CLAUDE_CONFIG_DIR", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "the user's own")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    file, agent = tmp_path / "traffic.ndjson", Path(__file__).with_name("llm_agent.py")
    profile = Profile(env={"OPENAI_BASE_URL": "{url}/v1", "ANTHROPIC_API_KEY": "scripted-key"})
    command = [sys.executable, str(agent), "good"]
    report = await check_agent("claude", profile=profile, command=command, only=["text"], record=file)
    assert [result.outcome for result in report.results] == ["ok", "ok"]
    (env, *_) = [line["msg"]["result"]["_meta"]["env"] for line in lines_of(file) if "_meta" in str(line)]
    assert "the user's own" not in env.values()
    assert env["ANTHROPIC_API_KEY"] == "[redacted]"
    assert str(tmp_path) not in env["XDG_CONFIG_HOME"]
    assert env["HOME"] in env["XDG_CONFIG_HOME"]


def events(*said: tuple[EventType, EventData], first: int = 1) -> list[UniversalEvent]:
    return [
        UniversalEvent(f"e{number}", number, "", "s", "agent", False, kind, data)
        for number, (kind, data) in enumerate(said, first)
    ]


ITEM = ItemEventData(UniversalItem("i1", "message", [TextPart("x")], "completed"))
TURN, ASKED = TurnEventData("started", "t1"), PermissionEventData("p1", "write", "requested")


@pytest.mark.parametrize(
    ("log", "faults"),
    [
        (
            events(
                ("turn.started", TURN),
                ("item.started", ITEM),
                ("item.completed", ITEM),
                ("permission.requested", ASKED),
                ("permission.resolved", ASKED),
                ("turn.ended", TURN),
            ),
            [],
        ),
        (events(("turn.started", TURN), ("turn.ended", TURN), first=2), ["the sequence has a gap"]),
        (events(("item.started", ITEM)), ["item.started without its end"]),
        (events(("item.completed", ITEM)), ["item.completed without its start"]),
        (events(("permission.requested", ASKED)), ["permission.requested without its end"]),
        (
            events(("turn.started", TURN), ("turn.started", TURN), ("turn.ended", TURN)),
            ["turn.started twice"],
        ),
        (events(("agent.unparsed", AgentUnparsedData("what?", "x"))), ["unparsed: what?"]),
    ],
)
def test_faults_of_a_log_are_found(log: list[UniversalEvent], faults: list[str]) -> None:
    assert log_faults(log) == faults


def test_the_mcp_server_answers_what_agents_ask() -> None:
    def ask(method: str, **params: Any) -> Any:
        return answer({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})

    assert ask("initialize", protocolVersion="2024-11-05")["result"]["protocolVersion"] == "2024-11-05"
    assert [tool["name"] for tool in ask("tools/list")["result"]["tools"]] == ["add_numbers"]
    called = ask("tools/call", name="add_numbers", arguments={"a": 40, "b": 2})
    assert called["result"]["content"] == [{"type": "text", "text": "The sum is 42."}]
    assert ask("resources/list")["error"]["code"] == -32601
    assert answer({"jsonrpc": "2.0", "method": "notifications/initialized"}) is None


@pytest.mark.anyio
@pytest.mark.skipif(sys.platform != "linux", reason="processes are found on Linux only")
async def test_a_process_whose_agent_has_ended_is_a_stray(tmp_path: Path) -> None:
    async with open_bed("mock", profile_of("mock"), tmp_path / "bed") as bed:
        session = await bed.sdk.create_session(agent="mock", cwd=bed.work)
        await bed.sdk.sessions.create("s", agent="mock", directory=str(bed.work))
        await session.prompt("spawn")
        assert await bed.strays() == []
        env = {"HOME": str(bed.home), TAG_VARIABLE: "x"}
        async with await anyio.open_process(["sleep", "60"], env=env) as stray:
            assert await bed.strays(seconds=0.5) == ["sleep 60"]
            stray.kill()
        assert await bed.strays() == []
