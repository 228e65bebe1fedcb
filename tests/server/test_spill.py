"""More events than memory holds: late, slow and stalled readers get each of them exactly once."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import anyio
import pytest

from tests.server.talk import Stream, talk
from tests.support.effort import repeats
from tests.support.servers import ServerProcess, our_server

pytestmark = pytest.mark.anyio

EVENTS = repeats(40_000, 200_000)
MEMORY = 1_000_000


@pytest.fixture(params=["memory", "sqlite"])
def spilling(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[ServerProcess]:
    """A server whose memory is soon full."""
    store = "memory" if request.param == "memory" else f"sqlite:{tmp_path}/store.db"
    with our_server(tmp_path, "--feed-memory-bytes", str(MEMORY), "--store", store) as running:
        yield running


class Count:
    """Counts numbered chunks without keeping them."""

    def __init__(self, first_id: int = 0) -> None:
        self.last_id = first_id
        self.chunks = 0
        self.answered = False

    async def read(self, stream: Stream, *, up_to: int | None = None, pause: float = 0.0) -> None:
        """Read until the turn has ended, or up to an id; each event must be the next."""
        while not self.answered and (up_to is None or self.last_id < up_to):
            event = await stream.next()
            assert event is not None
            stream.events.clear()
            assert event.event == "message"
            assert event.id == str(self.last_id + 1)
            self.last_id += 1
            if b"agent_message_chunk" in event.data:
                self.chunks += 1
                assert b'"text":"%06d' % (self.chunks % 1_000_000) in event.data
                if pause and self.chunks % 20_000 == 0:
                    await anyio.sleep(pause)  # what makes this reader slow; nothing waits for it
            self.answered = b"stopReason" in event.data


@pytest.mark.loops
@pytest.mark.soak_with("memory")
async def test_every_reader_gets_all_exactly_once_however_late_slow_or_stalled(
    spilling: ServerProcess,
) -> None:
    async with talk(spilling) as talking:
        counts = {name: Count() for name in ("fast", "slow", "stalled", "hopping", "late")}
        before = spilling.memory()

        async def read(name: str, pause: float = 0.0) -> None:
            async with talking.stream() as stream:
                await counts[name].read(stream, pause=pause)

        async def hop() -> None:
            count = counts["hopping"]
            while not count.answered:
                async with talking.stream(count.last_id) as stream:
                    await count.read(stream, up_to=count.last_id + 37_123)

        async with talking.stream() as stalled:
            await counts["stalled"].read(stalled, up_to=1)
            with anyio.fail_after(110):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(read, "fast")
                    tasks.start_soon(read, "slow", 0.05)
                    tasks.start_soon(hop)
                    answer = await talking.prompt(f"burst {EVENTS} 300")
                    assert answer["result"]["stopReason"] == "end_turn"
                await counts["stalled"].read(stalled)
                await read("late")
        assert {name: count.chunks for name, count in counts.items()} == dict.fromkeys(counts, EVENTS)
        # The full feed has 98 MB. In memory are the bound, SQLite's cache, and what is on its way to readers.
        assert spilling.memory() - before < 65_000_000


async def test_a_restarted_server_opens_the_store_of_a_killed_one_and_begins_anew(tmp_path: Path) -> None:
    store = f"sqlite:{tmp_path}/store.db"
    with our_server(tmp_path, "--feed-memory-bytes", "1000", "--store", store) as server:
        async with talk(server) as talking:
            await talking.prompt("burst 5000 100")
            async with talking.stream() as stream:
                await stream.until("end_turn")
            assert segments(tmp_path / "store.db") > 0
            server.kill()
            server.start()
            await talking.open()
            await talking.prompt("burst 3000 100")
            async with talking.stream(stream.ids[-1], epoch=stream.epoch) as after:
                reset = await after.next()
                assert reset is not None
                assert reset.event == "reset"
                await after.until("end_turn")
                assert after.ids == list(range(len(after.ids)))
            await talking.delete()
            assert segments(tmp_path / "store.db") == 0


def segments(path: Path) -> int:
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute("SELECT count(*) FROM feed_segments").fetchone()[0])
    finally:
        connection.close()


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_second_server_on_the_same_store_is_refused_with_one_line(tmp_path: Path, how: str) -> None:
    store = f"sqlite:{tmp_path}/store.db"
    (tmp_path / "two").mkdir()
    with our_server(tmp_path, "--store", store) as first:
        command = [sys.executable, "-m", "sandbox_agent.cli.main", "server", "--port", "0", "--no-token"]
        second = subprocess.run([*command, "--store", store], capture_output=True, text=True, timeout=60)
        assert second.returncode == 74
        said = [line for line in second.stderr.splitlines() if " INFO " not in line]
        assert len(said) == 1, second.stderr
        assert "belongs to another running server" in said[0]
        assert "--store" in said[0]
        first.kill() if how == "kill" else first.stop()
        with our_server(tmp_path / "two", "--store", store):
            pass
