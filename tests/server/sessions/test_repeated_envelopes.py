"""Large envelopes that an agent repeats are stored once, and read as it wrote them."""

from __future__ import annotations

import json
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from sandbox_agent.persist.store.view import sqlite_store_driver
from sandbox_agent.persist.transfer.history import read_events
from tests.server.sessions.commands_agent import UPDATE
from tests.server.sessions.stack import Stack, running
from tests.support.servers import put_launcher

pytestmark = pytest.mark.anyio

LINE = json.dumps(
    {"jsonrpc": "2.0", "method": "session/update", "params": {"sessionId": "x", "update": UPDATE}}
).encode()
RESTORES = 4


async def restore(stack: Stack, times: int) -> None:
    """End the session's agent and send a message, so that the agent loads the session, so many times."""
    for _ in range(times):
        for connection in stack.bridge.live():
            await stack.bridge.end(connection)
        assert (await stack.over(await stack.say("hello"))).state == "done"


async def test_what_an_agent_repeats_on_each_load_is_stored_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = str(Path(__file__).with_name("commands_agent.py"))
    put_launcher(tmp_path / "data", "commands", [sys.executable, script])
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    async with running(tmp_path) as stack:
        await stack.create(agent="commands")
        await restore(stack, RESTORES)
    async with running(tmp_path) as stack:  # the server was started again
        await restore(stack, RESTORES)
        session = await stack.recorder.open("s")
        rows = await stack.store.envelopes(session.row.key, after=0, limit=10_000)
        assert [row.data for row in rows].count(LINE) == 1 + 2 * RESTORES
    with closing(sqlite3.connect(tmp_path / "store.db")) as connection:
        sizes = [size for (size,) in connection.execute("SELECT length(data) FROM store_envelopes")]
    assert [size for size in sizes if size >= 16 * 1024] == [len(LINE)]
    driver = sqlite_store_driver(tmp_path / "store.db")
    assert driver is not None
    try:
        events = [event.payload_json async for event in read_events(driver, "s")]
        assert events.count(LINE) == 1 + 2 * RESTORES
    finally:
        await driver.close()
