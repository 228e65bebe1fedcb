"""The mock agent as a real child, spoken to in raw JSON lines."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from anyio import IncompleteRead
from anyio import Path as AsyncPath

from sandbox_agent.agents.mock import commands
from tests.agents.mock_client import PATIENCE, mock_agent

pytestmark = pytest.mark.anyio

ALLOW = {"outcome": {"outcome": "selected", "optionId": "allow_once"}}
REJECT = {"outcome": {"outcome": "selected", "optionId": "reject_once"}}


def test_the_mock_imports_only_a_little_of_the_standard_library() -> None:
    script = (
        "import sandbox_agent.agents.mock.agent, sys;"
        "print(*{m.partition('.')[0] for m in sys.modules} - {'sandbox_agent'})"
    )
    source = Path(commands.__file__).parents[3]
    run = subprocess.run(
        [sys.executable, "-S", "-E", "-c", f"import sys; sys.path.insert(0, {str(source)!r}); {script}"],
        capture_output=True,
        text=True,
        check=True,
    )
    modules = set(run.stdout.split())
    assert modules <= {*sys.stdlib_module_names, "__main__"}
    assert not modules & {"asyncio", "typing", "dataclasses", "inspect", "subprocess", "uuid", "pathlib"}


async def test_the_mock_answers_initialize() -> None:
    async with mock_agent() as client:
        result = (await client.call("initialize", protocolVersion=1, clientCapabilities={}))["result"]
    assert result["protocolVersion"] == 1
    assert result["agentInfo"]["name"] == "mock"
    assert result["authMethods"] == []
    assert result["agentCapabilities"]["loadSession"] is True
    assert set(result["agentCapabilities"]["sessionCapabilities"]) == {"list", "resume"}


async def test_the_mock_gives_modes_and_options_with_a_new_session() -> None:
    async with mock_agent() as client:
        result = (await client.call("session/new", cwd="/work", mcpServers=[]))["result"]
    assert result["modes"]["currentModeId"] in [m["id"] for m in result["modes"]["availableModes"]]
    assert [option["category"] for option in result["configOptions"]] == ["mode", "model", "thought_level"]
    for option in result["configOptions"]:
        assert option["type"] == "select"
        assert option["currentValue"] in [choice["value"] for choice in option["options"]]


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("no/such", {}, -32601),
        ("initialize", {}, -32602),
        ("initialize", {"protocolVersion": True}, -32602),
        ("session/new", {"cwd": 3}, -32602),
        ("session/new", {}, -32602),
        ("session/prompt", {"sessionId": "nope", "prompt": [{"type": "text", "text": "x"}]}, -32002),
        ("session/load", {"sessionId": "nope", "cwd": "/", "mcpServers": []}, -32002),
        ("session/load", {"sessionId": "../../etc/passwd"}, -32002),
        ("session/resume", {"sessionId": "nope", "cwd": "/"}, -32002),
        ("session/set_mode", {"sessionId": "nope", "modeId": "plan"}, -32002),
        ("session/set_mode", {"sessionId": "SESSION", "modeId": "nope"}, -32602),
        ("session/set_mode", {"sessionId": "SESSION"}, -32602),
        ("session/set_config_option", {"sessionId": "SESSION", "configId": "no", "value": "x"}, -32602),
        ("session/set_config_option", {"sessionId": "SESSION", "configId": "model", "value": "x"}, -32602),
        ("session/prompt", {"sessionId": "SESSION", "prompt": []}, -32602),
        ("session/prompt", {"sessionId": "SESSION", "prompt": ["text"]}, -32602),
        ("session/prompt", {"sessionId": "SESSION", "prompt": [{"type": "text", "text": "burst x"}]}, -32602),
        ("session/list", {"cwd": 1}, -32602),
    ],
)
async def test_the_mock_answers_an_error_when_a_request_is_wrong(
    method: str, params: dict[str, Any], code: int
) -> None:
    async with mock_agent() as client:
        session = await client.new_session()
        real = {key: session if value == "SESSION" else value for key, value in params.items()}
        response = await client.call(method, **real)
    assert response["error"]["code"] == code
    assert response["error"]["message"]


@pytest.mark.parametrize(
    ("line", "code"),
    [(b"{", -32700), (b"\xff", -32700), (b"[]", -32600), (b"[" * 100_000, -32700)],
)
async def test_the_mock_answers_an_error_when_a_line_is_no_request(line: bytes, code: int) -> None:
    async with mock_agent() as client:
        await client.send_line(line)
        response = await client.read()
        assert response["id"] is None
        assert response["error"]["code"] == code
        assert await client.new_session()


async def test_the_mock_answers_with_ids_of_any_kind() -> None:
    async with mock_agent() as client:
        for request_id in (0, -1, "a", "", 2**53, None):
            await client.send(id=request_id, method="authenticate", params={"methodId": "x"})
            response = await client.read()
            assert response == {"jsonrpc": "2.0", "id": request_id, "result": {}}


async def test_the_mock_says_back_what_is_no_command() -> None:
    async with mock_agent() as client:
        session = await client.new_session()
        assert await client.prompt(session, "hello there, wörld 👋") == {"stopReason": "end_turn"}
        assert client.text() == "You said: hello there, wörld 👋"
        assert len(client.updates("agent_message_chunk")) > 1
        assert await client.prompt(session, "ECHO one\ntwo") == {"stopReason": "end_turn"}
        assert client.text() == "one\ntwo"


async def test_the_mock_says_back_a_lone_surrogate_and_a_megabyte() -> None:
    async with mock_agent() as client:
        session = await client.new_session()
        await client.prompt(session, "echo \ud800")
        assert client.text() == "\ud800"
        await client.prompt(session, "echo " + "é" * 1_000_000)
        assert client.text() == "é" * 1_000_000


async def test_the_mock_takes_the_last_text_as_the_command() -> None:
    async with mock_agent() as client:
        session = await client.new_session()
        blocks = [
            {"type": "text", "text": "die 3"},
            {"type": "image", "data": "aGk=", "mimeType": "image/png"},
            {"type": "resource", "resource": {"uri": "file:///a.txt", "text": "abc"}},
            {"type": "resource_link", "uri": "file:///b.txt", "name": "b"},
            {"type": "text", "text": "echo now"},
        ]
        await client.call("session/prompt", sessionId=session, prompt=blocks)
    assert client.text() == (
        "I was also sent image (image/png, 4 characters), resource (file:///a.txt, 3 characters), "
        "resource_link (file:///b.txt).\nnow"
    )


async def test_the_mock_lists_its_commands_in_help() -> None:
    async with mock_agent() as client:
        session = await client.new_session()
        await client.prompt(session, "help")
    (update,) = client.updates("available_commands_update")
    assert [command["name"] for command in update["availableCommands"]] == list(commands.COMMANDS)
    assert all(f"`{name}`" in client.text() for name in commands.COMMANDS)


async def test_the_mock_shows_a_tool_call_from_start_to_end() -> None:
    async with mock_agent() as client:
        session = await client.new_session()
        await client.prompt(session, "tool")
    (call,) = client.updates("tool_call")
    running, done = client.updates("tool_call_update")
    assert call["status"] == "pending"
    assert running == {
        "sessionUpdate": "tool_call_update",
        "toolCallId": call["toolCallId"],
        "status": "in_progress",
    }
    assert (done["toolCallId"], done["status"]) == (call["toolCallId"], "completed")
    assert [content["type"] for content in done["content"]] == ["content", "diff"]
    assert done["locations"] == [{"path": "/work/hello.txt", "line": 1}]


async def test_the_mock_shows_a_plan_a_thought_usage_and_a_title() -> None:
    async with mock_agent() as client:
        session = await client.new_session()
        await client.prompt(session, "plan")
        plans = client.updates("plan")
        assert {entry["status"] for entry in plans[0]["entries"]} == {"in_progress", "pending"}
        assert {entry["status"] for entry in plans[-1]["entries"]} == {"completed"}
        await client.prompt(session, "thought deep in it")
        assert client.text("agent_thought_chunk") == "deep in it"
        result = await client.prompt(session, "usage")
        (usage,) = client.updates("usage_update")
        assert usage["used"] == result["usage"]["totalTokens"]
        assert usage["size"] > usage["used"]
        assert usage["cost"] == {"amount": 0.0125, "currency": "USD"}
        await client.prompt(session, "title My work")
        assert client.updates("session_info_update")[0]["title"] == "My work"
        await client.prompt(session, "markdown")
        assert "| column | value |" in client.text()


@pytest.mark.parametrize(
    ("answer", "status", "says"),
    [
        ({"result": ALLOW}, "completed", "Permission granted (allow_once)"),
        ({"result": REJECT}, "failed", "Permission rejected (reject_once)"),
        ({"result": {"outcome": {"outcome": "cancelled"}}}, "failed", "Permission cancelled"),
        ({"result": None}, "failed", "Permission cancelled"),
        ({"error": {"code": -32601, "message": "no"}}, "failed", "Permission refused"),
    ],
)
async def test_the_mock_ends_a_tool_call_as_the_permission_says(
    answer: dict[str, Any], status: str, says: str
) -> None:
    async with mock_agent() as client:
        session = await client.new_session()
        prompt = await client.start_prompt(session, "permission")
        request = await client.until("session/request_permission")
        kinds = [option["kind"] for option in request["params"]["options"]]
        assert kinds == ["allow_once", "allow_always", "reject_once"]
        assert request["params"]["sessionId"] == session
        await client.send(id=request["id"], **answer)
        response = await client.response(prompt)
    assert response["result"] == {"stopReason": "end_turn"}
    assert client.updates("tool_call_update")[-1]["status"] == status
    assert says in client.text()


async def test_the_mock_has_many_permissions_pending_in_two_sessions() -> None:
    async with mock_agent() as client:
        first, second = await client.new_session(), await client.new_session()
        three = await client.start_prompt(first, "permission 3")
        one = await client.start_prompt(second, "permission")
        requests = [await client.until("session/request_permission") for _ in range(4)]
        assert len({request["id"] for request in requests}) == 4
        for request in reversed(requests):
            call = request["params"]["toolCall"]["toolCallId"]
            assert call in [update["toolCallId"] for update in client.updates("tool_call")]
            await client.send(id=request["id"], result=ALLOW)
        await client.responses({three, one})
    completed = [u for u in client.updates("tool_call_update") if u["status"] == "completed"]
    assert len(completed) == 4


async def test_the_mock_drops_an_answer_to_no_question() -> None:
    async with mock_agent() as client:
        await client.send(id=77, result=ALLOW)
        await client.send(id="x", result=ALLOW)
        assert await client.new_session()


async def test_the_mock_plays_the_whole_demo() -> None:
    async with mock_agent() as client:
        session = await client.new_session()
        prompt = await client.start_prompt(session, "demo")
        request = await client.until("session/request_permission")
        await client.send(id=request["id"], result=ALLOW)
        result = (await client.response(prompt))["result"]
    assert result["stopReason"] == "end_turn"
    assert result["usage"]["totalTokens"] == 1234
    assert {update["sessionUpdate"] for update in client.updates()} == {
        "agent_message_chunk",
        "agent_thought_chunk",
        "plan",
        "tool_call",
        "tool_call_update",
        "usage_update",
        "session_info_update",
    }


async def test_the_mock_tells_of_a_changed_mode_and_option() -> None:
    async with mock_agent() as client:
        session = await client.new_session()
        assert (await client.call("session/set_mode", sessionId=session, modeId="plan"))["result"] == {}
        assert client.updates("current_mode_update")[0]["currentModeId"] == "plan"
        response = await client.call(
            "session/set_config_option", sessionId=session, configId="thought_level", value="high"
        )
        options = response["result"]["configOptions"]
        assert [option["currentValue"] for option in options] == ["plan", "mock", "high"]
        assert client.updates("config_option_update")[-1]["configOptions"] == options


@pytest.mark.parametrize(
    "command", ["stall", "sleep 600", "stream 100000 5", "permission", "burst 100000000 200"]
)
async def test_the_mock_stops_a_turn_when_it_is_cancelled(command: str) -> None:
    async with mock_agent() as client:
        session, other = await client.new_session(), await client.new_session()
        prompt = await client.start_prompt(session, command)
        assert (await client.prompt(other, "echo meanwhile"))["stopReason"] == "end_turn"
        await client.send(method="session/cancel", params={"sessionId": session})
        response = await client.response(prompt)
        assert response["result"] == {"stopReason": "cancelled"}
        assert (await client.prompt(session, "echo again"))["stopReason"] == "end_turn"


async def test_the_mock_cancels_what_waits_behind_a_running_turn_too() -> None:
    async with mock_agent() as client:
        session = await client.new_session()
        first = await client.start_prompt(session, "stall")
        second = await client.start_prompt(session, "echo never")
        await client.send(method="session/cancel", params={"sessionId": session})
        assert (await client.response(first))["result"] == {"stopReason": "cancelled"}
        assert (await client.response(second))["result"] == {"stopReason": "cancelled"}
        assert client.text() == ""


async def test_the_mock_ignores_a_cancel_when_nothing_runs() -> None:
    async with mock_agent() as client:
        session = await client.new_session()
        await client.send(method="session/cancel", params={"sessionId": session})
        await client.send(method="session/cancel", params={"sessionId": "nope"})
        await client.send(method="session/cancel")
        assert (await client.prompt(session, "echo on"))["stopReason"] == "end_turn"


async def test_the_mock_runs_turns_of_one_session_in_order() -> None:
    async with mock_agent() as client:
        session = await client.new_session()
        prompts = [await client.start_prompt(session, f"echo {number},") for number in range(20)]
        for prompt in prompts:
            await client.response(prompt)
    assert client.text() == "".join(f"{number}," for number in range(20))


async def test_a_burst_is_complete_and_in_order() -> None:
    async with mock_agent() as client:
        session = await client.new_session()
        assert await client.prompt(session, "burst 5000 200") == {"stopReason": "end_turn"}
    texts = [update["content"]["text"] for update in client.updates("agent_message_chunk")]
    assert [int(text.split()[0]) for text in texts] == list(range(1, 5001))
    assert {len(text.encode()) for text in texts} == {200}


async def test_a_burst_of_small_texts_keeps_their_numbers() -> None:
    async with mock_agent() as client:
        session = await client.new_session()
        await client.prompt(session, "burst 3 0")
    assert client.text() == "000001 000002 000003 "


async def test_a_stream_is_complete_and_in_order() -> None:
    async with mock_agent() as client:
        session = await client.new_session()
        await client.prompt(session, "stream 20 1")
    assert [int(word) for word in client.text().split()] == list(range(1, 21))


async def test_a_dying_mock_says_why_on_stderr_and_leaves_its_turn_open() -> None:
    async with mock_agent() as client:
        session = await client.new_session()
        await client.start_prompt(session, "die 3")
        with pytest.raises(IncompleteRead):
            await client.until("no such method")
        assert await client.process.wait() == 3
        assert client.process.stderr
        assert b"code 3" in await client.process.stderr.receive()
        assert [message for message in client.messages[1:] if "id" in message] == []
    assert client.text() == "I am about to die."


async def test_the_mock_exits_when_stdin_ends() -> None:
    async with mock_agent() as client:
        session = await client.new_session()
        await client.start_prompt(session, "stall")
        await client.close_stdin()
        assert await client.process.wait() == 0


async def test_the_mock_exits_when_it_gets_sigterm() -> None:
    async with mock_agent() as client:
        session = await client.new_session()
        await client.start_prompt(session, "sleep 600")
        client.process.terminate()
        assert await client.process.wait() == 143


async def test_the_mock_exits_when_it_gets_sigterm_while_nobody_reads() -> None:
    async with mock_agent() as client:
        session = await client.new_session()
        await client.start_prompt(session, "burst 100000000 200")
        await client.read()
        client.process.terminate()
        assert await client.process.wait() == 143


async def test_the_mock_says_so_when_its_folder_is_none(tmp_path: Path) -> None:
    await AsyncPath(tmp_path / "file").write_text("")
    async with mock_agent(SANDBOX_AGENT_MOCK_STATE=str(tmp_path / "file" / "folder")) as client:
        assert await client.process.wait() == 1
        assert client.process.stderr
        assert b"SANDBOX_AGENT_MOCK_STATE" in await client.process.stderr.receive()


def test_the_mock_exits_when_nobody_reads_it_any_more() -> None:
    command = [sys.executable, "-P", "-m", "sandbox_agent.agents.mock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdout.close()
        process.stdin.write(b'{"jsonrpc":"2.0","id":1,"method":"authenticate"}\n')
        process.stdin.flush()
        assert process.wait(PATIENCE) == 0


async def test_a_deaf_mock_goes_on_after_sigterm() -> None:
    async with mock_agent() as client:
        session = await client.new_session()
        await client.prompt(session, "deaf")
        client.process.terminate()
        assert (await client.prompt(session, "echo still here"))["stopReason"] == "end_turn"
        assert client.text() == "still here"


async def test_a_deaf_mock_goes_on_after_the_end_of_stdin() -> None:
    async with mock_agent() as client:
        session = await client.new_session()
        await client.prompt(session, "deaf")
        await client.start_prompt(session, "stream 30 5")
        await client.close_stdin()
        await client.until_text("000030")
        client.process.terminate()
        assert client.process.returncode is None
        client.process.kill()
        assert await client.process.wait() == -9


async def test_a_spawned_child_is_in_the_mocks_process_group() -> None:
    async with mock_agent() as client:
        session = await client.new_session()
        await client.prompt(session, "spawn")
        pid = int(client.text().split("process ")[1].split()[0])
        assert os.getpgid(pid) == client.process.pid
        os.killpg(client.process.pid, signal.SIGKILL)


async def test_garbage_is_garbage_and_the_turn_ends() -> None:
    async with mock_agent() as client:
        session = await client.new_session()
        prompt = await client.start_prompt(session, "garbage")
        good: list[Any] = []
        bad: list[bytes] = []
        ended = False
        while not ended:
            line = await client.line()
            try:
                message = json.loads(line)
            except ValueError:
                bad.append(line)
            else:
                good.append((message, line))
                ended = message.get("id") == prompt
    not_json, unfinished, not_utf8, empty = bad
    assert (not_json, empty) == (b"this line is not JSON", b"")
    assert unfinished.startswith(b"{")
    assert b"\xff" in not_utf8
    texts = [m["params"]["update"]["content"]["text"] for m, _ in good if "params" in m]
    assert texts[:2] == ["CRLF ", "half "]
    assert good[0][1].endswith(b"\r")
    assert "".join(texts[2:]) == "That was garbage."


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"result": {"answer": "red"}}, 'The client answered: {"answer":"red"}'),
        ({"error": {"code": -32601, "message": "what?"}}, "The client refused: "),
    ],
)
async def test_the_mock_asks_what_acp_does_not_know(answer: dict[str, Any], says: str) -> None:
    async with mock_agent() as client:
        session = await client.new_session()
        prompt = await client.start_prompt(session, "ask-extension")
        request = await client.until("_mock/question")
        assert request["params"]["sessionId"] == session
        await client.send(id=request["id"], **answer)
        await client.response(prompt)
    assert client.text().startswith(says)


async def test_a_session_is_loaded_and_resumed_when_its_process_is_gone(tmp_path: Path) -> None:
    async with mock_agent(SANDBOX_AGENT_MOCK_STATE=str(tmp_path)) as client:
        session = await client.new_session()
        await client.prompt(session, "echo remember me")
        await client.prompt(session, "tool")
        await client.prompt(session, "title Kept")
        await client.call("session/set_config_option", sessionId=session, configId="model", value="mock-fast")
        await client.start_prompt(session, "die 9")
        assert await client.process.wait() == 9
    async with mock_agent(SANDBOX_AGENT_MOCK_STATE=str(tmp_path)) as client:
        unknown = await client.call(
            "session/prompt", sessionId=session, prompt=[{"type": "text", "text": "x"}]
        )
        assert unknown["error"]["code"] == -32002
        loaded = (await client.call("session/load", sessionId=session, cwd="/work", mcpServers=[]))["result"]
        assert [option["currentValue"] for option in loaded["configOptions"]] == [
            "default",
            "mock-fast",
            "medium",
        ]
        said = [update["content"]["text"] for update in client.updates("user_message_chunk")]
        assert said == ["echo remember me", "tool", "title Kept", "die 9"]
        assert client.updates("agent_message_chunk")[0]["content"]["text"] == "remember me"
        assert client.updates("tool_call_update")[0]["status"] == "completed"
        assert (await client.prompt(session, "echo back"))["stopReason"] == "end_turn"
    async with mock_agent(SANDBOX_AGENT_MOCK_STATE=str(tmp_path)) as client:
        listed = (await client.call("session/list"))["result"]["sessions"]
        assert [(info["sessionId"], info["title"], info["cwd"]) for info in listed] == [
            (session, "Kept", "/work")
        ]
        assert (await client.call("session/list", cwd="/else"))["result"] == {"sessions": []}
        client.messages.clear()
        resumed = (await client.call("session/resume", sessionId=session, cwd="/work"))["result"]
        assert resumed["configOptions"] == loaded["configOptions"]
        assert client.updates() == []


async def test_a_session_is_gone_with_its_process_when_there_is_no_folder() -> None:
    async with mock_agent() as client:
        session = await client.new_session()
        await client.prompt(session, "echo x")
        assert (await client.call("session/load", sessionId=session, cwd="/"))["result"]["modes"]
    async with mock_agent() as client:
        assert (await client.call("session/load", sessionId=session, cwd="/"))["error"]["code"] == -32002


async def test_a_torn_journal_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    async with mock_agent(SANDBOX_AGENT_MOCK_STATE=str(tmp_path)) as client:
        session = await client.new_session()
        await client.prompt(session, "echo whole")
    journal = AsyncPath(tmp_path / f"{session}.jsonl")
    await journal.write_bytes(await journal.read_bytes() + b'{"update":{"sessionUpd')
    await AsyncPath(tmp_path / "other.txt").write_text("not a session")
    async with mock_agent(SANDBOX_AGENT_MOCK_STATE=str(tmp_path)) as client:
        assert "result" in await client.call("session/load", sessionId=session, cwd="/work")
        assert client.text() == "whole"
        assert len((await client.call("session/list"))["result"]["sessions"]) == 1
