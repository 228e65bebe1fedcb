"""Hostile clients as a process: ``python -m tests.hostile.attackers PORT SECONDS CONNECTIONS [NAME]``.

It holds so many connections at once, each of which misbehaves, ends and comes again until the time is over,
and prints how many there were. NAME selects one kind of client; all kinds come by default.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import sys
from collections.abc import Awaitable, Callable

__all__ = ["ATTACKS", "HELLO", "LARGE", "START"]

START = b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\n"
LARGE = b"GET /v1/openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(194)
# How long a client waits for a server that sends nothing.
PATIENCE = 2.0

Client = Callable[["Connection", random.Random], Awaitable[None]]


class Connection:
    """A connection of a hostile client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def read_all(self) -> None:
        """Read until the server closes the connection, or is silent for too long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while await self.reader.read(65536):
                    pass


async def bomb(connection: Connection, chance: random.Random) -> None:
    await connection.send(START + b"X: ")
    for _ in range(32):
        await connection.send(b"x" * chance.choice((1_000, 60_000)))


async def many_headers(connection: Connection, _chance: random.Random) -> None:
    for _ in range(100):
        await connection.send(START + b"A: x\r\n" * 5_000)


async def pipeline(connection: Connection, _chance: random.Random) -> None:
    await connection.send((START + b"\r\n") * 5_000)
    await connection.read_all()


async def cut(connection: Connection, chance: random.Random) -> None:
    requests = (START + b"\r\n") * 20
    position = 0
    while position < len(requests):
        size = chance.randrange(1, 100)
        await connection.send(requests[position : position + size])
        position += size


async def lengths(connection: Connection, _chance: random.Random) -> None:
    await connection.send(START + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    await connection.read_all()


async def bare_newlines(connection: Connection, _chance: random.Random) -> None:
    await connection.send(b"GET / HTTP/1.1\nHost: localhost\nX\n\n")
    await connection.read_all()


async def tls(connection: Connection, _chance: random.Random) -> None:
    await connection.send(HELLO)
    await connection.read_all()


async def upgrade(connection: Connection, _chance: random.Random) -> None:
    headers = b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n"
    await connection.send(START + headers)
    await connection.read_all()


async def reset(connection: Connection, _chance: random.Random) -> None:
    await connection.send(START)
    peer: socket.socket = connection.writer.get_extra_info("socket")
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")


async def slow(connection: Connection, chance: random.Random) -> None:
    for position in range(len(START)):
        await connection.send(START[position : position + 1])
        await asyncio.sleep(chance.random() / 5)


async def half_open(connection: Connection, _chance: random.Random) -> None:
    await connection.send(START)
    connection.writer.write_eof()
    await connection.read_all()


async def body(connection: Connection, _chance: random.Random) -> None:
    await connection.send(b"POST /v1/tickets HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n")
    for _ in range(32):
        await connection.send(b"x" * 60_000)


async def deaf(connection: Connection, chance: random.Random) -> None:
    connection.writer.write(LARGE * 50)
    await asyncio.sleep(PATIENCE * chance.random())  # reads nothing


ATTACKS: dict[str, Client] = {
    attack.__name__: attack
    for attack in (
        bomb,
        many_headers,
        pipeline,
        cut,
        lengths,
        bare_newlines,
        tls,
        upgrade,
        reset,
        slow,
        half_open,
        body,
        deaf,
    )
}


async def attack_until(end: float, port: int, seed: int, kinds: list[Client]) -> int:
    """Be one client after the other, and return how many it was."""
    chance, count = random.Random(seed), 0
    loop = asyncio.get_running_loop()
    while loop.time() < end:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(max(end - loop.time(), 0.1)):
                reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=65536)
                count += 1
                try:
                    await chance.choice(kinds)(Connection(reader, writer), chance)
                finally:
                    writer.transport.abort()
        await asyncio.sleep(0)
    return count


async def main(port: int, seconds: float, connections: int, *names: str) -> None:
    """Attack with so many connections at once, and print how many there were in all."""
    kinds = [ATTACKS[name] for name in names or ATTACKS]
    end = asyncio.get_running_loop().time() + seconds
    clients = [attack_until(end, port, number, kinds) for number in range(connections)]
    print(sum(await asyncio.gather(*clients)))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]))
