"""``python -m benchmarks.processes``: processes of both servers, in turn; also rows of ``make bench``.

A process prints 200 MB, and a follower reads them to the end, without loss. And 1,000 one-shot runs of
`true`, 16 at a time. Rounds alternate; the figures are medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import sys
import tempfile
import time
from base64 import b64decode
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

import uvloop
from tests.support.servers import ServerProcess, our_server, published_server

from benchmarks.load import Connection
from benchmarks.table import Row, show

__all__ = ["follow", "process_rows", "run_many"]

MB = 1_000_000
PRINTED = 200 * MB
RUNS, AT_A_TIME = 1_000, 16
FOLLOWED_BAR, RUNS_BAR = 1.0, 0.8
_ROOT = "/v1/processes"
_BEGIN, _END, _ENTRY, _READ = b'"data":"', b'","encoding"', b'\ndata: {"sequence"', 1 << 20
# The stream of the published server does not end: after so many silent seconds it has.
END_SECONDS = 0.5
# If it is silent for so long before all has arrived, the rest was lost.
LOST_SECONDS = 3.0


def call(port: int, method: str, path: str, body: object = None) -> Any:
    """Send a request and return the response."""
    connection = HTTPConnection("127.0.0.1", port)
    content = None if body is None else json.dumps(body)
    connection.request(method, f"{_ROOT}{path}", content, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = response.read()
    if response.status >= 400:
        raise RuntimeError(f"{method} {path}: {response.status} {answer.decode()}")
    connection.close()
    return json.loads(answer) if answer else None


def follow(port: int, printed: Path) -> Figure:
    """Let a process print a file, and time how fast a follower reads it."""
    call(port, "POST", "/config", {**call(port, "GET", "/config"), "maxLogBytesPerProcess": 256 * MB})
    script = 'read line; exec cat "$0"'
    created = call(port, "POST", "", {"command": "sh", "args": ["-c", script, str(printed)]})
    head = f"GET {_ROOT}/{created['id']}/logs?follow=true HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)) as reader:
        reader.settimeout(LOST_SECONDS)
        reader.sendall(head.encode())
        stream = Stream(reader)
        stream.read()
        begun = stream.last_at
        call(port, "POST", f"/{created['id']}/input", {"data": "\n", "encoding": "utf8"})
        with suppress(TimeoutError):
            while stream.read():
                if stream.printed >= PRINTED:
                    reader.settimeout(END_SECONDS)  # of ours, only the end is left
    call(port, "POST", f"/{created['id']}/kill?waitMs=10000")
    call(port, "DELETE", f"/{created['id']}")
    output = stream.output()
    lost = PRINTED - len(output)
    if not lost and output != printed.read_bytes():
        raise RuntimeError("the output is not what was printed")
    return Figure(len(output) / MB / (stream.last_at - begun), lost)


class Figure(NamedTuple):
    """How much was done in a second, and how many bytes were lost."""

    rate: float
    lost: int


class Stream:
    """The events of a log, of which only the bytes are counted while they arrive.

    Attributes:
        printed: how many bytes of output have arrived, padding included.
        last_at: when the last of them came.
    """

    def __init__(self, reader: socket.socket) -> None:
        self._reader = reader
        self._parts: list[bytes] = []
        self._wanted, self._other = _BEGIN, _END
        self._characters = self._offset = 0
        self._tail = b""
        self.printed = 0
        self.last_at = 0.0

    def read(self) -> int:
        """Read what there is; return how many bytes."""
        part = self._reader.recv(_READ)
        if _BEGIN in part or b"HTTP/1.1" in part or self._wanted is _END:
            self.last_at = time.perf_counter()
        self._parts.append(part)
        text = self._tail + part
        base, at = self._offset - len(self._tail), 0
        while (found := text.find(self._wanted, at)) >= 0:
            at = found + len(self._wanted)
            self._characters += base + found if self._wanted is _END else -(base + at)
            self._wanted, self._other = self._other, self._wanted
        self._offset += len(part)
        self._tail = text[max(at, len(text) - len(_END)) :]
        if self._wanted is _BEGIN:
            self.printed = self._characters * 3 // 4
        return len(part)

    def output(self) -> bytes:
        """Return the output that has arrived."""
        events = b"".join(self._parts).split(_ENTRY)[1:]
        entries = [json.loads(b'{"sequence"' + event[: event.index(b"}") + 1]) for event in events]
        return b"".join(b64decode(entry["data"]) for entry in entries)


async def run_many(port: int) -> float:
    """Return how many one-shot runs of ``true`` end in a second."""
    body = json.dumps({"command": "true"}).encode()
    left = RUNS

    async def run_some() -> None:
        nonlocal left
        connection = Connection(port)
        while left > 0:
            left -= 1
            status, answer = await connection.request("POST", f"{_ROOT}/run", body)
            if status != 200 or json.loads(answer)["exitCode"] != 0:
                raise RuntimeError(f"run: {status} {answer.decode()}")
        connection.close()

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(AT_A_TIME):
            tasks.create_task(run_some())
    return RUNS / (time.perf_counter() - begun)


def process_rows(ours: ServerProcess, peer: ServerProcess, folder: Path, rounds: int) -> list[Row]:
    """Output that is followed, and one-shot runs."""
    printed = folder / "printed"
    printed.write_bytes(b"".join(b"%08d\n" % number for number in range(PRINTED // 9 + 1))[:PRINTED])
    servers = {"ours": ours, "peer": peer}
    followed = _alternate(servers, lambda port: follow(port, printed), rounds)
    printed.unlink()
    runs = _alternate(servers, lambda port: Figure(uvloop.run(run_many(port)), 0), rounds)
    return [
        _row("200 MB printed by a process and followed", "MB/s", followed, FOLLOWED_BAR),
        _row(f"{RUNS:,} runs of true, {AT_A_TIME} at a time", "runs/s", runs, RUNS_BAR),
    ]


def main() -> int:
    """Run all rounds; the exit code is 1 when a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each (default: 5)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sandbox-agent-bench-") as name:
        folder = Path(name)
        with our_server(folder) as ours, published_server(folder) as peer:
            rows = process_rows(ours, peer, folder, options.rounds)
    return 0 if all(row.passed for row in rows) else 1


def _alternate(
    servers: dict[str, ServerProcess], measure: Callable[[int], Figure], rounds: int
) -> dict[str, list[Figure]]:
    """Measure both servers in turn; the order changes every round."""
    figures: dict[str, list[Figure]] = {name: [] for name in servers}
    for number in range(rounds):
        for name in list(servers)[:: 1 if number % 2 == 0 else -1]:
            figures[name].append(measure(servers[name].port))
    return figures


def _row(work: str, unit: str, figures: dict[str, list[Figure]], bar: float) -> Row:
    ours, peer = (statistics.median(each.rate for each in figures[name]) for name in ("ours", "peer"))
    ratio = statistics.median(
        mine.rate / theirs.rate for mine, theirs in zip(figures["ours"], figures["peer"], strict=True)
    )
    lost = [sum(each.lost for each in figures[name]) / MB for name in ("ours", "peer")]
    is_lossy = any(lost)
    notes = [f", {size:,.0f} MB lost" if is_lossy else "" for size in lost]
    return show(
        Row(
            work,
            f"{ours:,.0f} {unit}{notes[0]}",
            f"{peer:,.0f} {unit}{notes[1]}",
            f"{ratio:.2f}x",
            f">= {bar:g}x" + (", none lost" if is_lossy else ""),
            ratio >= bar and not lost[0],
        )
    )


if __name__ == "__main__":
    sys.exit(main())
