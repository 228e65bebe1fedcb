"""A transaction-pooling proxy before a PostgreSQL server, as pgbouncer is: each transaction may get another
server connection, and nothing that a session would keep is kept."""

from __future__ import annotations

import contextlib
import secrets
import struct
from collections import deque
from typing import Self

import anyio
from anyio.abc import ByteStream, ObjectReceiveStream, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from tests.support.relay import Relay

__all__ = ["TransactionPooler"]

_SSL_REQUEST = 80877103
_CANCEL_REQUEST = 80877102
_PROTOCOL = 196608
_MAX_MESSAGE = 2**30


class TransactionPooler(Relay):
    """Lends server connections for one transaction each, the one that has been idle longest.

    The server must let the user in without a password. Entering it listens.

    Attributes:
        transactions: how many were carried out.
    """

    def __init__(self, port: int, database: str, *, user: str = "postgres", size: int = 3) -> None:
        super().__init__()
        self.transactions = 0
        self._target = ("127.0.0.1", port)
        self._startup = _parameters(user=user, database=database)
        self._size = size
        self._idle: deque[_Server] = deque()
        self._servers: list[_Server] = []
        self._free = anyio.Semaphore(size)

    async def __aenter__(self) -> Self:
        for _ in range(self._size):
            self._idle.append(await self._connect())
        return await super().__aenter__()

    async def _connect(self) -> _Server:
        stream = await anyio.connect_tcp(*self._target)
        server = _Server(stream)
        self._servers.append(server)
        self._opened.push_async_callback(stream.aclose)
        await stream.send(self._startup)
        while True:
            kind, message = await _read(server.reader)
            assert kind != b"E", message
            if kind == b"S":
                server.statuses += message
            if kind == b"Z":
                return server

    async def _handle(self, client: ByteStream) -> None:
        reader = BufferedByteReceiveStream(client)
        try:
            if await self._greet(client, reader):
                await self._serve(client, reader)
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
            pass
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.aclose_forcefully(client)

    async def _greet(self, client: ByteStream, reader: BufferedByteReceiveStream) -> bool:
        while True:
            length, code = struct.unpack("!II", await reader.receive_exactly(8))
            await reader.receive_exactly(length - 8) if length > 8 else b""
            if code != _SSL_REQUEST:
                break
            await client.send(b"N")
        if code == _CANCEL_REQUEST:
            return False
        key = struct.pack("!II", 1_000_000 + secrets.randbelow(1_000_000), secrets.randbits(32))
        statuses = self._servers[0].statuses
        await client.send(_message(b"R", struct.pack("!I", 0)) + statuses + _message(b"K", key) + _ready())
        return True

    async def _serve(self, client: ByteStream, reader: BufferedByteReceiveStream) -> None:
        # A task reads, so that ending a transaction never ends in the middle of a message.
        sender, messages = anyio.create_memory_object_stream[tuple[bytes, bytes]](0)

        async def read() -> None:
            async with sender:
                with contextlib.suppress(anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
                    while True:
                        await sender.send(await _read(reader))

        async with messages, anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            async for kind, message in messages:
                if kind == b"X":
                    break
                server = await self._borrow()
                clean = False
                try:
                    clean = await self._transaction(client, messages, server, kind, message)
                finally:
                    with anyio.CancelScope(shield=True):
                        await self._give_back(server, clean=clean)
            tasks.cancel_scope.cancel()

    async def _transaction(
        self,
        client: ByteStream,
        messages: ObjectReceiveStream[tuple[bytes, bytes]],
        server: _Server,
        kind: bytes,
        message: bytes,
    ) -> bool:
        """Pass on until the server is idle and has answered everything; False where the client has gone."""
        self.transactions += 1
        pending = 0
        done = False

        async def answer() -> None:
            nonlocal pending, done
            while True:
                kind, message = await _read(server.reader)
                if kind == b"Z":
                    pending -= 1
                    done = pending == 0 and message[-1:] == b"I"
                # What a session listens to is nobody's here.
                if kind != b"A":
                    await client.send(message)
                if done:
                    tasks.cancel_scope.cancel()
                    return

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer)
            while kind != b"X":
                pending += kind in (b"S", b"Q")
                await server.stream.send(message)
                try:
                    kind, message = await messages.receive()
                except anyio.EndOfStream:
                    break
            tasks.cancel_scope.cancel()
        return done

    async def _borrow(self) -> _Server:
        await self._free.acquire()
        return self._idle.popleft()

    async def _give_back(self, server: _Server, *, clean: bool) -> None:
        if not clean:
            await server.stream.aclose()
            server = await self._connect()
        self._idle.append(server)
        self._free.release()


class _Server:
    def __init__(self, stream: SocketStream) -> None:
        self.stream = stream
        self.reader = BufferedByteReceiveStream(stream)
        self.statuses = b""


async def _read(reader: BufferedByteReceiveStream) -> tuple[bytes, bytes]:
    """Return a message's kind, and all of it."""
    head = await reader.receive_exactly(5)
    (length,) = struct.unpack("!I", head[1:])
    assert length < _MAX_MESSAGE
    return head[:1], head + (await reader.receive_exactly(length - 4) if length > 4 else b"")


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def _ready() -> bytes:
    return _message(b"Z", b"I")


def _parameters(**values: str) -> bytes:
    body = struct.pack("!I", _PROTOCOL)
    for name, value in values.items():
        body += name.encode() + b"\0" + value.encode() + b"\0"
    return struct.pack("!I", len(body) + 5) + body + b"\0"
