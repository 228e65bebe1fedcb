"""The session routes of a running server, over HTTP: sessions, messages, events, exports, search."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx2
import pytest

from sandbox_agent.engine.sse import SseDecoder, SseEvent
from sandbox_agent.server.client_names import RESERVED
from tests.support.servers import ServerProcess, our_server

from .talk import client_of, talk

pytestmark = pytest.mark.anyio

JsonObject = dict[str, Any]
BIG = 2**63


class Session:
    """A managed session of the mock agent."""

    def __init__(self, client: httpx2.AsyncClient, session_id: str) -> None:
        self.client = client
        self.id = session_id
        self.path = f"/v1/sessions/{session_id}"

    async def post(self, what: str, body: Any = None, **headers: str) -> httpx2.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is None:
            return await self.client.post(f"{self.path}{what}", headers=named)
        return await self.client.post(f"{self.path}{what}", json=body, headers=named)

    async def say(self, text: Any, **headers: str) -> str:
        """Send a message and return its turn's id."""
        response = await self.post("/messages", {"message": text}, **headers)
        assert response.status_code == 204, response.text
        assert response.content == b""
        return response.headers["sandbox-agent-turn"]

    async def turn(self, text: Any, **headers: str) -> list[JsonObject]:
        """Send a message and return the events of its turn."""
        response = await self.post("/messages/stream", {"message": text}, **headers)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "text/event-stream"
        return [json.loads(event.data) for event in messages(response.content)]

    async def events(self, **query: Any) -> JsonObject:
        response = await self.client.get(f"{self.path}/events", params=query)
        assert response.status_code == 200, response.text
        body: JsonObject = response.json()
        return body

    async def info(self) -> JsonObject:
        response = await self.client.get(self.path)
        assert response.status_code == 200, response.text
        body: JsonObject = response.json()
        return body

    @asynccontextmanager
    async def stream(self, what: str = "", **headers: str) -> AsyncGenerator[Stream]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.client.stream("GET", f"{self.path}/events/sse{what}", headers=named) as response:
            assert response.status_code == 200, await response.aread()
            yield Stream(response)


class Stream:
    """An open stream of events."""

    def __init__(self, response: httpx2.Response) -> None:
        self._chunks = response.aiter_bytes()
        self._decoder = SseDecoder()
        self._ready: list[SseEvent] = []

    async def next(self) -> SseEvent | None:
        """Return the next event, None at the end."""
        while not self._ready:
            chunk = await anext(self._chunks, None)
            if chunk is None:
                return None
            self._ready = self._decoder.feed(chunk)
        return self._ready.pop(0)

    async def until(self, kind: str) -> list[JsonObject]:
        """Read up to an event of that type."""
        found: list[JsonObject] = []
        with anyio.fail_after(30):
            while (event := await self.next()) is not None:
                found.append(json.loads(event.data))
                if found[-1].get("type") == kind:
                    return found
        raise AssertionError(f"the stream ended without {kind}")


def messages(data: bytes) -> list[SseEvent]:
    events = SseDecoder().feed(data)
    for event in events:
        assert event.event == "message"
        assert event.id == str(json.loads(event.data)["sequence"])
    return events


@asynccontextmanager
async def made(server: ServerProcess, session_id: str, **settings: Any) -> AsyncGenerator[Session]:
    """Make a session; it is deleted at the end."""
    async with client_of(server) as client:
        session = Session(client, session_id)
        response = await session.post("", {"agent": "mock", **settings})
        assert response.status_code == 200, response.text
        assert response.json()["healthy"] is True
        try:
            yield session
        finally:
            await client.delete(session.path)


async def test_a_session_is_made_listed_and_shown(server: ServerProcess, fresh: Callable[[], str]):
    name = fresh()
    async with made(server, name, title="A title", directory="/tmp") as session:
        listed = (await session.client.get("/v1/sessions")).json()["sessions"]
        found = next(each for each in listed if each["sessionId"] == name)
        info = await session.info()
        assert found["title"] == info["title"] == "A title"
        assert info["directory"] == "/tmp"
        assert info["managed"] is True
        assert info["turns"] == []
        assert "turns" not in found
        again = await session.post("", {"agent": "mock"})
        assert (again.status_code, again.json()["type"].rpartition(":")[2]) == (409, "session_already_exists")


async def test_a_session_that_is_created_again_is_returned(server: ServerProcess, fresh: Callable[[], str]):
    name, other, key = fresh(), fresh(), fresh()
    async with client_of(server) as client:
        session, second = Session(client, name), Session(client, other)
        body = {
            "agent": "mock",
            "title": "A title",
            "mcpServers": [{"name": "x", "url": "y", "type": "http"}],
        }
        first = await session.post("", body, idempotency_key=key)
        assert first.status_code == 200, first.text
        assert first.json()["sessionId"] == name
        # The order of members and members without a value make no difference.
        reordered = {"mcpServers": [{"type": "http", "url": "y", "name": "x"}], "model": None, **body}
        for again in (
            await session.post("", body),
            await session.post("", reordered),
            await session.post("", body, idempotency_key="another"),
            await second.post("", body, idempotency_key=key),
        ):
            assert (again.status_code, again.json()) == (200, first.json())
        for refused, kind in (
            (await session.post("", {"agent": "mock"}), "session_already_exists"),
            (await second.post("", {"agent": "mock"}, idempotency_key=key), "conflict"),
        ):
            assert (refused.status_code, refused.json()["type"].rpartition(":")[2]) == (409, kind)
        assert (await second.client.get(second.path)).status_code == 404
        assert (await session.post("", body, idempotency_key="x" * 256)).status_code == 400
        await client.delete(session.path)


async def test_a_title_that_the_user_gave_stays_and_else_the_agent_names_the_session(
    server: ServerProcess, fresh: Callable[[], str]
):
    async with made(server, fresh(), title="Mine") as named, made(server, fresh()) as unnamed:
        await named.turn("title Theirs")
        await unnamed.turn("title Theirs")
        assert [(await each.info())["title"] for each in (named, unnamed)] == ["Mine", "Theirs"]


async def test_sessions_are_listed_in_pages(server: ServerProcess, fresh: Callable[[], str]):
    names = [fresh() for _ in range(3)]
    async with (
        made(server, names[0]) as session,
        made(server, names[1]),
        made(server, names[2]),
    ):
        seen: list[str] = []
        cursor: str | None = None
        while True:
            query = {"limit": "2", **({"cursor": cursor} if cursor else {})}
            page = (await session.client.get("/v1/sessions", params=query)).json()
            assert len(page["sessions"]) <= 2
            seen += [each["sessionId"] for each in page["sessions"]]
            cursor = page.get("nextCursor")
            if cursor is None:
                break
    assert [name for name in seen if name in names] == names[::-1]


async def test_a_message_is_taken_and_its_turn_runs(server: ServerProcess, fresh: Callable[[], str]):
    async with made(server, fresh()) as session, session.stream() as stream:
        turn_id = await session.say("hello")
        events = await stream.until("turn.ended")
        assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
        assert events[-1]["data"]["turn_id"] == turn_id
        assert (await session.info())["turns"][0]["turnId"] == turn_id


async def test_a_messages_stream_is_its_turn_and_nothing_else(
    server: ServerProcess, fresh: Callable[[], str]
):
    async with made(server, fresh()) as session:
        await session.turn("first")
        events = await session.turn("second")
        assert events[0]["type"] == "turn.started"
        assert events[-1]["type"] == "turn.ended"
        assert [event["type"] for event in events].count("turn.started") == 1
        sequences = [event["sequence"] for event in events]
        assert sequences == list(range(sequences[0], sequences[0] + len(events)))
        assert "You said: second" in json.dumps(events)


async def test_messages_that_queue_up_stream_their_own_turns(server: ServerProcess, fresh: Callable[[], str]):
    async with made(server, fresh()) as session:
        turns = await asyncio.gather(*(session.turn(f"number {number}") for number in range(4)))
    for number, events in enumerate(turns):
        assert events[0]["data"]["turn_id"] == events[-1]["data"]["turn_id"]
        assert f"number {number}" in json.dumps(events)
    assert len({events[0]["sequence"] for events in turns}) == 4


async def test_the_same_key_streams_the_same_turn_again(server: ServerProcess, fresh: Callable[[], str]):
    async with made(server, fresh()) as session:
        first = await session.turn("hello", idempotency_key="k")
        await session.turn("another")
        assert await session.turn("hello", idempotency_key="k") == first
        assert await session.say("hello", idempotency_key="k") == first[0]["data"]["turn_id"]
        assert len((await session.info())["turns"]) == 2
        other = await session.post("/messages", {"message": "else"}, idempotency_key="k")
        assert other.status_code == 409


async def test_a_client_that_leaves_its_stream_does_not_cancel_the_turn(
    server: ServerProcess, fresh: Callable[[], str]
):
    async with made(server, fresh()) as session:
        body = json.dumps({"message": "permission"})
        headers = {"content-type": "application/json", "idempotency-key": "k"}
        request = session.client.stream(
            "POST", f"{session.path}/messages/stream", content=body, headers=headers
        )
        async with request as response:
            seen = await Stream(response).until("permission.requested")
        permission = seen[-1]["data"]["permission_id"]
        task = asyncio.ensure_future(session.turn("permission", idempotency_key="k"))
        reply = await session.post(f"/permissions/{permission}/reply", {"reply": "once"})
        assert reply.status_code == 204, reply.text
        events = await task
        assert events[: len(seen)] == seen
        assert events[-1]["data"]["metadata"]["stop_reason"] == "end_turn"


async def test_content_blocks_reach_the_agent_as_they_are(server: ServerProcess, fresh: Callable[[], str]):
    blocks = [
        {"type": "text", "text": "look"},
        {"type": "resource_link", "uri": "file:///a.txt", "name": "a.txt", "_meta": {"x": 1}},
    ]
    async with made(server, fresh()) as session:
        await session.turn(blocks)
        events = (await session.events(include_raw="true"))["events"]
        prompts = [event["raw"] for event in events if event.get("raw", {}).get("method") == "session/prompt"]
        assert prompts[0]["params"]["prompt"] == blocks


async def test_pages_join_to_the_whole_log(server: ServerProcess, fresh: Callable[[], str]):
    async with made(server, fresh()) as session:
        await session.turn("plan")
        whole = await session.events()
        assert whole["hasMore"] is False
        joined: list[JsonObject] = []
        while True:
            page = await session.events(offset=len(joined), limit=7)
            joined += page["events"]
            assert page["hasMore"] is (len(joined) < len(whole["events"]))
            if not page["hasMore"]:
                break
        assert joined == whole["events"]
        assert await session.events(limit=0) == {"events": [], "hasMore": True}
        assert await session.events(offset=len(joined)) == {"events": [], "hasMore": False}
        assert (await session.info())["eventCount"] == len(joined)
        assert not [event for event in joined if "raw" in event]


@pytest.mark.parametrize("name", ["include_raw", "includeRaw"])
async def test_raw_is_the_envelope_on_pages_and_streams(
    server: ServerProcess, fresh: Callable[[], str], name: str
):
    async with made(server, fresh()) as session:
        await session.turn("hello")
        polled = (await session.events(**{name: "true"}))["events"]
        assert any(event.get("raw", {}).get("method") == "session/update" for event in polled)
        async with session.stream(f"?{name}=true") as stream:
            streamed = await stream.until("turn.ended")
            assert streamed == polled
            await session.say("more")
            later = await stream.until("turn.ended")
        assert (await session.events(**{name: "true"}))["events"] == [*polled, *later]


async def test_a_stream_goes_on_behind_what_the_client_has(server: ServerProcess, fresh: Callable[[], str]):
    async with made(server, fresh()) as session:
        await session.turn("hello")
        whole = (await session.events())["events"]
        async with session.stream("?offset=2") as stream:
            assert await stream.until("turn.ended") == whole[2:]
        # what the client has by now counts more than what it had when it first asked
        async with session.stream("?offset=2", last_event_id="4") as stream:
            assert await stream.until("turn.ended") == whole[4:]
        async with session.stream("?offset=5") as stream:
            await session.say("more")
            first = await stream.next()
            assert first is not None
            assert first.id == "6"


async def test_an_id_ahead_of_the_log_is_told_by_a_reset_and_on_a_page_by_410(
    server: ServerProcess, fresh: Callable[[], str]
):
    async with made(server, fresh()) as session:
        await session.turn("hello")
        last = (await session.info())["eventCount"]
        async with session.stream("", last_event_id=str(last + 1)) as stream:
            reset = await stream.next()
            assert reset is not None
            assert (reset.event, reset.id) == ("reset", "0")
            assert json.loads(reset.data)["lastSequence"] == last
            assert (await stream.until("turn.ended"))[0]["sequence"] == 1
        gone = await session.client.get(f"{session.path}/events", params={"offset": last + 1})
        assert gone.status_code == 410
        assert gone.json()["lastSequence"] == last


async def test_a_stream_ends_when_its_session_is_deleted(server: ServerProcess, fresh: Callable[[], str]):
    async with made(server, fresh()) as session:
        async with session.stream() as plain, session.stream("?include_raw=true") as raw:
            await session.say("hello")
            await plain.until("turn.ended")
            await raw.until("turn.ended")
            assert (await session.client.delete(session.path)).status_code == 204
            with anyio.fail_after(30):
                for stream in (plain, raw):
                    # that it was ended comes first, where it is read before it is erased
                    while (event := await stream.next()) is not None:
                        assert json.loads(event.data).get("type", "gap") in {"session.ended", "gap"}
        for what in ("", "/events", "/export", "/events/sse"):
            assert (await session.client.get(f"{session.path}{what}")).status_code == 404


async def test_a_permission_is_answered_by_whoever_is_first(server: ServerProcess, fresh: Callable[[], str]):
    name = fresh()
    async with made(server, name) as session, session.stream() as stream:
        await session.say("permission")
        asked = (await stream.until("permission.requested"))[-1]
        listed = (await session.client.get("/v1/permissions")).json()["permissions"]
        waiting = [each for each in listed if each["sessionId"] == name]
        assert [each["permissionId"] for each in waiting] == [asked["data"]["permission_id"]]
        assert waiting[0]["sequence"] == asked["sequence"]
        path = f"/permissions/{asked['data']['permission_id']}/reply"
        answers = await asyncio.gather(
            *(
                session.post(path, {"reply": "once"}, sandbox_agent_client=f"client-{number}")
                for number in range(5)
            )
        )
        assert sorted(answer.status_code for answer in answers) == [204, 409, 409, 409, 409]
        winner = next(number for number, answer in enumerate(answers) if answer.status_code == 204)
        resolved = (await stream.until("permission.resolved"))[-1]
        assert resolved["data"]["status"] == "accept"
        assert resolved["data"]["metadata"]["answered_by"] == f"client-{winner}"
        await stream.until("turn.ended")
        late = await session.post(path, {"reply": "reject"})
        assert late.status_code == 409
        assert late.json()["answeredBy"] == f"client-{winner}"
        assert f"client-{winner}" in late.json()["detail"]
        assert not [
            each
            for each in (await session.client.get("/v1/permissions")).json()["permissions"]
            if each["sessionId"] == name
        ]


@pytest.mark.parametrize(
    ("settings", "status", "by"),
    [
        ({"permissionMode": "allow"}, "accept", "policy"),
        ({"permissionMode": "reject"}, "reject", "policy"),
        ({"permissionRules": [{"reply": "reject", "path": "**"}, {"reply": "allow"}]}, "reject", "policy"),
        ({"permissionTimeoutSeconds": 0.05}, "reject", "expiry"),
    ],
)
async def test_a_policy_answers_for_the_user(
    server: ServerProcess, fresh: Callable[[], str], settings: JsonObject, status: str, by: str
):
    async with made(server, fresh(), **settings) as session:
        events = await session.turn("permission")
        resolved = next(event for event in events if event["type"] == "permission.resolved")
        assert resolved["data"]["status"] == status
        assert resolved["data"]["metadata"]["answered_by"] == by


async def test_a_session_of_an_sdk_is_listed_and_its_permission_answered(
    server: ServerProcess, fresh: Callable[[], str]
):
    async with talk(server, fresh()) as sdk:
        prompt = sdk.start("permission")
        with anyio.fail_after(30):
            waiting: list[JsonObject] = []
            while not waiting:
                listed = (await sdk.client.get("/v1/permissions")).json()["permissions"]
                infos = (await sdk.client.get("/v1/sessions")).json()["sessions"]
                mine = {each["sessionId"] for each in infos if each["nativeSessionId"] == sdk.session_id}
                waiting = [each for each in listed if each["sessionId"] in mine]
        path = f"/v1/sessions/{waiting[0]['sessionId']}"
        reply = await sdk.client.post(
            f"{path}/permissions/{waiting[0]['permissionId']}/reply", json={"reply": "once"}
        )
        assert reply.status_code == 204, reply.text
        assert (await prompt).json()["result"]["stopReason"] == "end_turn"
        assert (await sdk.client.get(path)).json()["managed"] is False


async def test_a_running_turn_is_cancelled_and_an_ended_session_stays_readable(
    server: ServerProcess, fresh: Callable[[], str]
):
    async with made(server, fresh()) as session, session.stream() as stream:
        await session.say("permission")
        await stream.until("permission.requested")
        assert (await session.post("/cancel")).status_code == 204
        ended = (await stream.until("turn.ended"))[-1]
        assert ended["data"]["metadata"]["cancelled"] is True
        assert (await session.post("/terminate")).status_code == 204
        await stream.until("session.ended")
        assert (await session.info())["ended"] is True
        assert (await session.post("/terminate")).status_code == 204
        assert (await session.events())["events"][-1]["type"] == "session.ended"


async def test_the_stream_of_a_turn_that_never_began_ends_with_the_turn(
    server: ServerProcess, fresh: Callable[[], str]
):
    async with made(server, fresh()) as session, session.stream() as stream:
        await session.say("permission")
        await stream.until("permission.requested")
        queued = await session.say("later", idempotency_key="k")
        waiting = asyncio.ensure_future(session.turn("later", idempotency_key="k"))
        assert (await session.post("/terminate")).status_code == 204
        with anyio.fail_after(30):
            events = await waiting
        assert events[-1]["type"] == "turn.ended"
        assert events[-1]["data"]["turn_id"] == queued


async def test_the_stream_of_a_turn_that_has_ended_without_beginning_has_its_end(
    server: ServerProcess, fresh: Callable[[], str]
):
    async with made(server, fresh()) as session, session.stream() as stream:
        await session.say("permission")
        await stream.until("permission.requested")
        queued = await session.say("later", idempotency_key="k")
        assert (await session.post("/terminate")).status_code == 204
        with anyio.fail_after(10):
            events = await session.turn("later", idempotency_key="k")
        assert [(event["type"], event["data"]["turn_id"]) for event in events] == [("turn.ended", queued)]


async def test_open_streams_do_not_hold_up_the_servers_end(tmp_path: Path):
    with our_server(tmp_path) as server:
        async with client_of(server) as client:
            session = Session(client, "s")
            await session.post("", {"agent": "mock"})
            async with session.stream() as plain, session.stream("?include_raw=true") as raw:
                await session.say("permission")
                for stream in (plain, raw):
                    await stream.until("permission.requested")
                waiting = asyncio.ensure_future(session.post("/messages/stream", {"message": "later"}))
                with anyio.fail_after(15):
                    assert await anyio.to_thread.run_sync(server.stop) == 0
                    with suppress(httpx2.HTTPError):  # a stream may be cut where it is
                        await waiting


@pytest.mark.parametrize("form", ["jsonl", "markdown", "html"])
async def test_a_session_is_exported(server: ServerProcess, fresh: Callable[[], str], form: str):
    async with made(server, fresh(), title="</title><script>x") as session:
        await session.turn("markdown")
        await session.turn("diff")
        response = await session.client.get(f"{session.path}/export", params={"format": form})
        assert response.status_code == 200
        assert "sandbox;" in response.headers["content-security-policy"]
        if form == "jsonl":
            lines = [json.loads(line) for line in response.text.splitlines()]
            assert lines == (await session.events())["events"]
        else:
            assert "Mock agent" in response.text
            assert not re.search(r"(?<!\\)<script", response.text)


async def test_the_head_of_an_export_names_no_length_that_it_does_not_have(
    server: ServerProcess, fresh: Callable[[], str]
):
    async with made(server, fresh()) as session:
        response = await session.client.head(f"{session.path}/export", params={"format": "html"})
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        assert "content-length" not in response.headers


async def test_hits_beyond_a_page_are_reached_with_an_offset(server: ServerProcess, fresh: Callable[[], str]):
    async with made(server, fresh()) as session:
        await session.turn("echo a pyroclastic flow")
        query = {"q": "pyroclastic", "limit": 1}
        first = (await session.client.get("/v1/search", params=query)).json()
        second = (await session.client.get("/v1/search", params={**query, "offset": 1})).json()
        assert (first["hasMore"], second["hasMore"]) == (True, False)
        assert first["hits"] != second["hits"]


async def test_words_are_found_and_a_deleted_sessions_are_not(
    server: ServerProcess, fresh: Callable[[], str]
):
    name = fresh()
    async with made(server, name) as session:
        await session.turn("echo a zygomorphic flower")

        async def hits(**query: Any) -> list[JsonObject]:
            response = await session.client.get("/v1/search", params={"q": "zygomorphic", **query})
            assert response.status_code == 200, response.text
            found: list[JsonObject] = response.json()["hits"]
            return found

        found = await hits()
        assert {hit["sessionId"] for hit in found} == {name}
        assert all("[zygomorphic]" in hit["snippet"] for hit in found)
        sequence = found[0]["sequence"]
        event = (await session.events(offset=sequence - 1, limit=1))["events"][0]
        assert "zygomorphic" in json.dumps(event)
        assert len(await hits(limit=1)) == 1
        assert await hits(agent="claude") == []
        assert await hits(session="other") == []
        assert await hits(until="2001-01-01T00:00:00Z") == []
        assert await hits(since="2001-01-01T00:00:00+01:00", until=str(2**53)) == found
        assert await hits(since=str(2**53)) == []
        await session.client.delete(session.path)
        assert await hits() == []


DEEP = "[" * 100_000 + "]" * 100_000
CREATE: list[Any] = [
    None, 7, [], "x", {}, {"agent": None}, {"agent": 7}, {"agent": ""}, {"agent": "no such agent"},
    {"agent": "mock", "permissionMode": "x"}, {"agent": "mock", "permissionMode": 1},
    {"agent": "mock", "directory": "relative"}, {"agent": "mock", "directory": "/a\x00b"},
    {"agent": "mock", "directory": "/" + "a" * 5000}, {"agent": "mock", "title": "t" * 5000},
    {"agent": "mock", "title": []}, {"agent": "mock", "mcpServers": {}}, {"agent": "mock", "mcpServers": [1]},
    {"agent": "mock", "permissionRules": [{}]}, {"agent": "mock", "permissionRules": [{"reply": "x"}]},
    {"agent": "mock", "permissionRules": [{"reply": "allow", "path": "../x"}]},
    {"agent": "mock", "permissionTimeoutSeconds": -1}, {"agent": "mock", "permissionTimeoutSeconds": "1"},
    {"agent": "mock", "model": "\x1b"}, {"agent": "mock", "variant": 1.5},
]  # fmt: skip
MESSAGES: list[Any] = [
    None, [], {}, {"message": None}, {"message": 1}, {"message": ""}, {"message": []}, {"message": [1]},
    {"message": [{}]}, {"message": [{"type": 1}]}, {"message": [{"type": "text"}]},
    {"message": [{"type": "text", "text": 1}]}, {"message": [{"type": "image", "data": 1}]},
    {"message": [{"type": "resource", "resource": "x"}]},
    {"message": [{"type": "text", "text": "a"}] * 10_001},
]  # fmt: skip


async def refused(client: httpx2.AsyncClient, method: str, path: str, content: bytes | None = None) -> None:
    """Check that a request is answered with a problem of the client's making."""
    response = await client.request(
        method, path, content=content, headers={"content-type": "application/json"}
    )
    assert 400 <= response.status_code < 500, (path, content, response.status_code, response.text)
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["status"] == response.status_code


async def test_a_body_that_does_not_fit_is_refused(server: ServerProcess, fresh: Callable[[], str]):
    async with made(server, fresh()) as session:
        new = f"/v1/sessions/{fresh()}"
        raws = [b"", b"{", b"\xff", b'{"message": "\xff"}', DEEP.encode(), b'{"agent": NaN}']
        raws.append(f'{{"message": [{{"type": "x", "y": {DEEP}}}], "agent": {DEEP}}}'.encode())
        for body in CREATE:
            await refused(session.client, "POST", new, json.dumps(body).encode())
        for body in MESSAGES:
            for what in ("/messages", "/messages/stream"):
                await refused(session.client, "POST", session.path + what, json.dumps(body).encode())
        for raw in raws:
            for path in (new, f"{session.path}/messages", f"{session.path}/permissions/p/reply"):
                await refused(session.client, "POST", path, raw)
        for body in (None, {}, {"reply": "maybe"}, {"reply": 1}, {"reply": "once"}):
            await refused(
                session.client, "POST", f"{session.path}/permissions/p/reply", json.dumps(body).encode()
            )
        for body in (None, {}, {"answers": "x"}, {"answers": [["a", 1]]}, {"answers": [["a"]]}):
            await refused(
                session.client, "POST", f"{session.path}/questions/q/reply", json.dumps(body).encode()
            )
        assert (await session.client.get(new)).status_code == 404
        assert (await session.info())["turns"] == []


async def test_a_member_that_is_a_typo_is_refused_by_name(server: ServerProcess, fresh: Callable[[], str]):
    """Ignored, it would change what the request means: this one would be another permission mode."""
    async with made(server, fresh(), _meta={"any": 1}) as session:
        new = f"/v1/sessions/{fresh()}"
        rules = [{"reply": "allow", "_meta": 1}, {"reply": "allow", "kinds": "edit"}]
        cases = [
            (
                new,
                {"agent": "mock", "permisionMode": "plan"},
                "'permisionMode'; did you mean 'permissionMode'",
            ),
            (new, {"agent": "mock", "permission_mode": "plan"}, "did you mean 'permissionMode'"),
            (
                new,
                {"agent": "mock", "permissionRules": rules},
                "'permissionRules[1].kinds'; did you mean 'kind'",
            ),
            (f"{session.path}/messages", {"message": "x", "zzz": 1}, "'zzz'; known here: message"),
            (f"{session.path}/messages/stream", {"message": "x", "zzz": 1}, "'zzz'"),
            (f"{session.path}/permissions/p/reply", {"reply": "once", "bye": "x"}, "'bye'"),
            (f"{session.path}/questions/q/reply", {"answers": [["a"]], "answer": 1}, "'answer'"),
        ]
        for path, body, said in cases:
            response = await session.client.post(path, json=body)
            assert response.status_code == 400, path
            assert response.json()["type"].endswith(":invalid_request")
            assert said in response.json()["detail"]
        assert (await session.client.get(new)).status_code == 404
        everything = {"agentVersion": "1", "title": "t", "variant": None, "_meta": None}  # of the 0.1 API
        response = await session.client.post(new, json={"agent": "mock", **everything})
        assert response.status_code == 200
        await session.client.delete(new)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/sessions?limit=0", "/v1/sessions?limit=-1", "/v1/sessions?limit=x", "/v1/sessions?cursor=x",
        f"/v1/sessions?limit={BIG}", "/v1/sessions/none", "/v1/sessions/none/events",
        "/v1/sessions/none/export",
        "/v1/sessions/none/events/sse", "/v1/sessions/a%00b",
        "/v1/sessions/" + "a" * 300, "/v1/sessions/%ff%0a",
        "/v1/sessions/{id}/events?offset=-1", "/v1/sessions/{id}/events?offset=1.5",
        "/v1/sessions/{id}/events?offset=x", f"/v1/sessions/{{id}}/events?offset={BIG}",
        "/v1/sessions/{id}/events?offset=%D9%A3", "/v1/sessions/{id}/events?limit=-1",
        "/v1/sessions/{id}/events?limit=", "/v1/sessions/{id}/events?include_raw=1",
        "/v1/sessions/{id}/events?includeRaw=yes", f"/v1/sessions/{{id}}/events?offset={BIG - 1}",
        "/v1/sessions/{id}/events/sse?offset=-1", f"/v1/sessions/{{id}}/events/sse?offset={BIG}",
        "/v1/sessions/{id}/events/sse?include_raw=", "/v1/sessions/{id}/export?format=pdf",
        "/v1/search", "/v1/search?q=", "/v1/search?q=%20", "/v1/search?q=" + "a" * 1001,
        "/v1/search?q=a&limit=0",
        "/v1/search?q=a&limit=101", "/v1/search?q=a&offset=-1", "/v1/search?q=a&since=yesterday",
        "/v1/search?q=a&until=99999-01-01T00:00:00Z", "/v1/agents/none/modes", "/v1/agents/none/models",
    ],
)  # fmt: skip
async def test_a_query_that_makes_no_sense_is_refused(
    server: ServerProcess, fresh: Callable[[], str], path: str
):
    async with made(server, fresh()) as session:
        await refused(session.client, "GET", path.replace("{id}", session.id))


async def test_every_route_says_in_the_same_way_that_a_session_is_not_there(server: ServerProcess):
    async with client_of(server, **{"x-request-id": "same"}) as client:
        path = "/v1/sessions/nowhere"
        answers = [
            await client.get(path),
            await client.delete(path),
            *[await client.get(f"{path}/{what}") for what in ("events", "events/sse", "export")],
            *[await client.post(f"{path}/{what}") for what in ("cancel", "terminate", "questions/q/reject")],
            await client.post(f"{path}/messages", json={"message": "x"}),
            await client.post(f"{path}/messages/stream", json={"message": "x"}),
            await client.post(f"{path}/permissions/p/reply", json={"reply": "once"}),
        ]
    assert {answer.status_code for answer in answers} == {404}
    problems = [answer.json() for answer in answers]
    assert problems[0]["sessionId"] == "nowhere"
    assert problems == [problems[0]] * len(problems)


async def test_spaces_around_a_header_are_no_part_of_it(server: ServerProcess, fresh: Callable[[], str]):
    async with made(server, fresh()) as session:
        await session.turn("echo here")
        url = httpx2.URL(server.url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(
            f"GET {session.path}/events/sse HTTP/1.1\r\n".encode()
            + b"Host: localhost\r\nLast-Event-ID: \t2 \t\r\n\r\n"
        )
        with anyio.fail_after(15):
            received = await reader.readuntil(b"\nid: ")
            assert await reader.readexactly(2) == b"3\n", received
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("last_event_id", ["x", "-1", "1.0", str(BIG), "9" * 30, "1, 2"])
async def test_an_absurd_last_event_id_is_refused(
    server: ServerProcess, fresh: Callable[[], str], last_event_id: str
):
    async with made(server, fresh()) as session:
        response = await session.client.get(
            f"{session.path}/events/sse", headers={"last-event-id": last_event_id}
        )
        assert response.status_code == 400


@pytest.mark.parametrize("name", [*sorted(RESERVED), "n" * 257])
async def test_a_client_can_not_answer_in_the_servers_name(
    server: ServerProcess, fresh: Callable[[], str], name: str
):
    async with made(server, fresh()) as session, session.stream() as stream:
        await session.say("permission")
        asked = (await stream.until("permission.requested"))[-1]
        path = f"/permissions/{asked['data']['permission_id']}/reply"
        for refused, body in (
            (path, {"reply": "once"}),
            ("/questions/q/reply", {"answers": [["x"]]}),
            ("/questions/q/reject", {}),
        ):
            answer = await session.post(refused, body, sandbox_agent_client=name)
            assert answer.status_code == 400, refused
            assert "sandbox-agent-client" in answer.json()["detail"]
        assert (
            await session.post(path, {"reply": "once"}, sandbox_agent_client="n" * 256)
        ).status_code == 204


async def test_another_media_type_and_an_absurd_key_are_refused(
    server: ServerProcess, fresh: Callable[[], str]
):
    async with made(server, fresh()) as session:
        form = await session.client.post(f"{session.path}/messages", content=b'{"message": "x"}')
        assert form.status_code == 415
        for key in ("", "k" * 256):
            answer = await session.post("/messages", {"message": "x"}, idempotency_key=key)
            assert answer.status_code == 400


@pytest.mark.parametrize(
    "query",
    [
        '"',
        "a AND",
        "NEAR(",
        "*",
        "a OR b",
        "-a",
        "col:x",
        "'",
        "(((",
        '"a" "',
        "\ud83d\ude00",
        "^a",
        "{a b}:c",
    ],
)
async def test_nothing_in_a_query_is_an_error(server: ServerProcess, query: str):
    async with client_of(server) as client:
        text = query.encode("utf-16", "surrogatepass").decode("utf-16")
        response = await client.get("/v1/search", params={"q": text})
        assert response.status_code == 200, response.text
