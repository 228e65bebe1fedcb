"""Section of the suite: words and phrases are found in whole texts."""

from __future__ import annotations

from typing import Any

from sandbox_agent.persist.base import Capability, SessionPersistDriver
from sandbox_agent.testing.driver_data import make_event, make_session
from sandbox_agent.wire.jsonrpc import dumps
from sandbox_agent.wire.records import SessionEvent

# Queries that must not raise an error: syntax of full-text engines, quotes, patterns, empty texts.
_STRANGE = (
    *("", " ", '"', '""', "'", "*", "%", "-", "a* OR b", "AND", "NOT", "NEAR(a b)", "text:a", "a & !b | c:*"),
    *("'; DROP TABLE events; --", "\0", "a\0b", "\ud800", "(", "\\", "{a}", "@field:{x}", "^$", "[a]"),
    *("\U0001f980", "x " * 2_000, "x" * 5_000, '"' * 500),
)


def _update(kind: str, **members: Any) -> bytes:
    params = {"sessionId": "a", "update": {"sessionUpdate": kind, **members}}
    return dumps({"jsonrpc": "2.0", "method": "session/update", "params": params})


def prompt(*texts: str) -> bytes:
    """Return the envelope of what a user says."""
    blocks = [{"type": "text", "text": text} for text in texts]
    return dumps({"jsonrpc": "2.0", "id": 1, "method": "session/prompt", "params": {"prompt": blocks}})


def chunk(text: str) -> bytes:
    """Return the envelope of a piece of an agent's message."""
    return _update("agent_message_chunk", content={"type": "text", "text": text})


def tool(call_id: str, **members: Any) -> bytes:
    """Return the envelope of a tool call, or of an update of one."""
    return _update(
        "tool_call_update" if "title" not in members else "tool_call", toolCallId=call_id, **members
    )


def _output(text: str) -> list[dict[str, Any]]:
    return [{"type": "content", "content": {"type": "text", "text": text}}]


_names = iter(range(2**62))


def said(session_id: str, *payloads: bytes, time: int = 1_700_000_000_000) -> list[SessionEvent]:
    """Return events of the envelopes, all at that time."""
    events = [make_event(f"said-{next(_names)}", session_id, payload=payload) for payload in payloads]
    for event in events:
        event.created_at = time
    return events


async def _found(driver: SessionPersistDriver, query: str, **options: Any) -> list[tuple[str, int]]:
    return [(hit.session_id, hit.sequence) for hit in await driver.search_events(query, **options)]


class SearchingSuite:
    """Searched is what users and agents said and did, up to the last event stored."""

    async def test_search_finds_whole_texts(self, driver: SessionPersistDriver) -> None:
        """Prompts, messages joined from their chunks, tool calls with their output."""
        await driver.update_session(make_session("s", agent="codex"))
        events = said(
            "s",
            prompt("Please tidy the Cellar", "and the attic"),
            chunk("I will look for cob"),
            chunk("webs and sp"),
            chunk("iders."),
            tool("t1", title="Sweep staircase", status="pending"),
            tool("t1", status="completed", content=_output("three woodlice swept")),
            chunk("Done with it."),
        )
        for number, event in enumerate(events):
            event.created_at += number
        await driver.append_events("s", events)
        for query, sequence in (
            ("cellar", 1),
            ("CELLAR attic", 1),
            ('"the attic"', 1),
            ("cobwebs", 2),
            ('"cobwebs and spiders"', 2),
            ('spiders look "i will"', 2),
            ("staircase", 5),
            ("woodlice staircase", 5),
            ("done", 7),
        ):
            assert await _found(driver, query) == [("s", sequence)], query
        for query in (
            "cob",
            "webs and attic",
            '"attic the"',
            "cellar spiders",
            '"spiders sweep"',
            "elephant",
        ):
            assert await _found(driver, query) == [], query
        (hit,) = await driver.search_events("woodlice")
        assert (hit.session_id, hit.agent, hit.sequence, hit.time) == ("s", "codex", 5, events[4].created_at)
        assert "[woodlice]" in hit.snippet

    async def test_search_goes_through_texts_that_no_store_can_hold(
        self, driver: SessionPersistDriver
    ) -> None:
        """Lone surrogates, also two that are one character, and null characters."""
        await driver.update_session(make_session("s"))
        payloads = [prompt("one \ud800 two \0 three"), chunk("crab \ud83e"), chunk("\udd80 shell")]
        await driver.append_events("s", said("s", *payloads))
        assert await _found(driver, "three one") == [("s", 1)]
        assert await _found(driver, "crab shell") == [("s", 2)]
        assert "\U0001f980" in (await driver.search_events("crab"))[0].snippet

    async def test_search_gives_the_newest_first(self, driver: SessionPersistDriver) -> None:
        """Over all sessions or in one, up to the limit."""
        for number in range(12):
            session_id = f"s{number % 3}"
            await driver.update_session(make_session(session_id))
            time = 1_700_000_000_000 + (number * 7) % 12
            await driver.append_events(session_id, said(session_id, prompt("needle"), time=time))
        hits = await driver.search_events("needle")
        assert [hit.time - 1_700_000_000_000 for hit in hits] == list(range(11, -1, -1))
        assert await driver.search_events("needle", limit=5) == hits[:5]
        for limit in (0, -1, -(2**70), 2**70):
            assert await driver.search_events("needle", limit=limit) == hits
        mine = [hit for hit in hits if hit.session_id == "s1"]
        assert len(mine) == 4
        assert await driver.search_events("needle", session_id="s1") == mine
        assert await driver.search_events("needle", session_id="s1", limit=1) == mine[:1]
        assert await driver.search_events("needle", session_id="unknown") == []

    async def test_search_takes_every_query(self, driver: SessionPersistDriver) -> None:
        """No syntax is an error, nor does it harm."""
        await driver.update_session(make_session("s"))
        await driver.append_events("s", said("s", prompt("plain words")))
        for query in _STRANGE:
            await driver.search_events(query)
            await driver.search_events(query, session_id=query)
        assert await _found(driver, "plain") == [("s", 1)]
        assert await _found(driver, "") == []

    async def test_search_knows_what_was_said_since_the_last_one(
        self, driver: SessionPersistDriver, other_driver: SessionPersistDriver
    ) -> None:
        """A continued message or call remains one text, even if another driver stores the rest."""
        await driver.update_session(make_session("s"))
        await driver.append_events("s", said("s", prompt("start"), chunk("the qui")))
        assert await _found(driver, "quick") == []
        assert await _found(driver, "the") == [("s", 2)]
        await other_driver.append_events("s", said("s", chunk("ck brown")))
        assert await _found(driver, '"the quick brown"') == [("s", 2)]
        assert await _found(driver, "qui") == []
        more = said("s", chunk(" fox"), tool("t", title="Jump"), chunk("over"))
        await other_driver.append_events("s", more)
        assert await _found(driver, '"brown fox"') == [("s", 2)]
        assert await _found(driver, "over") == [("s", 6)]
        await driver.append_events("s", said("s", tool("t", status="failed", content=_output("lazy dog"))))
        assert await _found(driver, "jump dog") == [("s", 5)]
        assert await _found(driver, "quick") == [("s", 2)]
        await other_driver.append_events("s", said("s", prompt("again"), chunk("a fox")))
        assert sorted(await _found(driver, "fox")) == [("s", 2), ("s", 9)]

    async def test_search_finds_no_word_of_an_event_that_was_replaced(
        self, driver: SessionPersistDriver
    ) -> None:
        """What the event says now is found."""
        await driver.update_session(make_session("s"))
        events = said("s", prompt("before"), prompt("after"))
        await driver.append_events("s", events)
        assert await _found(driver, "before") == [("s", 1)]
        newer = make_event(events[0].id, "s", 1, payload=prompt("instead"))
        await driver.insert_event("s", newer)
        assert await _found(driver, "before") == []
        assert await _found(driver, "instead") == [("s", 1)]
        assert await _found(driver, "after") == [("s", 2)]

    async def test_search_finds_nothing_of_a_session_that_was_deleted(
        self, driver: SessionPersistDriver, other_driver: SessionPersistDriver
    ) -> None:
        """Nor after a new session of that id is created; other sessions are still found."""
        if Capability.DELETE not in driver.capabilities:
            return
        for session_id in ("s", "kept"):
            await driver.update_session(make_session(session_id))
            await driver.append_events(session_id, said(session_id, prompt(f"needle of {session_id}")))
        assert len(await driver.search_events("needle")) == 2
        await other_driver.delete_session("s")
        assert await _found(driver, "needle") == [("kept", 1)]
        await driver.update_session(make_session("s"))
        await driver.append_events("s", said("s", prompt("haystack")))
        assert await _found(driver, "needle") == [("kept", 1)]
        assert await _found(driver, "haystack") == [("s", 1)]

    async def test_search_does_not_take_a_replay_for_the_users_words(
        self, driver: SessionPersistDriver
    ) -> None:
        """Those of the TypeScript SDK are stored with the prompt."""
        replay = 'Previous session history is replayed below as JSON-RPC envelopes.\n{"text":"ancient"}'
        await driver.update_session(make_session("s"))
        await driver.append_events("s", said("s", prompt(replay, "modern")))
        assert await _found(driver, "ancient") == []
        assert await _found(driver, "modern") == [("s", 1)]

    async def test_search_finds_old_and_new_in_a_long_history(self, driver: SessionPersistDriver) -> None:
        """A hundred turns; each text once, also when it is searched meanwhile."""
        await driver.update_session(make_session("s"))
        for turn in range(100):
            payloads = [prompt(f"turn{turn} common"), *(chunk(f"piece{turn}x{n} ") for n in range(6))]
            await driver.append_events("s", said("s", *payloads))
            if turn % 10 == 0:
                assert await _found(driver, f"turn{turn}") == [("s", turn * 7 + 1)]
        assert len(await driver.search_events("common")) == 100
        for turn in (0, 50, 99):
            assert await _found(driver, f'"piece{turn}x0 piece{turn}x1" piece{turn}x5') == [
                ("s", turn * 7 + 2)
            ]
