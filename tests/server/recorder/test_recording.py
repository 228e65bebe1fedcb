"""What passes through connections becomes sessions, events, turns and permissions."""

import json
from typing import Any

import anyio
import msgspec
import pytest

from sandbox_agent.engine.project import Projector
from sandbox_agent.engine.route import Route, Router
from sandbox_agent.persist.store import Changes, PermissionRow
from sandbox_agent.server.recorder import PublishedSession, Recorder, Tap
from sandbox_agent.wire.sessions import UsageInfo

from ...engine.test_project_traffic import AGENTS, GOLDEN
from .parts import (
    EXITED,
    Clock,
    FaultyStore,
    allow,
    ask,
    begin,
    chunk,
    line,
    managed_row,
    prompt,
    read_all,
    request,
    result,
    settle,
    settled,
    stored,
    turn_row,
    types,
    update,
    user_chunk,
)

pytestmark = pytest.mark.anyio


async def test_a_session_of_a_client_is_listed_with_what_its_agent_told(store: FaultyStore):
    async with Recorder(store).run() as recorder:
        tap = recorder.tap("e1", "server-1", "mock")
        tap.sent(request(0, "initialize"), "")
        tap.received([result(0)])
        tap.sent(request(1, "session/new", cwd="/work"), "")
        tap.received(
            [
                result(
                    1,
                    sessionId="N",
                    modes={"currentModeId": "plan"},
                    models={"currentModelId": "large"},
                    configOptions=[{"id": "t", "category": "thought_level", "currentValue": "high"}],
                ),
                update("N", sessionUpdate="session_info_update", title="A title"),
                update("N", sessionUpdate="current_mode_update", currentModeId="act"),
            ]
        )
        tap.sent(request(2, "session/set_model", sessionId="N", modelId="small"), "")
        tap.received([result(2)])
        live = await settled(recorder, "N")
        row = live.row
    assert (row.managed, row.agent, row.native_session_id, row.server_id) == (False, "mock", "N", "server-1")
    assert (row.title, row.directory, row.agent_mode, row.model) == ("A title", "/work", "act", "small")
    assert row.variant == "high"
    assert await store.session("N") == row
    events = await stored(store, "N")
    assert events[0]["type"] == "session.started"
    assert events[0]["data"]["metadata"] == {
        "agent": "mock",
        "managed": False,
        "server_id": "server-1",
        "directory": "/work",
    }
    envelopes = await store.envelopes(row.key, after=0, limit=100)
    assert [envelope.index for envelope in envelopes] == [1, 2, 3, 4, 5, 6]
    assert [envelope.sender for envelope in envelopes] == [
        "client",
        "agent",
        "agent",
        "agent",
        "client",
        "agent",
    ]
    assert {envelope.connection_id for envelope in envelopes} == {"e1"}
    assert await store.newest_envelopes(0, limit=10) == []  # what belongs to no session is not kept


async def test_a_message_after_the_response_is_completed_when_the_agent_is_silent(
    store: FaultyStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sandbox_agent.server.recorder.worker.LATE_SECONDS", 0.05)
    async with Recorder(store).run() as recorder:
        tap = begin(recorder)
        tap.sent(prompt("N", 2), "")
        tap.received([result(2, stopReason="end_turn"), chunk("N", "too "), chunk("N", "late")])
        live = await settled(recorder, "N")
        with anyio.fail_after(10):
            while types(await stored(store, "N"))[-1] != "item.completed":
                await live.wait_beyond(live.row.last_sequence)
        tap.sent(prompt("N", 3), "")
        tap.received([chunk("N", "next"), result(3, stopReason="end_turn")])
        await settled(recorder, "N")
        events = await stored(store, "N")
    said = [event["data"]["item"]["content"] for event in events if event["type"] == "item.completed"]
    assert [part["text"] for content in said for part in content] == ["go", "too late", "go", "next"]
    # What was stored is what a new server makes of it.
    async with Recorder(store).run() as recorder:
        live = await recorder.open("N")
        assert (live.row.last_sequence, live.interrupted) == (events[-1]["sequence"], False)


async def test_a_turn_has_a_row_with_its_tokens_and_its_share_of_the_cost(store: FaultyStore):
    def cost(amount: float) -> bytes:
        return update(
            "N", sessionUpdate="usage_update", used=7, size=9, cost={"amount": amount, "currency": "USD"}
        )

    async with Recorder(store).run() as recorder:
        tap = begin(recorder)
        for number, total in ((2, 0.5), (3, 0.75)):
            tap.sent(prompt("N", number), "")
            usage = {"inputTokens": 10, "outputTokens": number, "totalTokens": 10 + number}
            tap.received([chunk("N", "hi"), cost(total), result(number, stopReason="end_turn", usage=usage)])
        tap.sent(prompt("N", 4), "")
        tap.received([line(id=4, error={"code": -1, "message": "broken"})])
        tap.sent(prompt("N", 5), "")
        tap.sent(line(method="session/cancel", params={"sessionId": "N"}), "")
        tap.received([result(5, stopReason="cancelled")])
        row = (await settled(recorder, "N")).row
    turns = await store.turns(row.key, limit=10)
    assert [turn.number for turn in turns] == [1, 2, 3, 4]
    assert [turn.state for turn in turns] == ["done", "done", "failed", "cancelled"]
    assert [turn.error for turn in turns] == [None, None, "broken", None]
    assert json.loads(turns[0].prompt) == [{"type": "text", "text": "go"}]
    events = await stored(store, "N")
    for turn in turns:
        assert turn.first_sequence is not None
        assert turn.last_sequence is not None
        assert events[turn.first_sequence - 1]["data"]["turn_id"] == turn.turn_id
        assert events[turn.last_sequence - 1]["type"] == "turn.ended"
    shares = [msgspec.json.decode(turn.usage, type=UsageInfo) for turn in turns[:2] if turn.usage]
    assert [share.cost for share in shares] == [{"USD": 0.5}, {"USD": 0.25}]
    assert [share.output_tokens for share in shares] == [2, 3]
    assert row.usage is not None
    assert msgspec.json.decode(row.usage, type=UsageInfo) == UsageInfo(
        input_tokens=20, output_tokens=5, total_tokens=25, context_used=7, context_size=9, cost={"USD": 0.75}
    )


async def test_a_message_of_the_servers_own_keeps_its_row(store: FaultyStore):
    async with Recorder(store).run() as recorder:
        live = await recorder.create(managed_row(settings=b'{"agent":"mock","permissionTimeoutSeconds":2}'))
        assert live.row.key > 0
        assert types(await stored(store, "managed")) == ["session.started"]
        tap = recorder.tap("e1", "server-1", "mock")
        tap.bind(live)
        tap.sent(request("new", "session/new", cwd="/w"), "")
        tap.received([result("new", sessionId="N1")])
        await settle(recorder)
        assert live.row.native_session_id == "N1"
        await store.commit(Changes(turns=[turn_row(live.row, "turn_a", 7)]))
        tap.sent(prompt("N1", "turn_a"), "")
        tap.received([ask("N1", 0)])
        await settle(recorder)
        turn = await store.turn(live.row.key, turn_id="turn_a")
        assert turn is not None
        assert (turn.state, turn.number, turn.created_at) == ("running", 7, 5)
        asked = (await store.pending_permissions(limit=5))[0][1]
        assert (asked.kind, asked.action, asked.request_id) == ("permission", "write it", b"0")
        assert asked.connection_id == "e1"
        assert asked.expires_at == asked.requested_at + 2000
        tap.sent(allow(0), "policy")
        tap.received([result("turn_a", stopReason="end_turn")])
        await settle(recorder)
        turn = await store.turn(live.row.key, turn_id="turn_a")
        assert turn is not None
        assert turn.state == "done"
        answered = await store.permission(live.row.key, asked.permission_id)
        assert answered is not None
        assert (answered.answered, answered.answered_by) == ("accept", "policy")
        # A restore makes another session of the agent's: it is the same one here.
        later = recorder.tap("e2", "server-2", "mock")
        later.bind(live)
        later.sent(request(1, "session/new", cwd="/w"), "")
        later.received([chunk("N2", "early"), result(1, sessionId="N2")])
        await settle(recorder)
        assert (live.row.native_session_id, live.row.server_id) == ("N2", "server-2")
        assert len(recorder.sessions) == 1


async def test_who_listens_hears_of_each_permission_when_it_is_stored(store: FaultyStore):
    heard: list[tuple[str, str | None, bool]] = []

    def listen(session: PublishedSession, permission: PermissionRow) -> None:
        visible = session.row.last_sequence >= permission.sequence
        heard.append((permission.permission_id, permission.answered, visible))

    def broken(session: PublishedSession, permission: PermissionRow) -> None:
        raise ValueError("a bug of the listener's")

    async with Recorder(store).run() as recorder:
        recorder.listeners.extend([broken, listen])
        tap = begin(recorder)
        tap.sent(prompt("N", 2), "")
        tap.received([ask("N", 0)])
        await settle(recorder)
        assert [answered for _, answered, _ in heard] == [None]
        tap.received([EXITED])
        await settle(recorder)
    assert [answered for _, answered, _ in heard] == [None, "reject"]
    assert all(visible for _, _, visible in heard)


async def test_two_sessions_of_one_name_are_told_apart(store: FaultyStore):
    async with Recorder(store).run() as recorder:
        await recorder.create(managed_row("N"))
        begin(recorder, "N", agent="one", epoch="e1")
        begin(recorder, "N", agent="two", epoch="e2")
        begin(recorder, "../x y", agent="two", epoch="e3")
        await settle(recorder)
        names = {(row.session_id, row.agent) for row in (await store.sessions(limit=9))[0]}
    assert names == {("N", "mock"), ("N-2", "one"), ("N-3", "two"), (".._x_y", "two")}


@pytest.mark.parametrize("restart", [False, True])
async def test_a_session_that_is_loaded_elsewhere_goes_on_and_its_history_is_not_told_twice(
    store: FaultyStore, restart: bool
):
    async with Recorder(store).run() as recorder:
        tap = begin(recorder)
        tap.sent(prompt("N", 2), "")
        tap.received([chunk("N", "hello"), result(2, stopReason="end_turn")])
        tap.received([EXITED])
        tap.close()
        await settle(recorder)
        before = await stored(store, "N")
        if not restart:
            await _load_and_go_on(recorder)
    if restart:
        async with Recorder(store).run() as recorder:
            await _load_and_go_on(recorder)
    events = await stored(store, "N")
    assert events[: len(before)] == before
    texts = [event["data"]["delta"] for event in events if event["type"] == "item.delta"]
    assert texts.count("hello") == 1
    assert "more" in texts
    row = await store.session("N")
    assert row is not None
    assert row.server_id == "server-e2"
    assert [turn.number for turn in await store.turns(row.key, limit=9)] == [1, 2]


async def _load_and_go_on(recorder: Recorder) -> None:
    tap = recorder.tap("e2", "server-e2", "mock")
    tap.sent(request("l", "session/load", sessionId="N", cwd="/w"), "")
    tap.received([user_chunk("N", "go"), chunk("N", "hello"), result("l")])
    tap.sent(prompt("N", "p"), "")
    tap.received([chunk("N", "more", "m2"), result("p", stopReason="end_turn")])
    await settle(recorder)


async def test_a_load_that_fails_makes_no_session(store: FaultyStore):
    async with Recorder(store).run() as recorder:
        tap = recorder.tap("e1", "s", "mock")
        tap.sent(request(1, "session/load", sessionId="gone"), "")
        tap.received([line(id=1, error={"code": 1, "message": "no such session"})])
        await settle(recorder)
    assert (await store.sessions(limit=9))[0] == []
    assert await store.newest_envelopes(0, limit=9) == []


async def test_the_exit_of_an_agent_and_its_garbage_are_in_the_sessions_that_are_open(store: FaultyStore):
    async with Recorder(store).run() as recorder:
        tap = begin(recorder, "A")
        tap.sent(request(2, "session/new"), "")
        tap.received([result(2, sessionId="B")])
        tap.sent(request(3, "session/close", sessionId="B"), "")
        tap.received([result(3)])
        tap.sent(prompt("A", 4), "")
        garbage = line(method="_adapter/invalid_stdout", params={"error": "bad", "raw": "oops"})
        tap.received([garbage, EXITED])
        tap.close()
        await settle(recorder)
    seen = await stored(store, "A")
    assert [event["raw"] for event in seen if event["type"] == "agent.unparsed"] == ["oops"]
    assert seen[-1]["data"]["metadata"]["reason"] == "agent_exited"
    assert "agent.unparsed" not in types(await stored(store, "B"))
    row = await store.session("A")
    assert row is not None
    assert (await store.turns(row.key, limit=1))[0].state == "failed"


async def test_a_connection_that_ends_without_a_word_interrupts_its_turns(store: FaultyStore):
    async with Recorder(store).run() as recorder:
        tap = begin(recorder)
        tap.sent(prompt("N", 2), "")
        tap.close()
        tap.close()
        await settle(recorder)
    assert (await stored(store, "N"))[-1]["data"]["metadata"]["stop_reason"] == "interrupted"


async def test_time_does_not_go_back_within_a_session_when_the_clock_does(store: FaultyStore):
    clock = Clock(5_000)
    async with Recorder(store, clock=clock).run() as recorder:
        tap = begin(recorder)
        clock.now = 10
        tap.sent(prompt("N", 2), "")
        tap.received([chunk("N", "x")])
        live = await settled(recorder, "N")
        await recorder.add_events(live, lambda projector, now: projector.error(now, message="x"))
        clock.now = 6_000
        tap.received([chunk("N", "y")])
        await settle(recorder)
        events = await store.events(live.row.key, after=0, limit=99, max_bytes=1 << 20)
        envelopes = await store.envelopes(live.row.key, after=0, limit=99)
    assert [event.time for event in events] == sorted(event.time for event in events)
    assert events[0].time == 5_000
    assert events[-1].time == 6_000
    assert [envelope.time for envelope in envelopes] == [5_000] * 4 + [6_000]


async def test_what_is_said_and_done_is_found_by_its_words(store: FaultyStore):
    async with Recorder(store).run() as recorder:
        tap = begin(recorder)
        tap.sent(prompt("N", 2, "paint the shed"), "")
        tap.received(
            [
                chunk("N", "A wonder"),
                chunk("N", "ful colour"),
                update(
                    "N",
                    sessionUpdate="tool_call",
                    toolCallId="t",
                    title="Brushwork",
                    status="completed",
                    rawOutput="two coats",
                ),
                result(2, stopReason="end_turn"),
            ]
        )
        await settle(recorder)
    for words in ("shed", "wonderful", "Brushwork", "coats"):
        assert [hit.session_id for hit in await store.search(words, limit=5)][:1] == ["N"], words


async def test_an_envelope_that_can_not_be_projected_is_kept_and_the_session_goes_on(
    store: FaultyStore, monkeypatch: pytest.MonkeyPatch
):
    feed = Projector.feed

    def failing(self: Projector, sender: Any, envelope: bytes, time_ms: int, **more: Any) -> Any:
        events = feed(self, sender, envelope, time_ms, **more)
        if b"poison" in envelope:
            raise ZeroDivisionError("a bug")  # after it has counted its events
        return events

    monkeypatch.setattr(Projector, "feed", failing)
    async with Recorder(store).run() as recorder:
        tap = begin(recorder)
        tap.sent(prompt("N", 2), "")
        tap.received([chunk("N", "a"), chunk("N", "poison"), chunk("N", "b")])
        tap.received([result(2, stopReason="end_turn")])
        other = begin(recorder, "M", epoch="e2")
        other.received([chunk("M", "fine")])
        live = await settled(recorder, "N")
    events = await stored(store, "N")
    (error,) = [event for event in events if event["type"] == "error"]
    assert error["data"]["code"] == "projection_failed"
    index = error["data"]["details"]["envelope"]
    envelopes = await store.envelopes(live.row.key, after=index - 1, limit=1)
    assert b"poison" in envelopes[0].data
    assert events[-1]["type"] == "turn.ended"
    assert [event["data"]["delta"] for event in events if event["type"] == "item.delta"][-1] == "b"
    assert "item.delta" in types(await stored(store, "M"))
    # Opened again, it does not stumble over it.
    async with Recorder(store).run() as recorder:
        again = await recorder.open("N")
        assert again.projection.projector.sequence == again.row.last_sequence


async def test_a_restore_that_the_server_did_not_live_to_tell_of_is_folded_again(
    store: FaultyStore, caplog: pytest.LogCaptureFixture
):
    def loads_session(tap: Tap, number: int) -> None:
        tap.sent(request(number, "session/load", sessionId="N"), "")
        tap.received([user_chunk("N", "go"), chunk("N", "gone"), result(number, configOptions=[])])

    async with Recorder(store).run() as recorder:
        tap = begin(recorder)
        tap.sent(prompt("N", 2), "")
        tap.received([chunk("N", "gone"), result(2, stopReason="end_turn")])
        live = await settled(recorder, "N")
        before = live.row.last_sequence
        await recorder.add_events(live, lambda p, t: p.restoring(t))
        loads_session(tap, 3)
        live = await settled(recorder, "N")
        state = live.projection.projector.snapshot()
    async with Recorder(store).run() as recorder:
        live = await recorder.open("N")
        assert live.projection.projector.snapshot() == state
        # So the next one is no news either.
        tap = recorder.tap("e2", "server-e2", "mock")
        loads_session(tap, 4)
        await settled(recorder, "N")
        assert live.row.last_sequence == before
    assert not caplog.records


@pytest.mark.parametrize("agent", AGENTS)
async def test_recorded_traffic_becomes_stored_sessions_that_can_be_folded_again(
    store: FaultyStore, agent: str
):
    lines = [json.loads(text) for text in (GOLDEN / "traffic" / f"{agent}.ndjson").read_text().splitlines()]
    sent = unrouted = 0
    router = Router()
    async with Recorder(store).run() as recorder:
        tap = recorder.tap("e1", "s", agent)
        for row in lines:
            if row["dir"] in {"c2a", "a2c"}:
                sent += 1
                data = json.dumps(row["msg"]).encode()
                (to,) = router.route("client" if row["dir"] == "c2a" else "agent", [data])
                route = Route(to) if isinstance(to, str) else to
                unrouted += not (route.native or route.held or route.every)
                if row["dir"] == "c2a":
                    tap.sent(data, "")
                else:
                    tap.received([data])
        await settle(recorder)
        live_state = {live.session_id: live.projection.projector.snapshot() for live in recorder.sessions}
    rows, _ = await store.sessions(limit=9)
    assert len(rows) == (2 if agent == "claude" else 1)
    assert sum(row.last_envelope for row in rows) + unrouted == sent
    async with Recorder(store).run() as recorder:
        for row in rows:
            events = await stored(store, row.session_id)
            assert "agent.unparsed" not in types(events)
            live = await recorder.open(row.session_id)
            assert len(await read_all(live)) == live.row.last_sequence
            if not live_state[row.session_id]["turns"]:
                assert live.row.last_sequence == row.last_sequence
                assert live.projection.projector.snapshot() == live_state[row.session_id]
