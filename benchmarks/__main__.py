"""``python -m benchmarks``: all rows side by side in one run; prints a table, writes RESULTS.md.

Rounds alternate between ours and the peer's, so that a machine that changes its speed changes both. Each
figure is the median of its rounds, each ratio the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import uvloop
from tests.support.npm import BETTER_SQLITE, PUBLISHED_SDK, node_modules
from tests.support.servers import ServerProcess, our_server, published_server, put_launcher

from benchmarks.driver_rows import driver_rows
from benchmarks.files import file_rows
from benchmarks.footprint import idle_viewers, stalled_reader
from benchmarks.history import fill
from benchmarks.latency import run_latency
from benchmarks.processes import process_rows
from benchmarks.sdk import run_turn
from benchmarks.sessions import follow, idle_session_viewers, record, run_pages, run_searches, settle
from benchmarks.stream import Burst, run_burst
from benchmarks.table import DriverRow, Row, as_markdown, show
from benchmarks.terminal import terminal_rows

T = TypeVar("T")

OURS, PEER = "mock", "claude"  # the same agent: the peer has it behind one of its own names
RESULTS = Path(__file__).parent / "RESULTS.md"
MILLION = 1_000_000
RECORDED = 200_000
CLOCK_AGENT = Path(__file__).parent / "clock_agent.py"
# A round of a small request is short, and the machine's speed drifts by more than what is measured.
LATENCY_ROUNDS = 6
MEBIBYTE = 1024 * 1024


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop, as the servers' clients do."""
    return uvloop.run(coroutine)


def bursts(ours: ServerProcess, peer: ServerProcess, rounds: int) -> list[Row]:
    """Events through the server."""
    rows: list[Row] = []
    for events, size, readers, bar in ((20_000, 200, 1, 5.0), (20_000, 200, 10, 10.0), (2_000, 8192, 1, 1.8)):
        pairs = [
            (
                run(run_burst(ours.port, OURS, events=events, size=size, readers=readers)),
                run(run_burst(peer.port, PEER, events=events, size=size, readers=readers)),
            )
            for _ in range(rounds)
        ]
        lost = sum(mine.lost for mine, _ in pairs)
        lost_by_peer = sum(theirs.lost for _, theirs in pairs)
        mine = statistics.median(mine.events_per_second for mine, _ in pairs)
        theirs = statistics.median(theirs.events_per_second for _, theirs in pairs)
        ratio = statistics.median(mine.events_per_second / theirs.events_per_second for mine, theirs in pairs)
        rows.append(
            show(
                Row(
                    f"{events:,} events of {size:,} B, {readers} reader{'s' * (readers > 1)}",
                    f"{mine:,.0f}/s, {lost} lost",
                    f"{theirs:,.0f}/s, {lost_by_peer:,} lost",
                    f"{ratio:.2f}x",
                    f">= {bar:g}x, none lost",
                    ratio >= bar and lost == 0,
                )
            )
        )
    return rows


def latency(
    start: Callable[[], ServerProcess], start_peer: Callable[[], ServerProcess], rounds: int
) -> list[Row]:
    """Request and response, on pairs of fresh servers: two processes of one program differ by a tenth."""
    pairs: dict[str, list[tuple[float, float]]] = {"session/list": [], "session/set_mode": []}
    for _ in range(rounds):
        with start() as ours, start_peer() as peer:
            for _ in range(LATENCY_ROUNDS):
                for method, times in pairs.items():
                    mine = run(run_latency(ours.port, OURS, method, requests=300))
                    times.append((mine, run(run_latency(peer.port, PEER, method, requests=300))))
    rows: list[Row] = []
    for method, times in pairs.items():
        ratio = statistics.median(mine / theirs for mine, theirs in times)
        lines = "answered by one line" if method == "session/list" else "by two updates and a line"
        rows.append(
            show(
                Row(
                    f"keep-alive request p50, {lines}",
                    f"{statistics.median(mine for mine, _ in times) * 1e6:.0f} us",
                    f"{statistics.median(theirs for _, theirs in times) * 1e6:.0f} us",
                    f"{ratio:.2f}x",
                    "<= 1.0x",
                    ratio <= 1.0,
                )
            )
        )
    return rows


def turns(ours: ServerProcess, peer: ServerProcess, folder: Path, rounds: int) -> Row:
    """The SDKs end to end, each with its own server."""
    events, size = 20_000, 200
    script = Path(__file__).parent / "ts_turn.mjs"
    mine = [
        run(run_turn(ours.url, OURS, folder / f"turn-{number}.db", events=events, size=size))
        for number in range(rounds)
    ]
    command = [
        "node",
        str(script),
        str(node_modules(PUBLISHED_SDK)),
        str(node_modules(BETTER_SQLITE)),
        peer.url,
        PEER,
        str(folder / "ts.db"),
        str(events),
        str(size),
    ]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=120).stdout)
    speed = statistics.median(turn.events_per_second for turn in mine)
    stored = min(turn.stored for turn in mine)
    theirs = answer["stored"] / answer["seconds"]
    return show(
        Row(
            f"SDK end to end, {events:,}-event turn into SQLite",
            f"{speed:,.0f}/s, {stored:,} stored",
            f"{theirs:,.0f}/s, {answer['stored']:,} stored",
            f"{speed / theirs:.0f}x",
            ">= 15,000/s, all stored",
            speed >= 15_000 and stored == events,
        )
    )


def footprint(start: Callable[[], ServerProcess], start_peer: Callable[[], ServerProcess]) -> list[Row]:
    """Memory, and the time to be healthy."""
    with start() as server:
        peak, lost = run(stalled_reader(server, OURS, events=1_000_000, size=300))
    rows = [
        show(
            Row(
                "1,000,000 events of 300 B while a reader stalls",
                f"{peak / MEBIBYTE:.0f} MiB peak, {lost} lost",
                "",
                "",
                "< 150 MB, none lost",
                peak < 150_000_000 and lost == 0,
            )
        )
    ]
    with start() as server, start_peer() as peer:
        mine = run(idle_viewers(server, OURS, viewers=2_000))
        theirs = run(idle_viewers(peer, PEER, viewers=500))
    rows.append(
        show(
            Row(
                "2,000 idle SSE viewers, each",
                f"{mine / 1000:.1f} KB",
                f"{theirs / 1000:.1f} KB",
                f"{mine / theirs:.2f}x",
                "<= 25 KB",
                mine <= 25_000,
            )
        )
    )
    starts: list[float] = []
    for _ in range(5):
        with start() as server:
            starts.append(server.started_in)
    rows.append(
        show(
            Row(
                "server start to healthy",
                f"{statistics.median(starts):.2f} s",
                "",
                "",
                "<= 0.4 s",
                statistics.median(starts) <= 0.4,
            )
        )
    )
    return rows


def recorded(
    start: Callable[[], ServerProcess], start_bare: Callable[[], ServerProcess], rounds: int
) -> list[Row]:
    """What recording costs the ACP rows: our server against itself without the recorder."""
    rows: list[Row] = []
    for events, size, readers in ((20_000, 200, 1), (20_000, 200, 10), (2_000, 8192, 1)):
        pairs: list[tuple[Burst, Burst]] = []
        with start() as ours, start_bare() as bare:
            for _ in range(rounds):
                on = run(run_burst(ours.port, OURS, events=events, size=size, readers=readers))
                run(settle(ours.port))
                off = run(run_burst(bare.port, OURS, events=events, size=size, readers=readers))
                pairs.append((on, off))
        ratio = statistics.median(on.events_per_second / off.events_per_second for on, off in pairs)
        rows.append(
            show(
                Row(
                    f"{events:,} x {size:,} B, {readers} reader{'s' * (readers > 1)}, recorder on and off",
                    f"{statistics.median(on.events_per_second for on, _ in pairs):,.0f}/s on",
                    f"{statistics.median(off.events_per_second for _, off in pairs):,.0f}/s off",
                    f"{ratio:.2f}x",
                    ">= 0.75x",
                    ratio >= 0.75,
                )
            )
        )
    return rows


def server_sessions(start: Callable[[], ServerProcess], rounds: int) -> list[Row]:
    """The server's own sessions."""
    with start() as server:
        speed = statistics.median(
            run(record(server.port, OURS, envelopes=RECORDED, size=300)) for _ in range(rounds)
        )
        # Ten seconds each; a disk that stalls once in one of them is seen in that one.
        followed = [run(follow(server.port, viewers=100, events=2_000, rate=200)) for _ in range(rounds)]
    p50, p99 = (
        statistics.median(times) for times in zip(*((one.p50, one.p99) for one in followed), strict=True)
    )
    rows = [
        show(
            Row(
                f"{RECORDED:,} envelopes of 300 B, until stored and indexed",
                f"{speed:,.0f}/s",
                "",
                "",
                ">= 15,000/s",
                speed >= 15_000,
            )
        ),
        show(
            Row(
                "agent's write to viewer's read, 100 viewers, 200/s",
                f"p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f}",
                "",
                "",
                "p99 <= 15 ms, none lost",
                p99 <= 0.015 and not sum(one.lost for one in followed),
            )
        ),
    ]
    with start() as server:
        each = run(idle_session_viewers(server, OURS, viewers=2_000))
    rows.append(
        show(
            Row(
                "2,000 idle viewers of a recorded session, each",
                f"{each / 1000:.1f} KB",
                "",
                "",
                "<= 30 KB",
                each <= 30_000,
            )
        )
    )
    return rows


def full_store(start_on: Callable[[Path], ServerProcess], folder: Path) -> list[Row]:
    """A store with a session of a million events, and ten thousand sessions with a million texts."""
    database = folder / "full.db"
    run(fill(database, long=MILLION, sessions=10_000, events=100))
    starts: list[float] = []
    for _ in range(5):
        with start_on(database) as server:
            starts.append(server.started_in)
    with start_on(database) as server:
        page = run(run_pages(server.port, events=MILLION, rounds=200))
        found = run(run_searches(server.port, rounds=60))
    start = statistics.median(starts)
    return [
        show(Row("start with 10,000 stored sessions", f"{start:.2f} s", "", "", "<= 0.6 s", start <= 0.6)),
        show(
            Row(
                "page of 100 anywhere in a session of 1,000,000, p50",
                f"{page * 1e3:.2f} ms",
                "",
                "",
                "<= 5 ms",
                page <= 0.005,
            )
        ),
        show(
            Row(
                "search in 1,000,000 texts, p50",
                f"{found * 1e3:.1f} ms",
                "",
                "",
                "<= 50 ms",
                found <= 0.050,
            )
        ),
    ]


def write_results(rows: list[Row], drivers: list[DriverRow], rounds: int) -> None:
    """Write RESULTS.md."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    about = (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores ({cpu}), {platform.system()} "
        f"{platform.release()}, Python {platform.python_version()}. Made by `make bench`; server, agent and "
        "load share the cores. The peer is the published 0.4.2 server with the same agent."
    )
    how = (
        f"Bursts: medians of {rounds} rounds that alternate with the peer's, lost events summed over them. "
        f"Latency: `session/list` and `session/set_mode`, {LATENCY_ROUNDS} alternating rounds of 300 "
        f"requests on each of {rounds} pairs of fresh servers. SDK: median of {rounds} turns; the published "
        "TypeScript SDK on the peer, with its SQLite driver rewritten in the tests, once. Memory and "
        "viewers: one run. Starts: medians of 5. "
        f"Recorder on and off: {rounds} alternating rounds of our server against itself without it, each "
        "begun when the round before is stored; all other rows have it on. Recording: median of "
        f"{rounds}; following: medians of {rounds} times ten seconds. Search: a rare word, two common ones, "
        f"both. Files, processes and terminals: medians of {rounds} alternating rounds; the client of the "
        "download discards what it receives, after a first download that it compares."
    )
    about_drivers = (
        "Events of 1 KB. SQLite and PostgreSQL sync each commit, Redis (Valkey) its log each second. Raw: "
        "`executemany` in a transaction, COPY, a pipeline of XADDs, of the same rows in the same batches on "
        f"the same server, alternating, medians of {rounds}. From 64 sessions: each waits for each of its "
        "events; SQLite's ratio is to seed 002's insert under npm's better-sqlite3, one event a call, in the "
        "same run. Followed: 50 followers on a second driver object, from before the append, 200 events a "
        "second. Resume: medians of 20. Pages: medians of 100."
    )
    table = as_markdown(("work", "ours", "peer", "ratio", "bar", "met"), rows)
    side_by_side = as_markdown(("work", "memory", "SQLite", "PostgreSQL", "Redis", "bar", "met"), drivers)
    lines = ["# Results", "", about, "", how, "", *table, "", "## Persist drivers", "", about_drivers, ""]
    lines += [*side_by_side, ""]
    RESULTS.write_text("\n".join(lines))


def main() -> int:
    """Run all rows; the exit code is 1 when a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each row (default: 5)")
    parser.add_argument("--no-write", action="store_true", help="leave RESULTS.md as it is")
    options = parser.parse_args()
    rounds: int = options.rounds
    with tempfile.TemporaryDirectory(prefix="sandbox-agent-bench-") as name:
        folder = Path(name)
        (folder / "files").mkdir()
        homes = {home: folder / home for home in ("ours", "peer")}
        for home in homes.values():
            home.mkdir()
        put_launcher(homes["ours"] / "data", "clock", [sys.executable, str(CLOCK_AGENT)])

        def start() -> ServerProcess:
            return our_server(homes["ours"], "--store", f"sqlite:{homes['ours'] / 'server.db'}")

        def start_on(database: Path) -> ServerProcess:
            return our_server(homes["ours"], "--store", f"sqlite:{database}")

        def start_bare() -> ServerProcess:
            store = f"sqlite:{homes['ours'] / 'bare.db'}"
            return our_server(homes["ours"], "--store", store, module="benchmarks.unrecorded")

        def start_peer() -> ServerProcess:
            return published_server(homes["peer"])

        rows = latency(start, start_peer, rounds)
        with start() as ours, start_peer() as peer:
            rows += bursts(ours, peer, rounds)
            rows.append(turns(ours, peer, folder, rounds))
            rows += file_rows(ours, peer, folder / "files", rounds)
            rows += process_rows(ours, peer, folder, rounds)
            rows += terminal_rows(ours, peer, rounds)
            drivers = run(driver_rows(ours.url, OURS, folder, rounds))
        rows += footprint(start, start_peer)
        rows += recorded(start, start_bare, rounds)
        rows += server_sessions(start, rounds)
        rows += full_store(start_on, folder)
    if not options.no_write:
        write_results(rows, drivers, rounds)
    return 0 if all(row.passed for row in (*rows, *drivers)) else 1


if __name__ == "__main__":
    sys.exit(main())
