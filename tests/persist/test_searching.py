"""What a query finds in a text, and which texts a session's events make."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_agent.engine.restore.replay import build_replay
from sandbox_agent.persist.folding import MAX_TEXT, Folder, Said
from sandbox_agent.persist.memory import InMemorySessionPersistDriver
from sandbox_agent.persist.searching import Query
from sandbox_agent.testing.drivers import make_event, make_session
from sandbox_agent.wire.records import SessionEvent


def envelope(method: str, **params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "method": method, "params": params}).encode()


def prompt(*texts: str) -> bytes:
    return envelope("session/prompt", prompt=[{"type": "text", "text": text} for text in texts])


def update(kind: str, **members: Any) -> bytes:
    return envelope("session/update", update={"sessionUpdate": kind, **members})


def chunk(text: str, **members: Any) -> bytes:
    return update("agent_message_chunk", content={"type": "text", "text": text}, **members)


def output(text: str) -> list[dict[str, Any]]:
    return [{"type": "content", "content": {"type": "text", "text": text}}]


def numbered(payloads: list[bytes]) -> list[SessionEvent]:
    return [make_event(f"e{n}", index=n, payload=payload) for n, payload in enumerate(payloads, 1)]


def fold(events: list[SessionEvent]) -> list[Said]:
    folder = Folder()
    for event in events:
        folder.add(event)
    return sorted([*folder.finished(), *folder.unfinished()])


def texts(*payloads: bytes) -> list[tuple[int, str]]:
    return [(said.first, said.text) for said in fold(numbered(list(payloads)))]


def test_chunks_of_a_message_are_one_text() -> None:
    assert texts(prompt("Hi"), chunk("Hel"), update("usage_update"), chunk("lo"), prompt("Bye")) == [
        (1, "Hi"),
        (2, "Hello"),
        (5, "Bye"),
    ]


def test_a_message_ends_where_another_one_or_a_tool_begins() -> None:
    assert texts(
        chunk("one", messageId="1"),
        chunk("two", messageId="2"),
        update("tool_call", toolCallId="t", title="Read notes.md", status="pending"),
        chunk("three"),
        update("tool_call_update", toolCallId="t", status="completed", content=output("contents")),
        chunk("four"),
        update("agent_thought_chunk", content={"type": "text", "text": "hidden"}),
        chunk("five"),
    ) == [(1, "one"), (2, "two"), (3, "Read notes.md\ncontents"), (4, "three"), (6, "four"), (8, "five")]


def test_a_tools_raw_output_is_found_where_it_has_no_content() -> None:
    assert texts(update("tool_call", toolCallId="t", title="ls", rawOutput={"stdout": "a.txt"})) == [
        (1, "ls\na.txt")
    ]


def test_what_says_nothing_or_cannot_be_read_is_left_out() -> None:
    broken = [b"{", b'{"prompt":', b"[1, 2]", b'{"method":"session/prompt","params":[]}', chunk("  ")]
    strange = [update("tool_call", title=3, content=7), prompt(), envelope("session/prompt", prompt="x")]
    assert texts(*broken, *strange, b'{"jsonrpc":"2.0","id":1,"result":{}}') == []


def test_replays_are_not_the_users_words() -> None:
    told = build_replay(numbered([prompt("secret plan")]), 1, max_events=9, max_chars=9_000).text
    assert told is not None
    peer = "Previous session history is replayed below as JSON-RPC envelopes.\n" + '{"text":"secret plan"}'
    assert texts(prompt(told, "go on"), prompt(peer, "and on")) == [(1, "go on"), (2, "and on")]


def test_a_text_without_end_is_cut_in_pieces() -> None:
    pieces = texts(*[chunk("x" * (MAX_TEXT // 2))] * 5)
    assert [(first, len(text)) for first, text in pieces] == [
        (1, MAX_TEXT),
        (3, MAX_TEXT),
        (5, MAX_TEXT // 2),
    ]


PAYLOADS = st.lists(
    st.sampled_from(
        [
            prompt("ask"),
            chunk("a"),
            chunk("b", messageId="1"),
            update("tool_call", toolCallId="t", title="T"),
            update("tool_call_update", toolCallId="t", content=output("out")),
            update("tool_call_update", toolCallId="t", status="completed"),
            update("tool_call", toolCallId="u", title="U"),
            update("tool_call_update", toolCallId="u", status="failed"),
            update("plan", entries=[]),
        ]
    ),
    max_size=25,
)


@given(PAYLOADS, st.data())
def test_folding_on_gives_what_folding_from_the_beginning_gives(
    payloads: list[bytes], data: st.DataObject
) -> None:
    events = numbered(payloads)
    middle = data.draw(st.integers(0, len(events)))
    folder = Folder()
    for event in events[:middle]:
        folder.add(event)
    kept = [said for said in folder.finished() if said.first < folder.resume_at]
    assert all(said.first >= folder.resume_at for said in folder.unfinished())
    assert sorted([*kept, *fold(events[folder.resume_at - 1 :])]) == fold(events)


@pytest.mark.parametrize(
    ("query", "text", "snippet"),
    [
        ("fox", "The quick brown Fox.", "The quick brown [Fox]."),
        ('quick "BROWN fox"', "The quick brown Fox.", "The [quick] [brown Fox]."),
        ("brown.fox", "The quick brown fox", "The quick [brown fox]"),
        ("cafe", "Un Café, un cafe\u0301", "Un [Café], un [cafe\u0301]"),
        ("e\u0301te\u0301", "l'ÉTÉ", "l'[ÉTÉ]"),
        ("a a", "a b a", "[a] b [a]"),
        ('"a b" "b a"', "a b a", "[a b a]"),
        ("brow", "brown", None),
        ('"brown quick"', "quick brown", None),
        ("quick cat", "quick fox", None),
        ("", "text", None),
        ('"" - *', "text * -", None),
    ],
)
def test_a_query_finds_whole_words_and_phrases(query: str, text: str, snippet: str | None) -> None:
    assert Query(query).snippet(text) == snippet


def test_a_snippet_is_the_words_around_the_place() -> None:
    words = [f"w{number}" for number in range(100)]
    assert Query("w50").snippet(" ".join(words)) == (
        "…" + " ".join(words[46:50]) + " [w50] " + " ".join(words[51:70]) + "…"
    )
    assert Query("w0").snippet(" ".join(words)) == "[w0] " + " ".join(words[1:24]) + "…"
    assert Query("w99").snippet(" ".join(words)) == "…" + " ".join(words[76:99]) + " [w99]"


@given(st.text(), st.text())
def test_no_query_is_an_error(query: str, text: str) -> None:
    snippet = Query(query).snippet(text)
    assert snippet is None or "[" in snippet


@pytest.mark.anyio
async def test_a_driver_without_an_index_gives_the_newest_hits_first() -> None:
    driver = InMemorySessionPersistDriver()
    for number in range(150):
        session_id = f"s{number}"
        event = make_event(f"e{number}", session_id, payload=prompt(f"needle {number}"))
        event.created_at = number
        await driver.update_session(make_session(session_id, agent="codex"))
        await driver.append_events(session_id, [event])
    hits = await driver.search_events("NEEDLE")
    assert [hit.session_id for hit in hits] == [f"s{number}" for number in range(149, 49, -1)]
    assert (hits[0].agent, hits[0].time, hits[0].sequence) == ("codex", 149, 1)
    assert hits[0].snippet == "[needle] 149"
    assert [hit.session_id for hit in await driver.search_events("needle", limit=2)] == ["s149", "s148"]
    (hit,) = await driver.search_events("needle", session_id="s7")
    assert hit.session_id == "s7"
    assert await driver.search_events("needle", session_id="nobody") == []
