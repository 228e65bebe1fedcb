"""One SQLite file under both SDKs in turn: each goes on where the other one stopped."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from sandbox_agent.persist.sqlite.driver import SQLiteSessionPersistDriver
from tests.interop.conftest import RunningServer
from tests.interop.peers import PYTHON, TYPESCRIPT, open_peer
from tests.interop.seen import Event, indexes, text_of

pytestmark = pytest.mark.anyio

ORDERS = pytest.mark.parametrize(
    "order",
    [
        pytest.param([TYPESCRIPT, PYTHON, TYPESCRIPT, PYTHON], id="theirs-first"),
        pytest.param([PYTHON, TYPESCRIPT, PYTHON, TYPESCRIPT], id="ours-first"),
    ],
)
SESSION = "kept-in-one-file"
# A short one: it is in many envelopes, and the published SDK replays at most 12,000 characters of them.
CWD = "/tmp"


def rows(file: Path) -> list[tuple[int, str, str]]:
    """Return each stored event's index, sender and payload, read by neither SDK."""
    with closing(sqlite3.connect(file)) as connection:
        query = (
            "SELECT event_index, sender, payload_json FROM events WHERE session_id = ? ORDER BY event_index"
        )
        return connection.execute(query, (SESSION,)).fetchall()


def prompts_of(events: Sequence[Event]) -> list[str]:
    """Return what the user said."""
    payloads = [event["payload"] for event in events]
    return [p["params"]["prompt"][-1]["text"] for p in payloads if p.get("method") == "session/prompt"]


@ORDERS
async def test_a_session_goes_on_when_the_other_sdk_opens_the_file(
    order: list[str], server: RunningServer, tmp_path: Path
) -> None:
    file = tmp_path / "sessions.db"
    before: list[Event] = []
    texts: list[str] = []
    told: list[str] = []
    for round_number, sdk in enumerate(order, 1):
        async with open_peer(sdk, file) as peer:
            await peer.connect(server.url)
            if round_number == 1:
                await peer.create(server.agent, id=SESSION, cwd=CWD)
            else:
                # All that the other one wrote is there, field for field and payload for payload.
                assert await peer.sessions() == [SESSION]
                assert await peer.events(SESSION) == before
                record = await peer.record(SESSION)
                assert (record["agent"], record["sessionInit"]["cwd"]) == (server.agent, CWD)
                resumed = await peer.resume(SESSION)
                assert resumed["createdAt"] == record["createdAt"]
                # Ours goes on in the agent's own session, the published one makes another.
                assert (resumed["agentSessionId"] == record["agentSessionId"]) is (sdk == PYTHON)
            text = f"round {round_number} by {sdk} 👋"
            assert await peer.prompt(SESSION, f"echo {text}") == "end_turn"
            await peer.seen.says(SESSION, text)
            await peer.dispose()
            after = await peer.events(SESSION)
            heard, told = told, server.told((await peer.record(SESSION))["agentSessionId"])
        # The agent's session has all earlier rounds, and then what the user said.
        assert told[-1] == f"echo {text}"
        assert all(earlier in "".join(told[:-1]) for earlier in texts)
        if sdk == PYTHON:
            assert told[:-1] == heard
        else:
            assert len(told) == (2 if texts else 1)
        texts.append(text)
        assert after[: len(before)] == before
        assert len(after) > len(before)
        stored = rows(file)
        assert [index for index, _, _ in stored] == list(range(1, len(stored) + 1))
        assert indexes(after) == [index for index, _, _ in stored]
        assert [event["payload"] for event in after] == [json.loads(payload) for _, _, payload in stored]
        before = after

    assert text_of(before) == "".join(texts)
    assert prompts_of(before) == [f"echo {text}" for text in texts]


@ORDERS
async def test_a_long_history_is_paged_alike_when_the_other_sdk_reads_it(
    order: list[str], server: RunningServer, tmp_path: Path
) -> None:
    file = tmp_path / "sessions.db"
    writer, reader = order[:2]
    async with open_peer(writer, file) as peer:
        await peer.connect(server.url)
        await peer.create(server.agent, id=SESSION, cwd=str(tmp_path))
        await peer.prompt(SESSION, "burst 1500 20")
        await peer.seen.says(SESSION, "001500 ")
        await peer.dispose()
        written = await peer.events(SESSION)
    assert len(written) > 1_500
    async with open_peer(reader, file) as peer:
        await peer.connect(server.url)
        assert await peer.events(SESSION) == written
        await peer.resume(SESSION)
        assert await peer.prompt(SESSION, "echo after the burst") == "end_turn"
        await peer.seen.says(SESSION, "after the burst")
        await peer.dispose()
        after = await peer.events(SESSION)
    assert after[: len(written)] == written
    assert indexes(after) == list(range(1, len(after) + 1))


async def test_both_sdks_number_without_clashes_when_they_write_one_session_in_turns(
    server: RunningServer, tmp_path: Path
) -> None:
    file = tmp_path / "sessions.db"
    async with open_peer(PYTHON, file) as ours, open_peer(TYPESCRIPT, file) as theirs:
        # Our driver makes the file, so the unique index guards what the other one writes.
        await ours.connect(server.url)
        await ours.create(server.agent, id=SESSION, cwd=str(tmp_path))
        assert await ours.prompt(SESSION, "echo one") == "end_turn"
        await theirs.connect(server.url)
        await theirs.resume(SESSION)
        assert await theirs.prompt(SESSION, "echo two") == "end_turn"
        await theirs.seen.says(SESSION, "two")
        await theirs.dispose()
        await ours.resume(SESSION)
        assert await ours.prompt(SESSION, "echo three") == "end_turn"
        await ours.dispose()
        events = await ours.events(SESSION)
    assert indexes(events) == list(range(1, len(events) + 1))
    assert prompts_of(events) == ["echo one", "echo two", "echo three"]
    assert text_of(events) == "onetwothree"


async def test_typescript_sdk_goes_on_with_a_file_in_which_ours_claimed_and_searched(
    server: RunningServer, tmp_path: Path
) -> None:
    file = tmp_path / "sessions.db"
    async with open_peer(PYTHON, file) as ours:
        await ours.connect(server.url)
        await ours.create(server.agent, id=SESSION, cwd=str(tmp_path))
        assert await ours.prompt(SESSION, "echo one marmalade") == "end_turn"
        await ours.dispose()
    driver = SQLiteSessionPersistDriver(file)
    generation = await driver.claim_session(SESSION)
    assert {hit.session_id for hit in await driver.search_events("marmalade")} == {SESSION}
    await driver.close()
    async with open_peer(TYPESCRIPT, file) as theirs:
        await theirs.connect(server.url)
        await theirs.resume(SESSION)
        assert await theirs.prompt(SESSION, "echo two walnut") == "end_turn"
        await theirs.seen.says(SESSION, "two walnut")
        await theirs.dispose()
        events = await theirs.events(SESSION)
    assert prompts_of(events) == ["echo one marmalade", "echo two walnut"]
    driver = SQLiteSessionPersistDriver(file)
    assert await driver.last_event_index(SESSION) == len(events)
    # What the user said and what the agent said.
    assert len(await driver.search_events("walnut")) == 2
    # What was said before is in the replay, too, which nobody said.
    assert len(await driver.search_events("marmalade")) == 2
    assert await driver.claim_session(SESSION) > generation
    await driver.close()


async def test_what_was_chosen_in_python_survives_a_resume_by_the_published_sdk(
    server: RunningServer, tmp_path: Path
) -> None:
    file = tmp_path / "sessions.db"
    async with open_peer(PYTHON, file) as peer:
        await peer.connect(server.url)
        created = await peer.create(server.agent, id=SESSION, cwd=str(tmp_path), permission_policy="reject")
        assert await peer.prompt(SESSION, "echo by ours") == "end_turn"
        await peer.dispose()
    member = dict(created["sessionInit"]["_meta"]["sandbox-agent"])
    assert re.fullmatch("[0-9a-f]{64}", member.pop("arguments"))
    assert member == {"version": 1, "chosen": {"permissionPolicy": "reject"}}
    assert list(created["sessionInit"]["_meta"]) == ["sandbox-agent"]
    async with open_peer(TYPESCRIPT, file) as peer:
        await peer.connect(server.url)
        await peer.resume(SESSION)
        assert await peer.prompt(SESSION, "echo by theirs") == "end_turn"
        await peer.dispose()
        record = await peer.record(SESSION)
    # It sends the record's session_init to the agent as it is, and keeps it.
    assert record["sessionInit"] == created["sessionInit"]
    async with open_peer(PYTHON, file) as peer:
        await peer.connect(server.url)
        resumed = await peer.resume(SESSION)
        assert resumed["sessionInit"] == created["sessionInit"]
        assert await peer.prompt(SESSION, "echo by ours again") == "end_turn"
        await peer.dispose()
        opened = [
            event["payload"]["params"]
            for event in await peer.events(SESSION)
            if event["payload"].get("method") in {"session/new", "session/resume", "session/load"}
        ]
    # Only the published SDK's session/new carries our member.
    assert ["_meta" in params for params in opened] == [False, True, False]
