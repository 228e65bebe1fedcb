"""Terminals beside the published server, in one run: ``python -m benchmarks.terminal``.

50 MB of ``yes`` (75 MiB of output, because a terminal writes a carriage return before each line feed) through
the WebSocket, to a viewer that reads all the time and to one that reads late; and the time from a key to its
echo, a hundredth of a second after the one before.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx2
from tests.support.servers import ServerProcess, our_server, published_server
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

BYTES = 50 * 1024 * 1024
SENT = BYTES // 2 * 3
KEYS = 1000
LATE_SECONDS = 3.0
ROUNDS = 3


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


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        servers = {
            "ours": our_server(Path(folder) / "ours"),
            "published": published_server(Path(folder) / "published"),
        }
        for name in servers:
            (Path(folder) / name).mkdir(exist_ok=True)
        for _ in range(ROUNDS):
            for name, server in servers.items():
                with server:
                    for late in (False, True):
                        took, size = await measure_yes(server, late=late)
                        print(
                            f"{name:10} yes, {'late viewer' if late else 'viewer':11} {took:5.1f} s, "
                            f"{size / 1024 / 1024:5.1f} of {SENT / 1024 / 1024:.1f} MiB"
                            f"{'' if size == SENT else ' (the rest was dropped)'}",
                            flush=True,
                        )
                    times = await measure_echo(server)
                    found = statistics.quantiles(times, n=100)
                    print(
                        f"{name:10} key echo: median {found[49]:.2f} ms, p99 {found[98]:.2f} ms",
                        flush=True,
                    )


if __name__ == "__main__":
    asyncio.run(main())
