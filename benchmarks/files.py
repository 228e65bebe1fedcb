"""``python -m benchmarks.files``: files through both servers, in turn; these rows are in ``make bench``, too.

The client of a download discards in the kernel what it receives (MSG_TRUNC), and only counts it: the servers
share the cores with it. Before the rounds, each server's download is read and compared.
"""

from __future__ import annotations

import argparse
import filecmp
import http.client
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from tests.support.servers import ServerProcess, our_server, published_server

from benchmarks.table import Row, show

__all__ = ["file_rows"]

MEGABYTE = 1_000_000
MEBIBYTE = 1024 * 1024
GIBIBYTE = 1024 * MEBIBYTE
MOST_GROWTH = 32 * MEGABYTE
# The published server refuses bodies of more than 2 MB.
SMALL_BYTES = 1_900_000
SMALL_FILES = 320
AT_ONCE = 16


@contextmanager
def growth(server: ServerProcess) -> Generator[Callable[[], int]]:
    """Yield what returns by how many bytes a server's memory grew at most, which the kernel measures."""
    with suppress(OSError):  # without permission, an earlier peak counts, too
        Path(f"/proc/{server.pid}/clear_refs").write_text("5")
    before = server.memory()
    yield lambda: max(0, server.memory("VmHWM") - before)


def _target(path: Path) -> str:
    return f"/v1/fs/file?path={quote(str(path))}"


def download(server: ServerProcess, path: Path, size: int) -> float:
    """Return the bytes per second of the download of a file."""
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(f"GET {_target(path)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head = bytearray()
        while not head.endswith(b"\r\n\r\n"):
            head += connection.recv(1)
        assert head.startswith(b"HTTP/1.1 200"), head
        assert f"content-length: {size}\r\n".encode() in head, head
        left, buffer = size, bytearray(MEBIBYTE)
        while left:
            received = connection.recv_into(buffer, min(MEBIBYTE, left), socket.MSG_TRUNC)
            assert received, f"the download ended {left} bytes early"
            left -= received
    return size / (time.perf_counter() - began)


def is_complete(server: ServerProcess, path: Path, copy: Path) -> bool:
    """Whether a download has the content of the file."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("GET", _target(path))
    with copy.open("wb") as file, connection.getresponse() as response:
        while data := response.read(MEBIBYTE):
            file.write(data)
    connection.close()
    same = filecmp.cmp(path, copy, shallow=False)
    copy.unlink()
    return same


def upload(server: ServerProcess, source: Path, target: Path) -> float:
    """Return the bytes per second of an upload."""
    size = source.stat().st_size
    began = time.perf_counter()
    with (
        socket.create_connection(("127.0.0.1", server.port)) as connection,
        source.open("rb") as file,
    ):
        head = f"PUT {_target(target)} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n"
        connection.sendall(head.encode())
        connection.sendfile(file)
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 200"), answer
    return size / (time.perf_counter() - began)


def refused_with(server: ServerProcess, target: Path, size: int) -> int:
    """Return the status of an upload of which only the beginning is sent; 200 is never reached."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest("PUT", _target(target))
    connection.putheader("Content-Length", str(size))
    connection.endheaders()
    try:
        for _ in range(8):
            connection.send(bytes(MEBIBYTE))
    except OSError:
        pass  # it has answered already, and closed the connection
    status = connection.getresponse().status
    connection.close()
    return status


def upload_many(server: ServerProcess, folder: Path) -> float:
    """Return the bytes per second of small uploads, several at a time, each client on one connection."""
    content = os.urandom(SMALL_BYTES)

    def work(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        for each in range(SMALL_FILES // AT_ONCE):
            connection.request("PUT", _target(folder / f"{number}-{each}"), content)
            response = connection.getresponse()
            body = response.read()
            assert response.status == 200, body
        connection.close()

    began = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(work, range(AT_ONCE)))
    took = time.perf_counter() - began
    assert all(path.stat().st_size == SMALL_BYTES for path in folder.iterdir())
    return SMALL_FILES * SMALL_BYTES / took


def _row(work: str, pairs: list[tuple[float, float]], bar: float, grown: tuple[int, int] | None) -> Row:
    mine, theirs = (statistics.median(speeds) / MEGABYTE for speeds in zip(*pairs, strict=True))
    ratio = statistics.median(ours / peers for ours, peers in pairs)
    memory = [""] * 2 if grown is None else [f", +{size / MEGABYTE:.0f} MB" for size in grown]
    least = f">= {bar:g}x" + ("" if grown is None else f", <= {MOST_GROWTH // MEGABYTE} MB")
    small = grown is None or grown[0] <= MOST_GROWTH
    return show(
        Row(
            work,
            f"{mine:,.0f} MB/s{memory[0]}",
            f"{theirs:,.0f} MB/s{memory[1]}",
            f"{ratio:.2f}x",
            least,
            ratio >= bar and small,
        )
    )


def file_rows(ours: ServerProcess, peer: ServerProcess, folder: Path, rounds: int) -> list[Row]:
    """Downloads and uploads."""
    big, target = folder / "big", folder / "target"
    block = os.urandom(MEBIBYTE)
    with big.open("wb") as file:
        for number in range(GIBIBYTE // MEBIBYTE):
            file.write(number.to_bytes(8, "big") + block[8:])
    complete = [is_complete(server, big, target) for server in (ours, peer)]
    assert complete == [True, True], f"downloads that differ from the file (ours, peer): {complete}"
    with growth(ours) as grown, growth(peer) as grown_peer:
        pairs = [(download(ours, big, GIBIBYTE), download(peer, big, GIBIBYTE)) for _ in range(rounds)]
        rows = [_row("download of 1 GiB", pairs, 3.0, (grown(), grown_peer()))]
    with growth(ours) as grown:
        speeds: list[float] = []
        for _ in range(rounds):
            speeds.append(upload(ours, big, target))
        assert filecmp.cmp(big, target, shallow=False)
        rows.append(
            show(
                Row(
                    "upload of 1 GiB",
                    f"{statistics.median(speeds) / MEGABYTE:,.0f} MB/s, +{grown() / MEGABYTE:.0f} MB",
                    f"refused: {refused_with(peer, folder / 'refused', GIBIBYTE)}",
                    "",
                    f"<= {MOST_GROWTH // MEGABYTE} MB",
                    grown() <= MOST_GROWTH,
                )
            )
        )
    big.unlink()
    target.unlink()
    many: list[tuple[float, float]] = []
    for _ in range(rounds):
        speeds = []
        for server in (ours, peer):
            with tempfile.TemporaryDirectory(dir=folder) as name:
                speeds.append(upload_many(server, Path(name)))
        many.append((speeds[0], speeds[1]))
    rows.append(_row(f"uploads of 1.9 MB, {AT_ONCE} at a time", many, 0.8, None))
    return rows


def main() -> int:
    """Run the rows; the exit code is 1 when a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.files", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each row (default: 9)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sandbox-agent-bench-") as name:
        folder = Path(name)
        for home in ("ours", "peer", "files"):
            (folder / home).mkdir()
        with our_server(folder / "ours") as ours, published_server(folder / "peer") as peer:
            rows = file_rows(ours, peer, folder / "files", options.rounds)
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
