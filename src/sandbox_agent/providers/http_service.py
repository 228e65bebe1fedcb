"""The base of the providers that use a service's HTTP API themselves, and commands over its WebSockets."""

from __future__ import annotations

import contextlib
import posixpath
import shlex
import ssl
from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import httpx2
import msgspec

from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.providers.remote import CommandOutput, RemoteProvider
from sandbox_agent.providers.service import ServiceFailure, retry_after

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

# Exit code, standard output, standard error.
RawOutput = tuple[int, bytes, bytes]

_STDIN, _STDOUT, _STDERR, _EXIT = range(4)
# Bytes of a file in a message.
_PART = 32_768
# Bytes of a message: output arrives in far smaller ones.
_LONGEST_MESSAGE = 16 * 1024 * 1024
_SHOWN = 500


class HTTPProvider(RemoteProvider[httpx2.AsyncClient]):
    """A provider that uses an HTTP API. Its client raises ``httpx2.HTTPStatusError`` for error statuses."""

    async def _send(self, client: httpx2.AsyncClient, method: str, path: str, **options: Any) -> bytes:
        response = await client.request(method, path, **options)
        response.raise_for_status()
        return response.content

    def _describe(self, error: Exception) -> ServiceFailure | None:
        match error:
            case httpx2.HTTPStatusError(response=response):
                return _failure(response.status_code, response.headers, response.content)
            case FileNotFoundError():
                return ServiceFailure(str(error), 404, is_about_file=True)
            case httpx2.TransportError() | OSError():
                return ServiceFailure(f"{type(error).__name__}: {error}", None)
            case _:
                return None


def _failure(status: int, headers: Mapping[str, str], content: bytes) -> ServiceFailure:
    message, code = content.decode(errors="replace")[:_SHOWN], ""
    with contextlib.suppress(msgspec.DecodeError, AttributeError):
        body = msgspec.json.decode(content)
        message = body.get("message") or body.get("error") or message
        code = body.get("code", "")
    return ServiceFailure(str(message), status, retry_after(headers), code == "no_such_file")


class SocketProvider(HTTPProvider):
    """A provider whose service runs commands over a WebSocket.

    The first byte of each message says what follows: input, output, errors or the end of the command.
    """

    @abstractmethod
    async def _execute(
        self, client: httpx2.AsyncClient, sandbox_id: str, command: str, stdin: bytes = b""
    ) -> RawOutput:
        """Run a command line in a shell."""

    async def _run(self, client: httpx2.AsyncClient, sandbox_id: str, command: str) -> CommandOutput:
        code, stdout, stderr = await self._execute(client, sandbox_id, command)
        return CommandOutput(code, stderr.decode(errors="replace"), stdout.decode(errors="replace"))

    async def _write_file(
        self, client: httpx2.AsyncClient, sandbox_id: str, path: str, content: bytes
    ) -> None:
        # The user that runs commands owns it. It ends with its last byte, not with that of the input,
        # which not every version of the protocol can close.
        target, part = shlex.quote(path), shlex.quote(f"{path}.part")
        command = (
            f"umask 077 && mkdir -p {shlex.quote(posixpath.dirname(path))} && "
            f"head -c {len(content)} >{part} && mv {part} {target}"
        )
        code, _, stderr = await self._execute(client, sandbox_id, command, content)
        if code:
            raise SandboxAgentError(
                f"{path} could not be written in sandbox '{self.name}/{sandbox_id}': "
                f"{stderr.decode(errors='replace').strip()}"
            )

    async def _read_file(self, client: httpx2.AsyncClient, sandbox_id: str, path: str) -> bytes:
        code, stdout, stderr = await self._execute(client, sandbox_id, f"cat {shlex.quote(path)}")
        if code:
            raise FileNotFoundError(stderr.decode(errors="replace").strip() or path)
        return stdout

    def _describe(self, error: Exception) -> ServiceFailure | None:
        from websockets.exceptions import InvalidStatus, WebSocketException

        match error:
            case InvalidStatus(response=response):
                return _failure(response.status_code, response.headers, bytes(response.body or b""))
            case WebSocketException():
                return ServiceFailure(f"{type(error).__name__}: {error}", None)
            case _:
                return super()._describe(error)


@contextlib.asynccontextmanager
async def open_socket(
    url: str,
    headers: Mapping[str, str],
    subprotocols: Sequence[str] = (),
    context: ssl.SSLContext | None = None,
) -> AsyncGenerator[ClientConnection]:
    """Open a WebSocket.

    Args:
        url: Its URL, with http or https.
        headers: Headers of the request.
        subprotocols: What the client speaks, the best first.
        context: The TLS context, or None for the usual one.
    """
    from websockets.asyncio.client import connect
    from websockets.typing import Subprotocol

    async with connect(
        f"ws{url.removeprefix('http')}",
        additional_headers=headers,
        subprotocols=[Subprotocol(name) for name in subprotocols] or None,
        ssl=context,
        max_size=_LONGEST_MESSAGE,
        compression=None,
        close_timeout=1,
    ) as socket:
        yield socket


async def run_command(
    socket: ClientConnection, exit_code: Callable[[bytes], int], stdin: bytes, end: bytes = b""
) -> RawOutput:
    """Send the input of a command and return its output.

    Args:
        socket: The WebSocket of the command.
        exit_code: Reads the exit code from the message about the end of the command.
        stdin: The input.
        end: The message that ends the input, if there is one.

    Raises:
        ConnectionError: The connection ended before the command.
    """
    outputs = {_STDOUT: bytearray(), _STDERR: bytearray()}
    for start in range(0, len(stdin), _PART):
        await socket.send(bytes([_STDIN]) + stdin[start : start + _PART])
    if end:
        await socket.send(end)
    async for message in socket:
        if isinstance(message, str) or not message:
            continue
        if message[0] == _EXIT:
            return exit_code(message[1:]), bytes(outputs[_STDOUT]), bytes(outputs[_STDERR])
        if message[0] in outputs:
            outputs[message[0]] += message[1:]
    raise ConnectionError("the connection ended before the command did")
