"""``sdk.sessions`` against a real server: turns, events, permissions, search, export."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from uuid import uuid4

import anyio
import pytest

from sandbox_agent import (
    AgentEvent,
    ConflictError,
    GoneError,
    ItemDeltaData,
    PendingPermission,
    PermissionEventData,
    PermissionRule,
    SandboxAgent,
    ServerSessionNotFoundError,
    SessionAlreadyExistsError,
    TokenInvalidError,
    TurnEventData,
    UniversalEvent,
    UnsupportedAgentError,
)
from sandbox_agent.client.server_sessions.streams import Message
from tests.client.conftest import Front
from tests.client.proxy import LossyProxy
from tests.support.servers import ServerProcess, our_server

pytestmark = pytest.mark.anyio

SECONDS = 60


@pytest.fixture
def name() -> str:
    """The name of a session that no other test has."""
    return f"session {uuid4()}/é"


@pytest.fixture
async def second(shared_server: ServerProcess) -> AsyncIterator[SandboxAgent]:
    """Another client of the shared server."""
    async with SandboxAgent.connect(base_url=shared_server.url) as client:
        yield client


async def turn(
    sdk: SandboxAgent, name: str, message: Message, *, key: str | None = None, raw: bool = False
) -> list[UniversalEvent]:
    """Return the events of a turn."""
    stream = sdk.sessions.stream_turn(name, message, idempotency_key=key, include_raw=raw)
    with anyio.fail_after(SECONDS):
        return [event async for event in stream]


def text(events: list[UniversalEvent]) -> str:
    """Return what the agent said, from the deltas."""
    return "".join(
        event.data.delta
        for event in events
        if isinstance(event.data, ItemDeltaData) and event.source == "agent"
    )


def sequences(events: list[UniversalEvent]) -> list[int]:
    return [event.sequence for event in events]


def turn_id(event: UniversalEvent) -> str | None:
    assert isinstance(event.data, TurnEventData)
    return event.data.turn_id


async def test_a_turn_is_streamed_from_its_beginning_to_its_end(sdk: SandboxAgent, name: str) -> None:
    created = await sdk.sessions.create(name, agent="mock", title="A title")
    assert created.healthy
    assert created.native_session_id
    events = await turn(sdk, name, "help")
    assert events[0].type == "turn.started"
    assert events[-1].type == "turn.ended"
    assert "I am the mock agent" in text(events)
    first = events[0].sequence
    assert sequences(events) == list(range(first, first + len(events)))
    again = await turn(sdk, name, [{"type": "text", "text": "echo blocks"}])
    assert text(again) == "blocks"
    assert again[0].sequence == events[-1].sequence + 1


async def test_messages_that_come_at_once_run_one_after_another(sdk: SandboxAgent, name: str) -> None:
    await sdk.sessions.create(name, agent="mock")
    ids = [await sdk.sessions.post_message(name, f"echo {number}") for number in range(4)]
    ended: list[str | None] = []
    with anyio.fail_after(SECONDS):
        async with aclosing(sdk.sessions.stream_events(name)) as stream:
            async for event in stream:
                if event.type == "turn.ended":
                    ended.append(turn_id(event))
                    if len(ended) == 4:
                        break
    assert ended == ids
    info = await sdk.sessions.get(name)
    assert [(each.turn_id, each.state) for each in info.turns or []] == [(each, "done") for each in ids]


async def test_the_same_key_sends_once_and_finds_the_turn_again(sdk: SandboxAgent, name: str) -> None:
    await sdk.sessions.create(name, agent="mock")
    first = await turn(sdk, name, "echo once", key="k")
    assert await turn(sdk, name, "echo once", key="k") == first
    assert await sdk.sessions.post_message(name, "echo once", idempotency_key="k") == turn_id(first[0])
    with pytest.raises(ConflictError):
        await sdk.sessions.post_message(name, "echo twice", idempotency_key="k")
    assert len((await sdk.sessions.get(name)).turns or []) == 1


async def test_pages_and_the_stream_give_the_same_events(sdk: SandboxAgent, name: str) -> None:
    await sdk.sessions.create(name, agent="mock")
    await turn(sdk, name, "burst 300 40")
    paged: list[UniversalEvent] = []
    more = True
    while more:
        page = await sdk.sessions.get_events(name, offset=len(paged), limit=70)
        assert len(page.events) <= 70
        paged += page.events
        more = page.has_more
    assert sequences(paged) == list(range(1, len(paged) + 1))
    await sdk.sessions.terminate(name)
    with anyio.fail_after(SECONDS):
        streamed = [event async for event in sdk.sessions.stream_events(name)]
    assert streamed[: len(paged)] == paged
    assert streamed[-1].type == "session.ended"
    with anyio.fail_after(SECONDS):
        late = [event async for event in sdk.sessions.stream_events(name, offset=len(streamed) - 2)]
        none = [event async for event in sdk.sessions.stream_events(name, offset=len(streamed))]
    assert late == streamed[-2:]
    assert none == []


async def test_the_envelopes_are_there_for_who_asks(sdk: SandboxAgent, name: str) -> None:
    await sdk.sessions.create(name, agent="mock")
    events = await turn(sdk, name, "echo raw words", raw=True)
    raws = [event.raw for event in events if event.type == "item.delta" and event.source == "agent"]
    assert "".join(raw["params"]["update"]["content"]["text"] for raw in raws) == "raw words"
    page = await sdk.sessions.get_events(name, include_raw=True)
    assert [event for event in page.events if event.sequence >= events[0].sequence] == events


async def test_an_offset_that_the_session_has_not_reached_is_refused(sdk: SandboxAgent, name: str) -> None:
    await sdk.sessions.create(name, agent="mock")
    with pytest.raises(GoneError):
        await sdk.sessions.get_events(name, offset=1000)
    with anyio.fail_after(SECONDS), pytest.raises(GoneError, match="has no event 1000"):
        await anext(sdk.sessions.stream_events(name, offset=1000))


async def test_a_second_client_answers_a_permission(
    sdk: SandboxAgent, second: SandboxAgent, name: str
) -> None:
    await sdk.sessions.create(name, agent="mock")
    events: list[UniversalEvent] = []
    pending: list[PendingPermission] = []
    with anyio.fail_after(SECONDS):
        async with aclosing(sdk.sessions.stream_turn(name, "permission")) as stream:
            async for event in stream:
                events.append(event)
                if event.type == "permission.requested":
                    pending = [
                        asked for asked in await second.sessions.permissions() if asked.session_id == name
                    ]
                    assert [asked.sequence for asked in pending] == [event.sequence]
                    await second.sessions.reply_permission(name, pending[0].permission_id, "once", by="bob")
    answers = [event.data for event in events if event.type == "permission.resolved"]
    assert [answer.status for answer in answers if isinstance(answer, PermissionEventData)] == ["accept"]
    assert "bob" in json.dumps([getattr(answer, "metadata", None) for answer in answers])
    with pytest.raises(ConflictError):
        await sdk.sessions.reply_permission(name, pending[0].permission_id, "reject")
    assert [asked for asked in await sdk.sessions.permissions() if asked.session_id == name] == []


async def test_a_rule_answers_for_the_user(sdk: SandboxAgent, name: str) -> None:
    rules = [PermissionRule(reply="allow")]
    await sdk.sessions.create(name, agent="mock", permission_rules=rules)
    events = await turn(sdk, name, "permission")
    assert [event.data.status for event in events if isinstance(event.data, PermissionEventData)] == [
        "requested",
        "accept",
    ]


async def test_cancel_stops_the_turn_and_keeps_the_session(sdk: SandboxAgent, name: str) -> None:
    await sdk.sessions.create(name, agent="mock")
    with anyio.fail_after(SECONDS):
        async with aclosing(sdk.sessions.stream_turn(name, "sleep 600")) as stream:
            async for event in stream:
                if event.type == "turn.started":
                    await sdk.sessions.cancel(name)
    assert [each.state for each in (await sdk.sessions.get(name)).turns or []] == ["cancelled"]
    assert text(await turn(sdk, name, "echo still here")) == "still here"


@pytest.mark.no_gateway("has a proxy of its own")
async def test_a_turn_survives_connections_that_are_cut(shared_server: ServerProcess, name: str) -> None:
    async with (
        LossyProxy(shared_server.port) as proxy,
        SandboxAgent.connect(base_url=proxy.url) as sdk,
    ):
        await sdk.sessions.create(name, agent="mock")
        events: list[UniversalEvent] = []
        cuts = 0
        with anyio.fail_after(SECONDS):
            async with aclosing(sdk.sessions.stream_turn(name, "burst 4000 200")) as stream:
                async for event in stream:
                    events.append(event)
                    if len(events) % 1000 == 1:
                        cuts += proxy.cut("POST")
        stored = await whole(sdk, name)
        assert [event for event in stored if event.sequence >= events[0].sequence] == events
        assert cuts > 0
        assert len((await sdk.sessions.get(name)).turns or []) == 1


async def whole(sdk: SandboxAgent, name: str) -> list[UniversalEvent]:
    """Return all events, by pages."""
    events: list[UniversalEvent] = []
    while True:
        page = await sdk.sessions.get_events(name, offset=len(events))
        events += page.events
        if not page.has_more:
            assert sequences(events) == list(range(1, len(events) + 1))
            return events


async def test_sessions_are_listed_newest_first_page_by_page(own_server: ServerProcess) -> None:
    async with SandboxAgent.connect(base_url=own_server.url) as sdk:
        for number in range(5):
            await sdk.sessions.create(f"s{number}", agent="mock")
        driven = await sdk.create_session(agent="mock")
        await driven.prompt("echo I am not managed")
        with anyio.fail_after(SECONDS):
            # It is recorded behind the back of its client.
            while len((await sdk.sessions.list()).items) < 6:
                pass
        page = await sdk.sessions.list(limit=2)
        seen = list(page.items)
        while page.next_cursor is not None:
            page = await sdk.sessions.list(limit=2, cursor=page.next_cursor)
            assert len(page.items) <= 2
            seen += page.items
        listed = [session async for session in sdk.sessions.iterate()]
        assert [session.session_id for session in seen] == [session.session_id for session in listed]
        managed = [session.session_id for session in listed if session.managed]
        assert managed == ["s4", "s3", "s2", "s1", "s0"]
        [unmanaged] = [session for session in listed if not session.managed]
        assert unmanaged.native_session_id == driven.agent_session_id
        with anyio.fail_after(SECONDS):
            while "I am not managed" not in text(await whole(sdk, unmanaged.session_id)):
                pass


async def test_search_finds_what_was_said(sdk: SandboxAgent, name: str) -> None:
    await sdk.sessions.create(name, agent="mock")
    word = f"needle{uuid4().hex}"
    await turn(sdk, name, f"echo a {word} in a haystack")
    found = await sdk.sessions.search(word, session_id=name, agent="mock", since=0, limit=10)
    assert {hit.session_id for hit in found.hits} == {name}
    assert f"[{word}]" in found.hits[0].snippet
    first = await sdk.sessions.search(word, limit=1)
    second = await sdk.sessions.search(word, limit=1, offset=1)
    assert (first.has_more, second.has_more) == (True, False)
    assert [*first.hits, *second.hits] == found.hits
    assert (await sdk.sessions.search(word, until=1)).hits == []
    assert (await sdk.sessions.search(word, agent="claude")).hits == []


async def test_a_session_is_exported_as_lines_and_as_documents(sdk: SandboxAgent, name: str) -> None:
    await sdk.sessions.create(name, agent="mock")
    await turn(sdk, name, "echo exported words")
    lines = (await sdk.sessions.export(name)).splitlines()
    assert [json.loads(line)["sequence"] for line in lines] == list(range(1, len(lines) + 1))
    assert b"exported words" in await sdk.sessions.export(name, format="markdown")
    assert b"exported words" in await sdk.sessions.export(name, format="html")


async def test_what_can_not_be_is_said(sdk: SandboxAgent, name: str) -> None:
    with pytest.raises(ServerSessionNotFoundError):
        await sdk.sessions.get(name)
    with pytest.raises(ServerSessionNotFoundError):
        await anext(sdk.sessions.stream_events(name))
    with pytest.raises(ServerSessionNotFoundError):
        await sdk.sessions.post_message(name, "hello")
    with pytest.raises(UnsupportedAgentError):
        await sdk.sessions.create(name, agent="no such agent")
    with pytest.raises(ValueError, match="message is empty"):
        await sdk.sessions.post_message(name, "")
    created = await sdk.sessions.create(name, agent="mock")
    assert await sdk.sessions.create(name, agent="mock") == created
    with pytest.raises(SessionAlreadyExistsError):
        await sdk.sessions.create(name, agent="mock", title="another")


async def test_a_stream_of_a_session_that_is_deleted_ends(sdk: SandboxAgent, name: str) -> None:
    await sdk.sessions.create(name, agent="mock")
    stream = sdk.sessions.stream_events(name)
    assert (await anext(stream)).sequence == 1
    with anyio.fail_after(SECONDS):
        await sdk.sessions.delete(name)
        # With its last event, where that came in time.
        with contextlib.suppress(ServerSessionNotFoundError):
            assert [event.type async for event in stream][-1] == "session.ended"
    with pytest.raises(ServerSessionNotFoundError):
        await sdk.sessions.get(name)


async def test_a_wrong_token_is_refused(tmp_path_factory: pytest.TempPathFactory, front: Front) -> None:
    with our_server(tmp_path_factory.mktemp("token"), token="right-token") as server:
        async with SandboxAgent.connect(
            base_url=front(server).url, token="wrong", skip_health_check=True
        ) as sdk:
            with pytest.raises(TokenInvalidError):
                await sdk.sessions.list()
            with pytest.raises(TokenInvalidError):
                await anext(sdk.sessions.stream_events("s"))


async def test_the_text_of_an_event_can_be_printed_whatever_the_agent_says(sdk: SandboxAgent) -> None:
    name = f"s-{uuid4()}"
    await sdk.sessions.create(name, agent="claude")
    turn = [event async for event in sdk.sessions.stream_turn(name, "surrogate")]
    page = await sdk.sessions.get_events(name, include_raw=True)
    for events in (turn, page.events):
        said = {event.data.delta: event.raw for event in events if isinstance(event.data, ItemDeltaData)}
        assert "\ufffd" in said
        "".join(said).encode()
    assert r"\ud83d" in str(said["\ufffd"])  # the agent's envelope is unchanged


async def test_the_client_has_the_calls_of_sessions_that_the_typescript_sdk_has_on_it(
    sdk: SandboxAgent, name: str
) -> None:
    created = await sdk.create_session(name, agent="mock", title="From the client")
    assert created.healthy
    assert (await sdk.sessions.get(name)).title == "From the client"
    assert await sdk.get_session(name) is None, "a session of the server is not one of the store"
    turn_id = await sdk.post_message(name, "echo good morning", idempotency_key="once")
    assert await sdk.post_message(name, "echo good morning", idempotency_key="once") == turn_id
    events: list[AgentEvent] = []
    with anyio.fail_after(SECONDS):
        async with aclosing(sdk.stream_events(name, offset=1)) as stream:
            async for event in stream:
                events.append(event)
                if event.type == "turn.ended":
                    break
    assert text([*events]) == "good morning"
    assert events[0].sequence == 2
    page = await sdk.get_events(name, offset=1, limit=2)
    assert (sequences([*page.events]), page.has_more) == ([2, 3], True)
    assert await sdk.create_session(name, agent="mock", title="From the client") == created
