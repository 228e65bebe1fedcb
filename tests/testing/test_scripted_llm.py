"""The scripted model: the same script through all APIs, streamed and not."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, NamedTuple

import anyio
import anyio.lowlevel
import httpx2
import pytest

from sandbox_agent.testing.llm import STALLED_TEXT, Call, LLMRequest, Reply, ScriptedLLM
from sandbox_agent.testing.llm.request import objects

pytestmark = pytest.mark.anyio

Object = dict[str, Any]
SECONDS = 20.0


class Answer(NamedTuple):
    """What a client reads from a response: the text, the thoughts, and the calls with their arguments."""

    text: str
    thinking: str
    calls: list[tuple[str, Object]]


class Api(NamedTuple):
    """A client of one API: where it posts, and how it writes a conversation and reads the response."""

    path: str
    body: Callable[[str, Sequence[str]], Object]
    continued: Callable[[Object, Object, str], None]
    read: Callable[[Object], Answer]
    read_events: Callable[[list[Object]], Answer]

    async def post(
        self, http: httpx2.AsyncClient, body: Object, *, streaming: bool, **options: Any
    ) -> httpx2.Response:
        if self.path.startswith("/v1beta"):
            verb = "streamGenerateContent?alt=sse" if streaming else "generateContent"
            return await http.post(f"{self.path}:{verb}", json=body, **options)
        return await http.post(self.path, json={**body, "stream": streaming}, **options)


TOOLS = ["write_file", "mcp__tiny__greet"]


def anthropic_read(document: Object) -> Answer:
    blocks = document["content"]
    return Answer(
        "".join(block["text"] for block in blocks if block["type"] == "text"),
        "".join(block["thinking"] for block in blocks if block["type"] == "thinking"),
        [(block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"],
    )


def anthropic_events(events: list[Object]) -> Answer:
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    starts = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    names = [block["name"] for block in starts if block["type"] == "tool_use"]
    inputs = [json.loads(delta["partial_json"]) for delta in deltas if delta["type"] == "input_json_delta"]
    assert events[-1]["type"] == "message_stop"
    assert events[-2]["delta"]["stop_reason"] == ("tool_use" if names else "end_turn")
    return Answer(
        "".join(delta["text"] for delta in deltas if delta["type"] == "text_delta"),
        "".join(delta["thinking"] for delta in deltas if delta["type"] == "thinking_delta"),
        list(zip(names, inputs, strict=True)),
    )


def anthropic_continued(body: Object, document: Object, result: str) -> None:
    calls = [block["id"] for block in document["content"] if block["type"] == "tool_use"]
    results = [{"type": "tool_result", "tool_use_id": call, "content": result} for call in calls]
    reminder = {"type": "text", "text": "<system-reminder>[[say wrong]]</system-reminder>\nTool loaded."}
    body["messages"] += [
        {"role": "assistant", "content": document["content"]},
        {"role": "user", "content": [*results, reminder]},
    ]


def responses_read(document: Object) -> Answer:
    items = document["output"]
    return Answer(
        "".join(item["content"][0]["text"] for item in items if item["type"] == "message"),
        "".join(item["summary"][0]["text"] for item in items if item["type"] == "reasoning"),
        [(item["name"], json.loads(item["arguments"])) for item in items if item["type"] == "function_call"],
    )


def responses_events(events: list[Object]) -> Answer:
    assert [event["sequence_number"] for event in events] == sorted(
        event["sequence_number"] for event in events
    )
    done = responses_read(events[-1]["response"])
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    added = [event for event in events if event["type"] == "response.output_item.added"]
    assert len(added) == len(events[-1]["response"]["output"])
    assert done.text == text
    return done


def responses_continued(body: Object, document: Object, result: str) -> None:
    calls = [item for item in document["output"] if item["type"] == "function_call"]
    body["input"] += calls
    body["input"] += [
        {"type": "function_call_output", "call_id": call["call_id"], "output": result} for call in calls
    ]


def chat_read(document: Object) -> Answer:
    message = document["choices"][0]["message"]
    calls: list[Object] = [call["function"] for call in objects(message.get("tool_calls"))]
    return Answer(
        message["content"],
        message.get("reasoning_content", ""),
        [(call["name"], json.loads(call["arguments"])) for call in calls],
    )


def chat_events(events: list[Object]) -> Answer:
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    calls: list[Object] = [call["function"] for delta in deltas for call in objects(delta.get("tool_calls"))]
    return Answer(
        "".join(delta.get("content") or "" for delta in deltas),
        "".join(delta.get("reasoning_content") or "" for delta in deltas),
        [(call["name"], json.loads(call["arguments"])) for call in calls],
    )


def chat_continued(body: Object, document: Object, result: str) -> None:
    message = document["choices"][0]["message"]
    calls = message["tool_calls"]
    body["messages"] += [
        message,
        *({"role": "tool", "tool_call_id": call["id"], "content": result} for call in calls),
    ]


def gemini_read(document: Object) -> Answer:
    return gemini_events([document])


def gemini_events(events: list[Object]) -> Answer:
    parts = [part for event in events for part in event["candidates"][0]["content"]["parts"]]
    calls = [part["functionCall"] for part in parts if "functionCall" in part]
    assert events[-1]["candidates"][0]["finishReason"] == "STOP"
    return Answer(
        "".join(part["text"] for part in parts if "text" in part and not part.get("thought")),
        "".join(part["text"] for part in parts if part.get("thought")),
        [(call["name"], call["args"]) for call in calls],
    )


def gemini_continued(body: Object, document: Object, result: str) -> None:
    content = document["candidates"][0]["content"]
    names = [part["functionCall"]["name"] for part in content["parts"] if "functionCall" in part]
    answers = [{"functionResponse": {"name": name, "response": {"output": result}}} for name in names]
    body["contents"] += [content, {"role": "user", "parts": answers}]


def function(name: str) -> Object:
    return {"name": name, "description": "", "parameters": {"type": "object"}}


def anthropic_body(prompt: str, tools: Sequence[str]) -> Object:
    return {
        "model": "m",
        "messages": [{"role": "user", "content": [{"type": "text", "text": prompt}]}],
        "tools": [{"name": tool, "input_schema": {"type": "object"}} for tool in tools],
    }


def responses_body(prompt: str, tools: Sequence[str]) -> Object:
    return {
        "model": "m",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": prompt}]}],
        "tools": [{"type": "function", **function(tool)} for tool in tools],
    }


def chat_body(prompt: str, tools: Sequence[str]) -> Object:
    return {
        "model": "m",
        "messages": [{"role": "system", "content": "[[say wrong]]"}, {"role": "user", "content": prompt}],
        "tools": [{"type": "function", "function": function(tool)} for tool in tools],
    }


def gemini_body(prompt: str, tools: Sequence[str]) -> Object:
    return {
        "contents": [{"role": "user", "parts": [{"text": prompt}]}],
        "tools": [{"functionDeclarations": [function(tool) for tool in tools]}],
    }


ANTHROPIC = Api("/v1/messages", anthropic_body, anthropic_continued, anthropic_read, anthropic_events)
RESPONSES = Api("/v1/responses", responses_body, responses_continued, responses_read, responses_events)
CHAT = Api("/v1/chat/completions", chat_body, chat_continued, chat_read, chat_events)
GEMINI = Api("/v1beta/models/m", gemini_body, gemini_continued, gemini_read, gemini_events)
APIS = [ANTHROPIC, RESPONSES, CHAT, GEMINI]


@pytest.fixture
async def llm() -> AsyncGenerator[ScriptedLLM]:
    with anyio.fail_after(SECONDS):
        async with ScriptedLLM() as scripted:
            yield scripted


@pytest.fixture
async def http(llm: ScriptedLLM) -> AsyncGenerator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=llm.url, timeout=SECONDS) as client:
        yield client


async def ask(http: httpx2.AsyncClient, api: Api, body: Object, *, streaming: bool) -> Answer:
    response = await api.post(http, body, streaming=streaming)
    assert response.status_code == 200, response.text
    if not streaming:
        return api.read(response.json())
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    return api.read_events([json.loads(line) for line in lines if line != "[DONE]"])


each_api = pytest.mark.parametrize("api", APIS, ids=["anthropic", "responses", "chat", "gemini"])
each_way = pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streamed"])


@each_api
@each_way
@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Hello", Answer("Hello from the script.", "", [])),
        ("Sum up. [[say It is [empty]. 👋]]", Answer("It is [empty]. 👋", "", [])),
        ("[[think Seven times six.]] [[say 42]]", Answer("42", "Seven times six.", [])),
        ("[[say old]]\nand then\n[[say new]]", Answer("new", "", [])),
        (
            '[[call write_file {"path": "a", "lines": [[1], [2]]}]]',
            Answer("Let me do that.", "", [("write_file", {"path": "a", "lines": [[1], [2]]})]),
        ),
        ("[[call greet]]", Answer("Let me do that.", "", [("mcp__tiny__greet", {})])),
        ("[[call erase {}]]", Answer("There is no tool erase.", "", [])),
    ],
)
async def test_a_directive_decides_the_response(
    http: httpx2.AsyncClient, api: Api, streaming: bool, prompt: str, expected: Answer
) -> None:
    assert await ask(http, api, api.body(prompt, TOOLS), streaming=streaming) == expected


@each_api
async def test_the_steps_of_a_prompt_follow_the_results_of_its_calls(
    http: httpx2.AsyncClient, llm: ScriptedLLM, api: Api
) -> None:
    prompt = "[[call write_file {}]] [[call greet {}]] [[then]] [[call greet {}]] [[then]] [[say All done.]]"
    body = api.body(prompt, TOOLS)
    said: list[Answer] = []
    for result in ("first\nsecond line", "again", None):
        document = (await api.post(http, body, streaming=False)).json()
        said.append(api.read(document))
        if result is not None:
            api.continued(body, document, result)
    assert [len(answer.calls) for answer in said] == [2, 1, 0]
    assert said[-1].text == "All done."
    assert len(llm.requests[-1].results) == 2
    assert "first\nsecond line" in llm.requests[-1].text


async def test_a_prompt_after_the_result_of_a_cancelled_turn_is_followed(http: httpx2.AsyncClient) -> None:
    body = anthropic_body("[[call greet {}]]", TOOLS)
    document = (await ANTHROPIC.post(http, body, streaming=False)).json()
    anthropic_continued(body, document, "interrupted")
    body["messages"][-1]["content"].append({"type": "text", "text": "[[say Still here.]]"})
    assert (await ask(http, ANTHROPIC, body, streaming=False)).text == "Still here."


@each_api
async def test_a_result_is_repeated_when_the_script_has_no_further_step(
    http: httpx2.AsyncClient, api: Api
) -> None:
    body = api.body("[[call greet {}]]", TOOLS)
    document = (await api.post(http, body, streaming=False)).json()
    api.continued(body, document, "\nhello there\nmore")
    answer = await ask(http, api, body, streaming=False)
    assert answer.text.startswith("Result: ")
    assert "hello there" in answer.text


@each_api
@pytest.mark.parametrize("status", [400, 401, 500])
async def test_an_error_is_in_the_shape_of_the_api(http: httpx2.AsyncClient, api: Api, status: int) -> None:
    response = await api.post(http, api.body(f"[[error {status}]]", []), streaming=True)
    assert response.status_code == status
    assert response.json()["error"]["message"] == f"scripted error {status}"


@each_api
async def test_nothing_is_answered_when_the_model_hangs(http: httpx2.AsyncClient, api: Api) -> None:
    timeout = httpx2.Timeout(SECONDS, read=0.3)
    with pytest.raises(httpx2.ReadTimeout):
        await api.post(http, api.body("[[hang]]", []), streaming=True, timeout=timeout)


@each_api
async def test_responses_that_stall_end_with_the_server(api: Api) -> None:
    async def read_stalled(url: str, text: list[str]) -> None:
        async with httpx2.AsyncClient(base_url=url, timeout=SECONDS) as http:
            text.append((await api.post(http, api.body("[[stall]]", []), streaming=True)).text)

    text: list[str] = []
    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks, ScriptedLLM() as llm:
            tasks.start_soon(read_stalled, llm.url, text)
            while not llm.requests:
                await anyio.lowlevel.checkpoint()
    assert STALLED_TEXT[-10:] in text[0]


async def test_the_pieces_of_a_slow_response_are_streamed_one_by_one(http: httpx2.AsyncClient) -> None:
    body = {**ANTHROPIC.body("[[slow 3]]", []), "stream": True}
    chunks: list[str] = []
    async with http.stream("POST", "/v1/messages", json=body) as response:
        async for chunk in response.aiter_text():
            chunks += [chunk] if "piece" in chunk else []
    assert len(chunks) == 3


async def test_a_function_replaces_the_directives() -> None:
    async def script(request: LLMRequest) -> Reply | str | None:
        if request.prompt == "directives":
            return None
        if request.tool("greet"):
            return Reply(text="", calls=[Call("mcp__tiny__greet", {"name": "Ada"})])
        return f"{request.model} in {request.api}"

    with anyio.fail_after(SECONDS):
        async with ScriptedLLM(script) as llm, httpx2.AsyncClient(base_url=llm.url) as http:
            called = await ask(http, CHAT, CHAT.body("x", TOOLS), streaming=True)
            assert called.calls == [("mcp__tiny__greet", {"name": "Ada"})]
            assert (await ask(http, CHAT, CHAT.body("x", []), streaming=False)).text == "m in chat"
            said = await ask(http, CHAT, CHAT.body("directives", []), streaming=False)
            assert said.text == "Hello from the script."


async def test_a_request_says_what_was_asked(http: httpx2.AsyncClient, llm: ScriptedLLM) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    content = [{"type": "text", "text": "[[say old]]"}, image, {"type": "text", "text": "What is this?"}]
    await ask(
        http,
        CHAT,
        {"model": "m", "messages": [{"role": "user", "content": content}], "reasoning_effort": "low"},
        streaming=True,
    )
    (request,) = llm.requests
    assert (request.api, request.model, request.streaming, request.tools) == ("chat", "m", True, ())
    assert (request.prompt, request.images, request.effort) == ("[[say old]]\nWhat is this?", 1, "low")


async def test_what_is_not_offered_is_noted(http: httpx2.AsyncClient, llm: ScriptedLLM) -> None:
    assert (await http.head("/")).status_code == 200
    assert (await http.get("/v1/models")).json()["data"][0]["id"] == "scripted-model"
    assert (await http.post("/v1/messages/count_tokens", json={})).json() == {
        "input_tokens": 10,
        "totalTokens": 10,
    }
    assert llm.unknown == []
    assert (await http.post("/telemetry", json={})).status_code == 404
    assert llm.unknown == ["POST /telemetry"]


async def test_the_tools_of_codex_are_found_where_it_offers_them(http: httpx2.AsyncClient) -> None:
    def called(*tools: Object, more: Sequence[Object] = (), call: str) -> Object:
        said = [{"type": "additional_tools", "tools": list(more)}] if more else []
        said += [{"role": "user", "content": f'[[call {call} {{"input": "x"}}]]'}]
        return {"model": "m", "input": said, "tools": list(tools)}

    server = {"type": "namespace", "name": "mcp__tiny", "tools": [function("greet")]}
    program = {"type": "namespace", "name": "functions", "tools": [{"type": "custom", "name": "exec"}]}
    for body, expected in (
        (called(server, call="greet"), {"type": "function_call", "name": "greet", "namespace": "mcp__tiny"}),
        (
            called(call="mcp__tiny/greet"),
            {"type": "function_call", "name": "greet", "namespace": "mcp__tiny"},
        ),
        (called(more=[program], call="exec"), {"type": "custom_tool_call", "name": "exec", "input": "x"}),
    ):
        (*_, item) = (await RESPONSES.post(http, body, streaming=False)).json()["output"]
        assert item | expected == item


async def test_a_body_may_be_compressed_and_is_refused_if_it_is_not_json(
    http: httpx2.AsyncClient, llm: ScriptedLLM
) -> None:
    headers = {"content-encoding": "gzip"}
    body = gzip.compress(json.dumps(chat_body("[[say small]]", [])).encode())
    response = await http.post(CHAT.path, content=body, headers=headers)
    assert chat_read(response.json()).text == "small"
    for content in (b"{", b"\x1f\x8b"):
        response = await http.post(CHAT.path, content=content, headers=headers)
        assert response.status_code == 400
    response = await http.post(CHAT.path, content=b"{")
    assert "the body is not JSON" in response.json()["error"]["message"]
    assert len(llm.requests) == 1


@each_api
@pytest.mark.parametrize("prompt", ["[[call write_file {nonsense}]]", "[[slow down]]", "[[error ?]]"])
async def test_an_invalid_directive_is_refused_with_the_reason(
    http: httpx2.AsyncClient, api: Api, prompt: str
) -> None:
    response = await api.post(http, api.body(prompt, TOOLS), streaming=True)
    assert response.status_code == 400
    assert "invalid directive: " in response.json()["error"]["message"]


async def test_the_server_ends_properly_when_its_program_is_cancelled() -> None:
    llm = ScriptedLLM()
    with anyio.fail_after(SECONDS), anyio.CancelScope() as scope:
        async with llm, httpx2.AsyncClient(base_url=llm.url) as http:
            await ask(http, CHAT, CHAT.body("hello", []), streaming=True)
            scope.cancel()
            await anyio.sleep_forever()
    assert len(llm.requests) == 1
    with pytest.raises(OSError, match="connect"):
        await anyio.connect_tcp("127.0.0.1", int(llm.url.rpartition(":")[2]))
