"""A terminal of a process: ``sdk.processes.terminal(id)``."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar

import httpx2
import msgspec

from sandbox_agent.client.health import HealthCheck
from sandbox_agent.client.http import Http, describe, raise_for_problem
from sandbox_agent.client.process_logs import process_path
from sandbox_agent.client.tasks import TaskOwner, await_result, call_listener
from sandbox_agent.errors import ConnectionLostError, SandboxAgentError
from sandbox_agent.extras import require_websockets
from sandbox_agent.wire.jsonrpc import dumps

if TYPE_CHECKING:
    from httpcore2 import AsyncNetworkStream
    from websockets.frames import Frame
    from websockets.protocol import Protocol

logger: logging.Logger = logging.getLogger("sandbox_agent.client")
T = TypeVar("T")

# Output that is kept for the iteration. Then no more is read, and the process waits.
BUFFER_BYTES: Final = 1024 * 1024
# How long the server has for the handshake and "ready", and for its close frame.
HANDSHAKE_SECONDS: Final = 30.0
CLOSE_SECONDS: Final = 1.0
# After this time without anything from the server it gets a ping, which every server answers; after so many
# of them, the connection is lost.
SILENCE_SECONDS: Final = 20.0
_MAX_PINGS: Final = 2
_READ_BYTES: Final = 256 * 1024
# A server sends messages of at most 256 KiB.
_MAX_MESSAGE: Final = 16 * 1024 * 1024
# How much input one message has. The published server refuses more than 64 KiB.
_INPUT_BYTES: Final = 32 * 1024
_NORMAL: Final = 1000
_ABNORMAL: Final = 1006


class _Message(msgspec.Struct, rename="camel"):
    """A text message of the server."""

    type: str
    exit_code: int | None = None
    message: str = ""


class _Listeners(Generic[T]):
    """The listeners of one kind of event. What happens once is also given to those that come later."""

    def __init__(self, what: str, *, once: bool = False) -> None:
        self._what = what
        self._once = once
        self._happened: list[T] = []
        self._listeners: dict[object, Callable[[T], object]] = {}

    def __bool__(self) -> bool:
        return bool(self._listeners)

    def add(self, listener: Callable[[T], object], tasks: TaskOwner) -> Callable[[], None]:
        key = object()
        self._listeners[key] = listener
        for value in self._happened:
            result = call_listener(listener, value, self._what)
            if result is not None and tasks.running:
                tasks.spawn(await_result(result), name=self._what)
        return lambda: self._listeners.pop(key, None) and None

    async def call(self, value: T) -> None:
        if self._once:
            self._happened.append(value)
        for listener in list(self._listeners.values()):
            result = call_listener(listener, value, self._what)
            if result is not None:
                try:
                    await result
                except Exception:
                    # The boundary to the user's code, as in call_listener.
                    logger.exception("%s failed", self._what)


class ProcessTerminal:
    """A viewer of a process's terminal; ``sdk.processes.terminal(id)`` makes one for ``async with``.

    Iterate over it for the terminal's output. It begins with output that draws what is on the screen, unless
    this is the first viewer. The iteration ends when the process has ended, and raises ConnectionLostError if
    the connection ends before. Output is not dropped: what is not read lets the process wait, and the server
    closes the connection of a viewer that reads nothing for 10 s.

    Listeners may be functions or coroutine functions. Registering one returns a function that unregisters it.

    Attributes:
        process_id: the process's id.
        exited: whether the process has ended.
        exit_code: its exit code; None while it runs, and if a signal has ended it.
    """

    def __init__(self, http: Http, health: HealthCheck, process_id: str) -> None:
        require_websockets("a terminal")
        self.process_id = process_id
        self.exited: bool = False
        self.exit_code: int | None = None
        self._http = http
        self._health = health
        self._tasks = TaskOwner()
        self._protocol: Protocol | None = None
        self._stream: AsyncNetworkStream | None = None
        self._writing = asyncio.Lock()
        self._opened: asyncio.Future[None] | None = None
        self._parts: deque[bytes] = deque()
        self._size = 0
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._iterating = 0
        self._closed = asyncio.Event()
        self._is_closing = False
        self._error: SandboxAgentError | None = None
        self._on_ready = _Listeners[str]("a ready listener", once=True)
        self._on_data = _Listeners[bytes]("a data listener")
        self._on_exit = _Listeners["int | None"]("an exit listener", once=True)
        self._on_error = _Listeners[str]("an error listener")
        self._on_close = _Listeners[int]("a close listener", once=True)

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            NotFoundError: there is no such process.
            ConflictError: the process has no terminal.
            ConnectionLostError: the server can't be reached.
        """
        await self._health.wait_ready()
        self._opened = asyncio.get_running_loop().create_future()
        await self._tasks.start()
        try:
            self._tasks.spawn(self._run(), name=f"terminal of {self.process_id}")
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                await self._opened
        except TimeoutError:
            await self._tasks.stop()
            raise ConnectionLostError(
                f"the server has not opened the terminal of {self.process_id} within {HANDSHAKE_SECONDS:g} s"
            ) from None
        except BaseException:
            await self._tasks.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def on_ready(self, listener: Callable[[str], object]) -> Callable[[], None]:
        """Call a listener with the process's id, as the terminal is connected."""
        return self._on_ready.add(listener, self._tasks)

    def on_data(self, listener: Callable[[bytes], object]) -> Callable[[], None]:
        """Call a listener with all output from now on. An iteration then receives none."""
        return self._on_data.add(listener, self._tasks)

    def on_exit(self, listener: Callable[[int | None], object]) -> Callable[[], None]:
        """Call a listener with the exit code when the process has ended; None if a signal has ended it."""
        return self._on_exit.add(listener, self._tasks)

    def on_error(self, listener: Callable[[str], object]) -> Callable[[], None]:
        """Call a listener with what the server refuses, such as input that is too large."""
        return self._on_error.add(listener, self._tasks)

    def on_close(self, listener: Callable[[int], object]) -> Callable[[], None]:
        """Call a listener with the WebSocket's close code when the connection has ended."""
        return self._on_close.add(listener, self._tasks)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self._iterating += 1
        try:
            while True:
                while self._parts:
                    yield self._take()
                if self._closed.is_set():
                    if self._error is not None:
                        raise self._error
                    return
                self._changed.clear()
                await self._changed.wait()
        finally:
            self._iterating -= 1

    async def wait(self) -> int | None:
        """Wait until the process has ended, and return its exit code; None if a signal has ended it.

        Output that nothing else reads is dropped meanwhile.

        Raises:
            ConnectionLostError: the connection has ended before.
        """
        while not (self._closed.is_set() or self.exited):
            if not self._iterating:
                while self._parts:
                    self._take()
            self._changed.clear()
            await self._changed.wait()
        if not self.exited:
            raise self._error or self._lost("it was closed")
        return self.exit_code

    async def send_input(self, data: str | bytes) -> None:
        """Send input to the process, as it is typed: Enter is a carriage return, Ctrl+C is the byte 3.

        Raises:
            ConnectionLostError: the connection has ended.
        """
        content = data.encode() if isinstance(data, str) else data
        for start in range(0, len(content), _INPUT_BYTES):
            part = base64.b64encode(content[start : start + _INPUT_BYTES]).decode()
            await self._send({"type": "input", "data": part, "encoding": "base64"})

    async def resize(self, cols: int, rows: int) -> None:
        """Change the size of the terminal, for the process and all viewers.

        Args:
            cols: the width in characters.
            rows: the height.

        Raises:
            ConnectionLostError: the connection has ended.
        """
        await self._send({"type": "resize", "cols": cols, "rows": rows})

    async def close(self) -> None:
        """Disconnect. The process continues."""
        self._is_closing = True
        if self._stream is not None and not self._closed.is_set():
            with contextlib.suppress(ConnectionLostError, TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._send({"type": "close"}, closing=True)
        await self._tasks.stop()

    def _take(self) -> bytes:
        part = self._parts.popleft()
        self._size -= len(part)
        self._room.set()
        return part

    def _lost(self, why: str) -> ConnectionLostError:
        return ConnectionLostError(f"the terminal of {self.process_id} is disconnected: {why}")

    async def _send(self, frame: dict[str, Any], *, closing: bool = False) -> None:
        if self._protocol is None or self._closed.is_set() or (self._is_closing and not closing):
            raise self._error or self._lost("it was closed")
        async with self._writing:
            if self._protocol.state.name != "OPEN":  # the server has just closed it
                raise self._error or self._lost(self._close_reason)
            self._protocol.send_text(dumps(frame))
            if closing:
                self._protocol.send_close(_NORMAL)
            await self._flush()

    async def _flush(self) -> None:
        """Send what the protocol has to send; the caller holds the lock."""
        assert self._protocol is not None
        assert self._stream is not None
        data = b"".join(self._protocol.data_to_send())
        if data:
            try:
                await self._stream.write(data)
            except Exception as error:
                raise self._lost(describe(error)) from error

    async def _run(self) -> None:
        assert self._opened is not None
        try:
            async with self._connected():
                await self._receive()
        except (SandboxAgentError, httpx2.TransportError) as error:
            lost = error if isinstance(error, SandboxAgentError) else self._lost(describe(error))
            self._error = None if self.exited else lost
        finally:
            if not self._opened.done():
                self._opened.set_exception(self._error or self._lost("the server has closed it"))
            elif self._error is None and not (self.exited or self._is_closing):
                self._error = self._lost(self._close_reason)
            self._closed.set()
            self._changed.set()
        await self._on_close.call(self._close_code)

    @property
    def _close_code(self) -> int:
        received = self._protocol.close_rcvd if self._protocol else None
        return received.code if received else _NORMAL if self._is_closing else _ABNORMAL

    @property
    def _close_reason(self) -> str:
        received = self._protocol.close_rcvd if self._protocol else None
        if received is None:
            return "the connection has ended"
        return f"the server has closed it with the code {received.code} {received.reason}".rstrip()

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncGenerator[None]:
        from websockets.protocol import Protocol, Side

        key = base64.b64encode(secrets.token_bytes(16)).decode()
        headers = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Key": key,
            "Sec-WebSocket-Version": "13",
        }
        path = process_path(self.process_id, "terminal/ws")
        async with self._http.stream(
            path, params={}, headers=headers, read_timeout=HANDSHAKE_SECONDS
        ) as response:
            if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
                raise_for_problem(response.status_code, await response.aread())
            self._stream = response.extensions.get("network_stream")
            if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS or self._stream is None:
                raise SandboxAgentError(
                    f"GET {path}: the response with the status {response.status_code} opens no WebSocket: "
                    "a proxy on the way, or the transport, may not support them",
                    status=response.status_code,
                )
            self._protocol = Protocol(Side.CLIENT, max_size=_MAX_MESSAGE, logger=logger)
            self._protocol.debug = False  # what is typed may be a password
            yield

    async def _receive(self) -> None:
        assert self._protocol is not None
        assert self._stream is not None
        parts: list[bytes] = []
        is_text = False
        while True:
            await self._room.wait()
            data = await self._read()
            if not data:
                return
            self._protocol.receive_data(data)
            for event in self._protocol.events_received():
                frame: Frame = event  # pyright: ignore[reportAssignmentType] - a client receives frames
                if frame.opcode.name in ("TEXT", "BINARY"):
                    is_text, parts = frame.opcode.name == "TEXT", []
                elif frame.opcode.name != "CONT":
                    continue
                parts.append(bytes(frame.data))
                if frame.fin:
                    await (self._on_frame if is_text else self._on_output)(b"".join(parts))
            async with self._writing:
                await self._flush()
            if self._protocol.close_rcvd is not None or self._protocol.parser_exc is not None:
                return

    async def _read(self) -> bytes:
        """Return what the server sends next; empty at the end of the connection."""
        assert self._protocol is not None
        assert self._stream is not None
        for pings in range(_MAX_PINGS + 1):
            try:
                async with asyncio.timeout(SILENCE_SECONDS):
                    return await self._stream.read(_READ_BYTES)
            except TimeoutError as error:
                if pings == _MAX_PINGS:
                    silence = SILENCE_SECONDS * (_MAX_PINGS + 1)
                    raise self._lost(f"the server was silent for {silence:g} s") from error
            except Exception as error:
                raise self._lost(describe(error)) from error
            async with self._writing:
                if self._protocol.state.name == "OPEN":
                    self._protocol.send_ping(b"")
                    await self._flush()
        raise AssertionError

    async def _on_output(self, data: bytes) -> None:
        if self._on_data:
            await self._on_data.call(data)
            return
        self._parts.append(data)
        self._size += len(data)
        self._changed.set()
        if self._size >= BUFFER_BYTES:
            self._room.clear()

    async def _on_frame(self, text: bytes) -> None:
        assert self._opened is not None
        try:
            message = msgspec.json.decode(text, type=_Message)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            message = _Message(type="")
        match message.type:
            case "ready":
                await self._on_ready.call(self.process_id)
                if not self._opened.done():
                    self._opened.set_result(None)
            case "exit":
                self.exit_code = message.exit_code
                self.exited = True
                self._changed.set()
                await self._on_exit.call(self.exit_code)
            case "error":
                if not self._on_error:
                    logger.warning("terminal of %s: %s", self.process_id, message.message)
                await self._on_error.call(message.message)
            case _:
                logger.warning("terminal of %s: a message is not understood", self.process_id)
