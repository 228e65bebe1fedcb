"""A TCP proxy on loopback that can cut, stall and drop what passes: for stores whose network fails."""

from __future__ import annotations

from typing import Literal

import anyio
from anyio.abc import ByteStream, SocketStream

from tests.support.relay import Relay

__all__ = ["Direction", "TcpProxy"]

# "up": from the client to the server.
Direction = Literal["up", "down"]
_CHUNK = 65536


class TcpProxy(Relay):
    """Passes connections on to a server; entering it listens, leaving it cuts everything.

    It runs in the event loop of the test. A trap (``drop_after``, ``trap``) is for the connections that
    are there and those to come; it springs once, and ``sprung`` is set.

    Attributes:
        sprung: set when a trap has sprung; ``drop_after`` and ``trap`` make it anew.
        accepted: how many connections came.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        super().__init__()
        self.sprung = anyio.Event()
        self.accepted = 0
        self._target = (host, port)
        self._refusing = False
        self._flowing = anyio.Event()
        self._flowing.set()
        self._left: dict[Direction, int] = {}
        self._trap: tuple[Direction, bytes, bool] | None = None
        self._connections: set[_Connection] = set()

    def cut(self) -> None:
        """Cut every connection at once; new ones are accepted."""
        for connection in list(self._connections):
            connection.cut()

    def refuse(self) -> None:
        """Cut every connection, and each new one as soon as it comes: the server is away."""
        self._refusing = True
        self.cut()

    def accept(self) -> None:
        """Take connections again after ``refuse``."""
        self._refusing = False

    def stall(self) -> None:
        """Pass nothing on, in either direction, and answer nothing; nobody is told."""
        self._flowing = anyio.Event()

    def resume(self) -> None:
        """Pass on again what was held by ``stall``."""
        self._flowing.set()

    def drop_after(self, count: int, direction: Direction = "up") -> None:
        """Cut the connection that passes the ``count``-th byte from now on, right behind that byte."""
        self.sprung = anyio.Event()
        self._left[direction] = count

    def trap(self, needle: bytes, *, direction: Direction = "up", passed: bool) -> None:
        """Cut the next connection that carries these bytes (an SQL word, a command).

        Args:
            needle: the bytes, which must come within one read.
            direction: which way they go.
            passed: False: they don't arrive. True (upwards only): the server gets them and answers, and
                the client is cut off before it sees the answer: an unknown outcome.
        """
        self.sprung = anyio.Event()
        self._trap = (direction, needle, passed)

    async def _handle(self, client: ByteStream) -> None:
        self.accepted += 1
        assert isinstance(client, SocketStream)
        try:
            server = None if self._refusing else await anyio.connect_tcp(*self._target)
        except OSError:
            server = None
        if server is None:
            await anyio.aclose_forcefully(client)
            return
        connection = _Connection()
        self._connections.add(connection)
        try:
            with connection.scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._pass_on, client, server, "up", connection)
                    tasks.start_soon(self._pass_on, server, client, "down", connection)
        finally:
            self._connections.discard(connection)
            # The proxy itself may be on its way out.
            with anyio.CancelScope(shield=True):
                await anyio.aclose_forcefully(client)
                await anyio.aclose_forcefully(server)

    async def _pass_on(
        self, source: SocketStream, target: SocketStream, direction: Direction, connection: _Connection
    ) -> None:
        try:
            while True:
                data = await source.receive(_CHUNK)
                while not self._flowing.is_set():
                    await self._flowing.wait()
                if direction == "down" and connection.mute:
                    self.sprung.set()
                    break
                if await self._springs(data, target, direction, connection):
                    continue
                left = self._left.get(direction)
                if left is not None and len(data) >= left:
                    await target.send(data[:left])
                    del self._left[direction]
                    self.sprung.set()
                    break
                if left is not None:
                    self._left[direction] = left - len(data)
                await target.send(data)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        connection.cut()

    async def _springs(
        self, data: bytes, target: SocketStream, direction: Direction, connection: _Connection
    ) -> bool:
        if self._trap is None or self._trap[0] != direction or self._trap[1] not in data:
            return False
        passed = self._trap[2]
        self._trap = None
        if passed:
            # The server's next answer ends the connection.
            connection.mute = True
            await target.send(data)
        else:
            connection.cut()
            self.sprung.set()
        return True


class _Connection:
    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.mute = False

    def cut(self) -> None:
        self.scope.cancel()
