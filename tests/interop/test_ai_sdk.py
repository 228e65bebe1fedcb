"""The AI SDK's own chat and transport (npm ``ai``) on our server."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from sandbox_agent.engine.ui_messages import UiMessageChunks
from tests.engine.test_project_traffic import AGENTS
from tests.engine.test_ui_messages import turns_of
from tests.support.npm import AI_SDK, npm_or_skip
from tests.support.servers import ServerProcess, our_server

SCRIPT = Path(__file__).parents[1] / "support/node/chat.mjs"
MOCK = {"session": {"agent": "mock"}}


class Program:
    """Chats of the AI SDK, one at a time, in a process of their own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def call(self, command: str, **args: Any) -> dict[str, Any]:
        """Run a command; return the status, the errors and the messages of the chat."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"command": command, **args}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, "the chat ended"
        return json.loads(line)


class Chat:
    """A chat with a session of its own.

    Attributes:
        url: the session.
    """

    def __init__(self, program: Program, server: ServerProcess) -> None:
        self.url = f"{server.url}/v1/sessions/chat-{next(_numbers)}"
        self.call = program.call
        self.open()

    def open(self, messages: list[dict[str, Any]] | None = None, body: dict[str, Any] | None = None) -> None:
        """Open the chat, as a page does; with messages that the page has kept."""
        options = {"api": f"{self.url}/ui", "body": MOCK if body is None else body}
        self.call("open", options=options, messages=messages or [])

    def send(self, text: str) -> dict[str, Any]:
        """Send a text; return the chat when the response has ended."""
        return self.call("send", message={"text": text})


_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[ServerProcess]:
    with our_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def program() -> Generator[Program]:
    modules = npm_or_skip(AI_SDK, "compatibility with the AI SDK")
    command = ["node", str(SCRIPT), str(modules)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Program(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=20) == 0


@pytest.fixture
def chat(program: Program, server: ServerProcess) -> Chat:
    return Chat(program, server)


def text_of(message: dict[str, Any]) -> str:
    return "".join(part["text"] for part in message["parts"] if part["type"] == "text")


def part_of(message: dict[str, Any], kind: str) -> dict[str, Any]:
    [part] = [part for part in message["parts"] if part["type"] == kind]
    return part


def test_turns_are_messages_of_the_chat(chat: Chat) -> None:
    first = chat.send("echo hello")
    second = chat.send("thought deep")
    assert (first["status"], second["status"], second["errors"]) == ("ready", "ready", [])
    assert [message["role"] for message in second["messages"]] == ["user", "assistant"] * 2
    assert text_of(second["messages"][1]) == "hello"
    assert [part["type"] for part in second["messages"][3]["parts"]] == ["step-start", "reasoning", "text"]
    assert all(part.get("state", "done") == "done" for part in second["messages"][3]["parts"])
    assert second["messages"][3]["metadata"]["stopReason"] == "end_turn"


def test_a_tool_call_has_input_output_and_diff(chat: Chat) -> None:
    message = chat.send("tool")["messages"][1]
    call = part_of(message, "dynamic-tool")
    assert (call["state"], call["title"], call["output"]) == (
        "output-available",
        "Read hello.txt",
        "1 line changed",
    )
    assert call["input"]["path"].endswith("hello.txt")
    assert part_of(message, "data-diff")["data"]["diff"] == "@@ -1 +1 @@\n-hello\n+hello, world\n"


def test_a_plan_and_the_usage_are_replaced_in_place(chat: Chat) -> None:
    plan = part_of(chat.send("plan")["messages"][1], "data-plan")
    assert {entry["status"] for entry in plan["data"]["entries"]} == {"completed"}
    usage = chat.send("usage")["messages"][3]
    assert part_of(usage, "data-usage")["data"]["used"] == 1234
    assert usage["metadata"]["usage"]["totalTokens"] == 1234


@pytest.mark.parametrize(("approved", "said"), [(True, "granted"), (False, "rejected")])
def test_a_tool_call_is_approved_or_not(chat: Chat, approved: bool, said: str) -> None:
    asked = chat.send("permission")
    call = part_of(asked["messages"][1], "dynamic-tool")
    assert (asked["status"], call["state"]) == ("ready", "approval-requested")
    assert call["input"]["content"] == "hello, world\n"
    answered = chat.call("approve", id=call["approval"]["id"], approved=approved)
    assert (answered["status"], answered["errors"], len(answered["messages"])) == ("ready", [], 2)
    call = part_of(answered["messages"][1], "dynamic-tool")
    assert call["state"] == ("output-available" if approved else "output-denied")
    assert said in text_of(answered["messages"][1])


def test_several_calls_that_ask_at_once_are_answered_one_by_one(chat: Chat) -> None:
    asked = chat.send("permission 3")
    while waiting := [
        part["approval"]["id"]
        for part in asked["messages"][1]["parts"]
        if part["type"] == "dynamic-tool" and part["state"] == "approval-requested"
    ]:
        asked = chat.call("approve", id=waiting[0], approved=True)
        assert asked["errors"] == []
    calls = [part for part in asked["messages"][1]["parts"] if part["type"] == "dynamic-tool"]
    assert [call["state"] for call in calls] == ["output-available"] * 3
    assert len(asked["messages"]) == 2
    assert "granted" in text_of(asked["messages"][1])


@pytest.mark.parametrize(
    "rules",
    [{"permissionMode": "allow"}, {"permissionRules": [{"reply": "allow", "path": "**"}]}],
    ids=lambda rules: next(iter(rules)),
)
def test_what_a_policy_answers_ends_no_response(chat: Chat, rules: dict[str, Any]) -> None:
    chat.open(body={"session": {"agent": "mock", **rules}})
    sent = chat.send("permission 2")
    calls = [part for part in sent["messages"][1]["parts"] if part["type"] == "dynamic-tool"]
    assert [call["state"] for call in calls] == ["output-available"] * 2
    assert sent["messages"][1]["metadata"]["stopReason"] == "end_turn"


def test_an_answer_of_another_client_counts(chat: Chat) -> None:
    asked = chat.send("permission")
    approval = part_of(asked["messages"][1], "dynamic-tool")["approval"]["id"]
    reply = f"{chat.url}/permissions/{approval}/reply"
    assert httpx.post(reply, json={"reply": "reject"}).status_code == 204
    answered = chat.call("approve", id=approval, approved=True)
    assert answered["errors"] == []
    assert part_of(answered["messages"][1], "dynamic-tool")["state"] == "output-denied"


def test_a_long_turn_arrives_complete_also_when_its_connection_is_lost(chat: Chat) -> None:
    whole = chat.send("burst 5000 10")["messages"][1]
    chat.call("cut", bytes=100_000)
    cut = chat.send("burst 5000 10")
    assert cut["status"] == "error"
    resumed = chat.call("resume")
    assert 0 < len(text_of(cut["messages"][3])) < len(text_of(whole)) == 50_000
    assert text_of(resumed["messages"][3]) == text_of(whole)
    assert len(resumed["messages"]) == 4


def test_a_page_that_is_loaded_again_shows_the_running_turn(chat: Chat) -> None:
    chat.call("cut", bytes=1500)
    messages = chat.send("stream 40 25")["messages"]
    chat.open(messages[:1])
    resumed = chat.call("resume")
    assert (resumed["status"], len(resumed["messages"])) == ("ready", 2)
    assert resumed["messages"][1]["id"] == messages[1]["id"]
    assert len(text_of(resumed["messages"][1])) > len(text_of(messages[1])) > 0


def test_the_turn_that_has_just_ended_is_the_same_message_again(chat: Chat) -> None:
    sent = chat.send("echo hello")
    resumed = chat.call("resume")
    assert (resumed["status"], resumed["errors"], resumed["messages"]) == ("ready", [], sent["messages"])


def test_nothing_is_resumed_when_there_was_no_turn(chat: Chat) -> None:
    httpx.post(chat.url, json={"agent": "mock"}).raise_for_status()
    resumed = chat.call("resume")
    assert (resumed["status"], resumed["errors"], resumed["messages"]) == ("ready", [], [])


def test_a_turn_that_fails_is_an_error_of_the_chat(chat: Chat) -> None:
    failed = chat.send("die 3")
    assert failed["status"] == "error"
    assert "exit" in failed["errors"][0]


def test_a_message_is_sent_again_on_request(chat: Chat) -> None:
    chat.send("echo hello")
    again = chat.call("regenerate")
    assert [text_of(message) for message in again["messages"]] == ["echo hello", "hello"]
    assert len(httpx.get(chat.url).json()["turns"]) == 2


def test_files_are_sent_with_a_message(chat: Chat) -> None:
    image = {"type": "file", "mediaType": "image/png", "url": "data:image/png;base64,iVBORw0KGgo="}
    notes = {
        "type": "file",
        "mediaType": "text/plain",
        "filename": "a.txt",
        "url": "data:text/plain;base64,aGk=",
    }
    chat.call("send", message={"parts": [{"type": "text", "text": "echo hello"}, image, notes]})
    page = httpx.get(f"{chat.url}/envelopes").json()["envelopes"]
    [prompt] = [
        one["envelope"]["params"]["prompt"]
        for one in page
        if one["envelope"].get("method") == "session/prompt"
    ]
    assert [block["type"] for block in prompt] == ["text", "image", "resource"]
    assert prompt[1] == {"type": "image", "mimeType": "image/png", "data": "iVBORw0KGgo="}
    assert prompt[2]["resource"] == {"uri": "attachment:///a.txt", "mimeType": "text/plain", "blob": "aGk="}


def test_a_chat_of_a_session_that_does_not_exist_says_so(chat: Chat) -> None:
    chat.open(body={})
    failed = chat.send("hello")
    assert failed["status"] == "error"
    assert json.loads(failed["errors"][0])["type"].endswith("session_not_found")


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "parts": []},
        {"role": "user"},
        {"role": "assistant", "id": "none", "parts": []},
        {
            "role": "assistant",
            "id": "x",
            "metadata": {"sequence": 1},
            "parts": [{"state": "approval-responded"}],
        },
    ],
)
def test_what_is_no_message_is_refused(server: ServerProcess, message: dict[str, Any]) -> None:
    httpx.post(f"{server.url}/v1/sessions/refused", json={"agent": "mock"}).raise_for_status()
    refused = httpx.post(f"{server.url}/v1/sessions/refused/ui", json={"messages": [message]})
    assert refused.status_code == 400
    assert "last message" in refused.json()["detail"]


def test_a_repeated_request_streams_the_same_turn(server: ServerProcess) -> None:
    body = {
        **MOCK,
        "messages": [{"id": "m1", "role": "user", "parts": [{"type": "text", "text": "echo hello"}]}],
    }
    answers = [httpx.post(f"{server.url}/v1/sessions/repeated/ui", json=body) for _ in range(2)]
    assert answers[0].headers["x-vercel-ai-ui-message-stream"] == "v1"
    chunks = [[line for line in answer.text.splitlines() if line.startswith("data:")] for answer in answers]
    assert chunks[0] == chunks[1]
    assert chunks[0][-1] == "data: [DONE]"
    assert len(httpx.get(f"{server.url}/v1/sessions/repeated").json()["turns"]) == 1


@pytest.mark.parametrize("agent", AGENTS)
def test_the_turns_of_real_agents_are_chunks_that_the_ai_sdk_reads(chat: Chat, agent: str) -> None:
    for turn_id, events in turns_of(agent):
        stream = UiMessageChunks(turn_id)
        chunks = stream.start() + [chunk for event in events for chunk in stream.feed(event)]
        message = chat.call("read", chunks=chunks)["message"]
        assert message["id"] == turn_id
        assert not {part.get("state") for part in message["parts"]} & {"streaming", "input-streaming"}
        assert len([part for part in message["parts"] if part["type"] == "dynamic-tool"]) == len(
            {chunk["toolCallId"] for chunk in chunks if chunk["type"] == "tool-input-start"}
        )
