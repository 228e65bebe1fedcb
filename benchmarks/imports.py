"""``python -m benchmarks.imports``: seconds that imports into SQLite take, plain and encrypted."""

from __future__ import annotations

import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop

from sandbox_agent import SessionPersistDriver, SQLiteSessionPersistDriver
from sandbox_agent.persist.encrypted.driver import EncryptedSessionPersistDriver
from sandbox_agent.persist.transfer.lines import event_line, import_lines
from sandbox_agent.wire.jsonrpc import dumps
from sandbox_agent.wire.records import SessionEvent, SessionRecord

# Sessions, and events of each.
SHAPES = ((5_000, 2), (1, 50_000))
PAYLOAD = b'{"jsonrpc":"2.0","method":"session/update","params":{"text":"' + b"w" * 200 + b'"}}'


def make_lines(sessions: int, events: int) -> Iterator[bytes]:
    """Yield the lines of an export."""
    for number in range(sessions):
        name = f"session-{number:06}"
        created_at = 1_700_000_000_000 + number
        record = SessionRecord(
            id=name,
            agent="mock",
            agent_session_id="a",
            last_connection_id="connection",
            created_at=created_at,
        )
        yield dumps({"record": record}) + b"\n"
        for index in range(1, events + 1):
            event = SessionEvent(f"{name}-{index}", index, name, created_at, "connection", "agent", PAYLOAD)
            yield event_line(event) + b"\n"
    yield dumps({"end": {"sessions": sessions, "events": sessions * events}}) + b"\n"


async def run() -> None:
    """Print a row for each shape and store."""
    for kind in ("plain", "encrypted"):
        for sessions, events in SHAPES:
            lines = list(make_lines(sessions, events))
            with tempfile.TemporaryDirectory(prefix="sandbox-agent-bench-") as folder:
                inner = SQLiteSessionPersistDriver(Path(folder) / "imported.db")
                target: SessionPersistDriver = inner
                if kind == "encrypted":
                    target = EncryptedSessionPersistDriver(inner, key=secrets.token_bytes(32))
                cpu, wall = time.process_time(), time.perf_counter()
                done = await import_lines(target, lines)
                cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
                await inner.close()
            assert done.stored == sessions * events
            work = f"{kind}, {sessions:,} sessions of {events:,} events"
            print(f"{work:46} {wall:6.2f} s, CPU {cpu:6.2f} s", flush=True)


if __name__ == "__main__":
    sys.exit(uvloop.run(run()))
