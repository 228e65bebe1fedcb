"""``python -m benchmarks.terminal``: terminals of both servers, in turn; also rows of ``make bench``.

50 MB of ``yes`` (75 MiB of output, because a terminal writes a carriage return before each line feed) through
the WebSocket, to a viewer that reads all the time and to one that reads late; and the time from a key to its
echo, a hundredth of a second after the one before.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx2
from tests.support.servers import ServerProcess, our_server, published_server
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from benchmarks.table import Row, show

__all__ = ["terminal_rows"]

BYTES = 50 * 1024 * 1024
SENT = BYTES // 2 * 3
KEYS = 1000
LATE_SECONDS = 3.0
MOST_ECHO_MS = 5.0
MB = 1_000_000


@contextlib.asynccontextmanager
async def view(server: ServerProcess, script: str, *, late: bool = False) -> AsyncGenerator[ClientConnection]:
    """Open the terminal of a script, which waits for a line."""
    body = {"command": "sh", "args": ["-c", f"stty -echo; read go; {script}"], "tty": True}
    async with httpx2.AsyncClient(base_url=server.url) as client:
        process = (await client.post("/v1/processes", json=body)).json()["id"]
    url = f"{server.url.replace('http', 'ws')}/v1/processes/{process}/terminal/ws"
    queue = 1 if late else 64
    async with connect(url, max_size=None, compression=None, max_queue=queue) as socket:
        await socket.recv()  # "ready"
        await type_text(socket, "go\r")
        yield socket


async def type_text(socket: ClientConnection, text: str) -> None:
    data = base64.b64encode(text.encode()).decode()
    await socket.send(json.dumps({"type": "input", "data": data, "encoding": "base64"}))


async def measure_yes(server: ServerProcess, *, late: bool) -> tuple[float, int]:
    """Return the seconds from the first to the last byte, and how many bytes of ``yes`` arrived."""
    size = 0
    async with view(server, f"yes | head -c {BYTES}", late=late) as socket:
        if late:
            await asyncio.sleep(LATE_SECONDS)
        began = time.perf_counter()
        with contextlib.suppress(ConnectionClosed):
            while True:
                message = await socket.recv()
                if isinstance(message, bytes):
                    size += message.count(b"y") * 3
        return time.perf_counter() - began, size


async def measure_echo(server: ServerProcess) -> list[float]:
    """Return the milliseconds from each key to its echo."""
    times: list[float] = []
    async with view(server, "stty raw echo; exec cat > /dev/null") as socket:
        await asyncio.sleep(0.5)
        for _ in range(KEYS):
            began = time.perf_counter()
            await type_text(socket, "x")
            while b"x" not in await socket.recv():  # pyright: ignore[reportOperatorIssue]
                pass
            times.append((time.perf_counter() - began) * 1000)
            await asyncio.sleep(0.01)
    return times


def terminal_rows(ours: ServerProcess, peer: ServerProcess, rounds: int) -> list[Row]:
    """Much output, and single keys."""
    rows: list[Row] = []
    for late in (False, True):
        figures = [
            [asyncio.run(measure_yes(server, late=late)) for server in (ours, peer)] for _ in range(rounds)
        ]
        mine, theirs = zip(*figures, strict=True)
        speeds = [statistics.median(size / took for took, size in each) / MB for each in (mine, theirs)]
        lost = [sum(SENT - size for _, size in each) / rounds / MB for each in (mine, theirs)]
        rows.append(
            show(
                Row(
                    f"50 MB of yes in a terminal, to a viewer that reads {'late' if late else 'at once'}",
                    f"{speeds[0]:,.0f} MB/s, {lost[0]:,.0f} MB lost",
                    f"{speeds[1]:,.0f} MB/s, {lost[1]:,.0f} MB lost",
                    "",
                    "none lost",
                    not lost[0],
                )
            )
        )
    echoes = [[_quantiles(server) for server in (ours, peer)] for _ in range(rounds)]
    middles, tails = (
        [statistics.median(pair[server][quantile] for pair in echoes) for server in (0, 1)]
        for quantile in (49, 98)
    )
    rows.append(
        show(
            Row(
                "key to its echo in a terminal",
                f"p50 {middles[0]:.1f} ms, p99 {tails[0]:.1f}",
                f"p50 {middles[1]:.1f} ms, p99 {tails[1]:.1f}",
                f"{statistics.median(pair[0][98] / pair[1][98] for pair in echoes):.2f}x",
                f"p99 <= {MOST_ECHO_MS:g} ms",
                tails[0] <= MOST_ECHO_MS,
            )
        )
    )
    return rows


def _quantiles(server: ServerProcess) -> list[float]:
    return statistics.quantiles(asyncio.run(measure_echo(server)), n=100)


def main() -> int:
    """Run the rows; the exit code is 1 when a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.terminal", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each row (default: 3)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sandbox-agent-bench-") as name:
        folder = Path(name)
        with our_server(folder) as ours, published_server(folder) as peer:
            rows = terminal_rows(ours, peer, options.rounds)
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
