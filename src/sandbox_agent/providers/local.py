"""The local provider: the server runs as a child process."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from sandbox_agent.errors import SandboxAgentError, SandboxDestroyedError
from sandbox_agent.extras import require_server
from sandbox_agent.providers.base import SandboxProvider

# Seconds. On SIGTERM the server drains and ends its agents. After this time its group is killed.
STOP_TIMEOUT = 5.0
# Seconds until a server that does not listen is given up.
START_TIMEOUT = 30.0
POLL_INTERVAL = 0.02
CONNECT_TIMEOUT = 2.0
LOG_TAIL_BYTES = 2_000

Log = Literal["inherit", "silent"] | str | os.PathLike[str]


@dataclass(slots=True, eq=False)
class _Child:
    process: subprocess.Popen[bytes]
    host: str
    port: int
    token: str | None
    output: Path | None
    owner: int


class LocalProvider(SandboxProvider):
    """Starts sandbox-agent servers on this machine. Created by ``local``."""

    name = "local"

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        token: str | None = None,
        env: Mapping[str, str] | None = None,
        log: Log = "inherit",
        binary: str | os.PathLike[str] | None = None,
        store: str | None = None,
        args: Sequence[str] = (),
    ) -> None:
        """Store the options. See ``local`` for the arguments."""
        if binary is None:
            require_server("local()")
        self._host = host
        self._port = port
        self._token = token
        self._env = dict(env or {})
        self._log = log
        self._binary = binary
        self._store = store
        self._args = list(args)
        self._children: dict[str, _Child] = {}

    async def create(self) -> str:
        """Start a server and return ``host:port`` when it listens.

        Raises:
            SandboxAgentError: The port is in use, or the server did not start. With a log file, the message
                ends with the server's last output.
        """
        port = self._port or _free_port(self._host)
        raw_id = f"{self._host}:{port}"
        running = self._children.get(raw_id)
        if running is not None and running.process.poll() is None:
            raise SandboxAgentError(f"a local server of this provider already listens on {raw_id}")
        await self._start(raw_id, port, self._token or secrets.token_urlsafe(24))
        return raw_id

    async def _start(self, raw_id: str, port: int, token: str) -> None:
        # Without this check, another program on the port would be mistaken for the server.
        if await _is_listening(self._host, port):
            raise SandboxAgentError(
                f"the local server could not be started: another program listens on {raw_id}. "
                "Stop it or use another port."
            )
        child = self._children[raw_id] = self._spawn(port, token)
        try:
            await _wait_listening(child)
        except BaseException:
            await self.destroy(raw_id)
            raise

    def _command(self, port: int, token: str) -> list[str]:
        if self._binary is not None:
            base = [os.fspath(self._binary), "server"]
        else:
            base = [sys.executable, "-m", "sandbox_agent.cli.main", "server"]
        command = [*base, "--host", self._host, "--port", str(port)]
        if self._binary is not None:
            # Another server may not read the token from the environment.
            command += ["--token", token]
        if self._store is not None:
            command += ["--store", self._store]
        elif self._binary is None:
            # The default store allows one server at a time, and here the SDK stores the sessions.
            command += ["--store", "memory"]
        return [*command, *self._args]

    def _spawn(self, port: int, token: str) -> _Child:
        output: Path | None = None
        with contextlib.ExitStack() as stack:
            target: int | IO[bytes] | None = None
            if self._log == "silent":
                target = subprocess.DEVNULL
            elif self._log != "inherit":
                output = Path(self._log)
                output.parent.mkdir(parents=True, exist_ok=True)
                target = stack.enter_context(output.open("ab"))
            try:
                process = subprocess.Popen(  # noqa: S603 - the command is ours or the caller's
                    self._command(port, token),
                    stdin=subprocess.DEVNULL,
                    stdout=target,
                    stderr=subprocess.STDOUT if target is not None else None,
                    env={**os.environ, **self._env, "SANDBOX_AGENT_TOKEN": token},
                    start_new_session=True,
                )
            except OSError as error:
                raise SandboxAgentError(f"the local server could not be started: {error}") from error
        child = _Child(process, self._host, port, token, output, os.getpid())
        _running.add(child)
        return child

    async def destroy(self, sandbox_id: str, /) -> None:
        """Stop the server: SIGTERM, 5 s, SIGKILL to its group. Servers of others are not stopped."""
        child = self._children.pop(sandbox_id, None)
        if child is not None:
            await asyncio.to_thread(_stop, child, STOP_TIMEOUT)

    async def kill(self, sandbox_id: str, /) -> None:
        """Kill the server and its group."""
        child = self._children.pop(sandbox_id, None)
        if child is not None:
            await asyncio.to_thread(_stop, child, 0.0)

    async def get_url(self, sandbox_id: str, /) -> str:
        """Return ``http://host:port``."""
        return f"http://{sandbox_id}"

    async def get_token(self, sandbox_id: str, /) -> str | None:
        """Return the token of a server that this provider started, otherwise the token option."""
        child = self._children.get(sandbox_id)
        return child.token if child is not None else self._token

    async def reconnect(self, sandbox_id: str, /) -> None:
        """Check that the server exists.

        Raises:
            SandboxDestroyedError: Nothing listens there, and this provider did not start it.
        """
        if sandbox_id in self._children:
            return
        host, _, port = sandbox_id.rpartition(":")
        if not port.isdecimal() or not await _is_listening(host, int(port)):
            raise SandboxDestroyedError(sandbox_id, self.name)

    async def ensure_server(self, sandbox_id: str, /) -> None:
        """Restart a server that this provider started and that has ended, on the same port."""
        child = self._children.get(sandbox_id)
        if child is None or child.process.poll() is None:
            return
        assert child.token is not None
        _running.discard(child)
        await self._start(sandbox_id, child.port, child.token)

    def pid(self, sandbox_id: str, /) -> int | None:
        """Return the process id of a server that this provider started, or None."""
        child = self._children.get(sandbox_id)
        return child.process.pid if child is not None else None


def local(
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    token: str | None = None,
    env: Mapping[str, str] | None = None,
    log: Log = "inherit",
    binary: str | os.PathLike[str] | None = None,
    store: str | None = None,
    args: Sequence[str] = (),
) -> LocalProvider:
    """Return a provider that starts the server on this machine. Its sandbox ids are ``local/host:port``.

    The server ends with ``destroy_sandbox`` and when the interpreter exits.

    Args:
        host: The address to listen on.
        port: The port, or None for a free one.
        token: The bearer token, or None for a random one.
        env: Variables to add to the server's environment.
        log: Where its output goes: "inherit", "silent", or the path of a file.
        binary: Another ``sandbox-agent`` program to run instead of this package's.
        store: Its ``--store`` (``memory``, ``sqlite:PATH``).
        args: More command line arguments.

    Raises:
        ImportError: The extra ``server`` is not installed, and ``binary`` is not given.
    """
    return LocalProvider(
        host=host, port=port, token=token, env=env, log=log, binary=binary, store=store, args=args
    )


# The servers that are still running. They are stopped when the interpreter exits.
_running: set[_Child] = set()


@atexit.register
def _stop_at_exit() -> None:
    for child in list(_running):
        # A fork of this interpreter inherits the set, but the servers are not its own.
        if child.owner == os.getpid():
            _stop(child, STOP_TIMEOUT)


def _stop(child: _Child, grace: float) -> None:
    process = child.process
    if grace > 0:
        _signal(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    # Kill the group even if its leader has exited: it may have left children.
    _signal(process.pid, signal.SIGKILL)
    process.wait()
    _running.discard(child)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if number is signal.SIGKILL:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind((host, 0))
        port: int = listener.getsockname()[1]
        return port


async def _is_listening(host: str, port: int) -> bool:
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            _, writer = await asyncio.open_connection(host.strip("[]"), port)
    except (OSError, OverflowError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


async def _wait_listening(child: _Child) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + START_TIMEOUT
    while True:
        code = child.process.poll()
        if code is not None:
            raise SandboxAgentError(
                f"the local server exited with code {code} at its start{_log_tail(child)}"
            )
        if await _is_listening(child.host, child.port):
            return
        if loop.time() > deadline:
            raise SandboxAgentError(
                f"the local server did not listen on {child.host}:{child.port} within "
                f"{START_TIMEOUT:g} s{_log_tail(child)}"
            )
        await asyncio.sleep(POLL_INTERVAL)


def _log_tail(child: _Child) -> str:
    if child.output is None:
        return ": see its output for the reason (log='inherit' shows it)"
    tail = child.output.read_bytes()[-LOG_TAIL_BYTES:].decode("utf-8", "replace").strip()
    return f": {tail}" if tail else ""
