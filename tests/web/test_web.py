"""Responses of web applications, made from sessions of the SDK."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import pytest
from fastapi import FastAPI, Request, WebSocket
from starlette.applications import Starlette
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from sandbox_agent import SandboxAgent, Session
from sandbox_agent.testing.asgi import ASGITransport
from sandbox_agent.web import sse_response, ui_resume_response, ui_stream_response, websocket_endpoint
from tests.support.servers import ServerProcess, our_server

from .conftest import listening

pytestmark = pytest.mark.anyio
TIMEOUT = 30


def fastapi_app(session: Session) -> ASGIApp:
    app = FastAPI()

    @app.get("/events")
    async def events(request: Request) -> Any:  # pyright: ignore[reportUnusedFunction]
        return sse_response(session, request)

    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:  # pyright: ignore[reportUnusedFunction]
        await websocket_endpoint(session, websocket)

    @app.post("/chat")
    async def chat(body: dict[str, Any]) -> Any:  # pyright: ignore[reportUnusedFunction]
        return ui_stream_response(session, body)

    @app.get("/chat/{name}/stream")
    async def resume(name: str) -> Any:  # pyright: ignore[reportUnusedFunction]
        return ui_resume_response(session)

    return app


def starlette_app(session: Session) -> ASGIApp:
    async def events(request: Any) -> Any:
        return sse_response(session, request)

    async def chat(request: Any) -> Any:
        return ui_stream_response(session, await request.json())

    async def resume(request: Any) -> Any:
        return ui_resume_response(session)

    async def socket(websocket: Any) -> None:
        await websocket_endpoint(session, websocket)

    return Starlette(
        routes=[
            Route("/events", events),
            Route("/chat", chat, methods=["POST"]),
            Route("/chat/{name}/stream", resume),
            WebSocketRoute("/socket", socket),
        ]
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with our_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
async def sdk(server: ServerProcess) -> AsyncGenerator[SandboxAgent]:
    async with SandboxAgent.connect(server.url) as sdk:
        yield sdk


@pytest.fixture
async def session(sdk: SandboxAgent) -> Session:
    return await sdk.create_session(agent="mock")


@pytest.fixture(params=[fastapi_app, starlette_app])
def app(request: pytest.FixtureRequest, session: Session) -> ASGIApp:
    return request.param(session)


@pytest.fixture
async def client(app: ASGIApp) -> AsyncGenerator[httpx2.AsyncClient]:
    transport = ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test", timeout=TIMEOUT) as client:
        yield client


async def sse_events(response: httpx2.Response) -> AsyncIterator[tuple[int, dict[str, Any]]]:
    number = 0
    async for line in response.aiter_lines():
        if line.startswith("id:"):
            number = int(line.removeprefix("id:"))
        if line.startswith("data:"):
            yield number, json.loads(line.removeprefix("data:"))


def chat_body(text: str) -> dict[str, Any]:
    return {"messages": [{"id": "m", "role": "user", "parts": [{"type": "text", "text": text}]}]}


def chunks_of(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data:")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(chunk["delta"] for chunk in chunks if chunk["type"] == "text-delta")


# server-sent events


async def test_a_stream_resumes_after_the_last_event_of_the_client(
    client: httpx2.AsyncClient, session: Session
) -> None:
    await session.prompt("echo hello")
    with anyio.fail_after(TIMEOUT):
        async with client.stream("GET", "/events") as response:
            assert response.headers["x-accel-buffering"] == "no"
            events = sse_events(response)
            first = [await anext(events), await anext(events)]
        assert [number for number, _ in first] == [1, 2]
        headers = {"Last-Event-ID": "2"}
        async with client.stream("GET", "/events", headers=headers) as response:
            events = sse_events(response)
            assert (await anext(events))[0] == 3
            sent = asyncio.ensure_future(session.prompt("echo live"))
            async for _, event in events:
                if "live" in json.dumps(event["payload"]) and event["sender"] == "agent":
                    break
            await sent


@pytest.mark.parametrize("given", ["x", "-1", "1.5", "9" * 17, "9" * 5000])
async def test_an_id_that_is_no_index_is_refused(client: httpx2.AsyncClient, given: str) -> None:
    refused = await client.get("/events", headers={"Last-Event-ID": given})
    assert refused.status_code == 400
    assert "must be the index" in refused.json()["detail"]


async def test_a_client_that_leaves_does_not_cancel_the_turn(
    client: httpx2.AsyncClient, session: Session
) -> None:
    sent = asyncio.ensure_future(session.prompt("stream 20 10"))
    async with client.stream("GET", "/events") as response:
        await anext(sse_events(response))
    assert (await sent).stop_reason == "end_turn"


async def test_a_quiet_stream_is_kept_alive(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandbox_agent.web.KEEPALIVE_SECONDS", 0.01)
    with anyio.fail_after(TIMEOUT):
        async with client.stream("GET", "/events") as response:
            comments = 0
            async for line in response.aiter_lines():
                comments += line == ":"
                if comments == 3:
                    break


async def test_streams_end_when_the_sdk_is_disposed(
    client: httpx2.AsyncClient, sdk: SandboxAgent, session: Session
) -> None:
    with anyio.fail_after(TIMEOUT):
        async with client.stream("GET", "/events") as response:
            lines = response.aiter_lines()
            await anext(lines)
            await sdk.dispose()
            async for _ in lines:
                pass


async def test_a_client_that_does_not_read_holds_no_events(app: ASGIApp, session: Session) -> None:
    async with httpx2.AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        with anyio.fail_after(TIMEOUT):
            async with client.stream("GET", "/events") as response:
                await session.prompt("burst 2000 100")
                last = [event async for event in session_events(session)][-1].event_index
                async for number, _ in sse_events(response):
                    if number == last:
                        break


async def session_events(session: Session) -> AsyncIterator[Any]:
    events = session.events()
    events.close()
    async for event in events:
        yield event


# WebSockets


@asynccontextmanager
async def socket_of(app: ASGIApp, query: str = "") -> AsyncGenerator[ClientConnection]:
    async with listening(app) as url, connect(f"{url.replace('http', 'ws', 1)}/socket{query}") as socket:
        yield socket


async def frames_until(socket: ClientConnection, kind: str) -> list[dict[str, Any]]:
    frames: list[dict[str, Any]] = []
    with anyio.fail_after(TIMEOUT):
        while not frames or frames[-1]["type"] != kind:
            frames.append(json.loads(await socket.recv()))
    return frames


async def test_a_socket_takes_prompts_and_answers_and_sends_events(app: ASGIApp, session: Session) -> None:
    async with socket_of(app) as socket:
        await socket.send(json.dumps({"type": "prompt", "prompt": "permission", "id": 7}))
        with anyio.fail_after(TIMEOUT):
            async for frame in socket:
                event = json.loads(frame)
                if event["type"] == "event" and "request_permission" in str(event["event"]["payload"]):
                    break
        [request] = session.pending_permissions()
        await socket.send(json.dumps({"type": "permission", "id": request.id, "reply": "once"}))
        frames = await frames_until(socket, "turn_ended")
        assert frames[-1] == {"type": "turn_ended", "id": 7, "stopReason": "end_turn"}
        assert frames[-2]["event"]["payload"]["result"] == {"stopReason": "end_turn"}


async def test_a_socket_cancels_the_turn(app: ASGIApp) -> None:
    async with socket_of(app) as socket:
        await socket.send(json.dumps({"type": "prompt", "prompt": "stall"}))
        while "session/prompt" not in str(await frames_until(socket, "event")):
            pass
        await socket.send(json.dumps({"type": "cancel"}))
        assert (await frames_until(socket, "turn_ended"))[-1]["stopReason"] == "cancelled"


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        ("{", "JSON"),
        ("[]", "JSON object"),
        (b"x", "JSON object"),
        ('{"type": "bogus"}', "type must be"),
        ('{"type": "permission", "id": "x", "reply": "maybe"}', "reply must be"),
        ('{"type": "permission", "id": "x", "reply": "once"}', "not open"),
        ('{"type": "prompt", "prompt": 3, "id": 1}', "prompt"),
    ],
)
async def test_a_wrong_frame_is_answered_and_the_socket_stays(
    app: ASGIApp, frame: str | bytes, why: str
) -> None:
    async with socket_of(app) as socket:
        await socket.send(frame)
        assert why in (await frames_until(socket, "error"))[-1]["message"]
        await socket.send(json.dumps({"type": "prompt", "prompt": "echo still"}))
        await frames_until(socket, "turn_ended")


async def test_a_client_whose_socket_is_lost_finds_the_turn_and_its_permission(
    app: ASGIApp, session: Session
) -> None:
    async with listening(app) as url:
        address = f"{url.replace('http', 'ws', 1)}/socket"
        async with connect(address) as socket:
            await socket.send(json.dumps({"type": "prompt", "prompt": "permission"}))
            last = (await frames_until(socket, "event"))[-1]["event"]["eventIndex"]
            with anyio.fail_after(TIMEOUT):
                while not session.pending_permissions():
                    last = (await frames_until(socket, "event"))[-1]["event"]["eventIndex"]
        async with connect(f"{address}?after={last}") as socket:
            [request] = session.pending_permissions()
            await socket.send(json.dumps({"type": "permission", "id": request.id, "reply": "once"}))
            frames = await frames_until(socket, "event")
            assert frames[0]["event"]["eventIndex"] == last + 1
            assert session.turn is not None
            assert (await session.turn).stop_reason == "end_turn"


async def test_a_socket_that_begins_behind_the_last_event_gets_the_ends_of_turns(app: ASGIApp) -> None:
    async with socket_of(app, "?after=1000") as socket:
        await socket.send(json.dumps({"type": "prompt", "prompt": "echo hello"}))
        assert (await frames_until(socket, "turn_ended"))[-1]["stopReason"] == "end_turn"


async def test_a_message_of_another_session_continues_no_turn(
    client: httpx2.AsyncClient, session: Session
) -> None:
    turn = session.stream("stall")
    await anext(turn)
    approval = {"id": "x", "approved": True}
    message = {
        "id": "turn-1",
        "role": "assistant",
        "metadata": {"sequence": 1},
        "parts": [{"state": "approval-responded", "approval": approval}],
    }
    with anyio.fail_after(TIMEOUT):
        chunks = chunks_of((await client.post("/chat", json={"messages": [message]})).text)
    assert [chunk["type"] for chunk in chunks] == ["error"]
    await session.cancel()
    await turn


async def test_a_prompt_is_sent_if_the_client_leaves_at_once(session: Session) -> None:
    frame = json.dumps({"type": "prompt", "prompt": "echo left"})
    received = iter([{"type": "websocket.connect"}, {"type": "websocket.receive", "text": frame}])

    async def receive() -> Any:
        return next(received, {"type": "websocket.disconnect", "code": 1001})

    async def send(_message: Any) -> None:
        pass

    scope: dict[str, Any] = {"type": "websocket", "query_string": b"", "headers": []}
    await websocket_endpoint(session, WebSocket(scope, receive, send))
    with anyio.fail_after(TIMEOUT):
        async for event in session.events():
            if event.payload.get("result") == {"stopReason": "end_turn"}:
                break


async def test_a_socket_is_closed_with_a_code(app: ASGIApp, sdk: SandboxAgent) -> None:
    async with socket_of(app, "?after=x") as socket:
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008
    async with socket_of(app) as socket:
        await socket.send(json.dumps({"type": "prompt", "prompt": "echo hello"}))
        await frames_until(socket, "turn_ended")
        await sdk.dispose()
        with pytest.raises(ConnectionClosed) as closed:
            await frames_until(socket, "never")
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001


# the AI SDK


async def test_a_message_of_the_ai_sdk_is_a_turn(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/chat", json=chat_body("echo hello"))
    assert answer.headers["x-vercel-ai-ui-message-stream"] == "v1"
    chunks = chunks_of(answer.text)
    assert [chunk["type"] for chunk in (chunks[0], chunks[-1])] == ["start", "finish"]
    assert chunks[-1]["messageMetadata"]["stopReason"] == "end_turn"
    assert text_of(chunks) == "hello"


@pytest.mark.parametrize(("approved", "said"), [(True, "granted"), (False, "rejected")])
async def test_a_tool_is_approved_in_the_next_request(
    client: httpx2.AsyncClient, approved: bool, said: str
) -> None:
    with anyio.fail_after(TIMEOUT):
        asked = chunks_of((await client.post("/chat", json=chat_body("permission"))).text)
        [request] = [chunk for chunk in asked if chunk["type"] == "tool-approval-request"]
        assert asked[-1]["finishReason"] == "tool-calls"
        approval = {"id": request["approvalId"], "approved": approved}
        message = {
            "id": asked[0]["messageId"],
            "role": "assistant",
            "metadata": asked[-1]["messageMetadata"],
            "parts": [{"type": "dynamic-tool", "state": "approval-responded", "approval": approval}],
        }
        for _ in range(2):  # the second time the turn has ended
            answered = chunks_of((await client.post("/chat", json={"messages": [message]})).text)
            assert answered[0] == {"type": "start", "messageId": asked[0]["messageId"]}
            assert answered[-1]["messageMetadata"]["stopReason"] == "end_turn"
            assert said in text_of(answered)


async def test_a_policy_answers_and_ends_no_response(client: httpx2.AsyncClient, session: Session) -> None:
    session.permission_policy = "allow_once"
    chunks = chunks_of((await client.post("/chat", json=chat_body("permission"))).text)
    assert chunks[-1]["messageMetadata"]["stopReason"] == "end_turn"
    assert "granted" in text_of(chunks)


async def test_a_chat_resumes_the_running_turn_from_its_start(
    client: httpx2.AsyncClient, session: Session
) -> None:
    assert (await client.get("/chat/x/stream")).status_code == 204
    await session.prompt("echo before")
    with anyio.fail_after(TIMEOUT):
        async with client.stream("POST", "/chat", json=chat_body("stream 40 20")) as response:
            async for line in response.aiter_lines():
                if "text-delta" in line:
                    break
        resumed = chunks_of((await client.get("/chat/x/stream")).text)
        assert resumed[-1]["messageMetadata"]["stopReason"] == "end_turn"
        whole = await session.ask("stream 40 0")
        assert text_of(resumed) == whole


async def test_a_turn_that_fails_is_an_error_of_the_chat(client: httpx2.AsyncClient) -> None:
    chunks = chunks_of((await client.post("/chat", json=chat_body("die 3"))).text)
    assert chunks[-1]["type"] == "error"
    assert "exit" in chunks[-1]["errorText"]


async def test_a_second_message_during_a_turn_is_an_error_of_the_chat(
    client: httpx2.AsyncClient, session: Session
) -> None:
    turn = session.stream("stall")
    await anext(turn)
    chunks = chunks_of((await client.post("/chat", json=chat_body("echo x"))).text)
    assert "a turn of session" in chunks[-1]["errorText"]
    await session.cancel()
    await turn


@pytest.mark.parametrize(
    "body", [{}, {"messages": []}, {"messages": [{"role": "assistant", "id": "turn-x"}]}, {"messages": "x"}]
)
async def test_a_body_that_is_no_chat_is_refused(client: httpx2.AsyncClient, body: dict[str, Any]) -> None:
    refused = await client.post("/chat", json=body)
    assert refused.status_code == 400
    assert "last message" in refused.json()["detail"]


@pytest.mark.parametrize("body", [[], "x", 5, None])
async def test_a_body_that_is_no_object_is_refused(session: Session, body: Any) -> None:
    assert ui_stream_response(session, body).status_code == 400


async def test_an_approval_of_an_impossible_turn_is_refused(session: Session) -> None:
    approval = {"state": "approval-responded", "approval": {"id": "p", "approved": True}}
    message = {"role": "assistant", "id": f"turn-{'9' * 5000}", "metadata": {"sequence": 1}}
    body = {"messages": [{**message, "parts": [{"type": "tool-x", **approval}]}]}
    assert ui_stream_response(session, body).status_code == 400
