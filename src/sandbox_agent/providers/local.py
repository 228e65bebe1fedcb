"""The local provider: the server runs as a child process, and ends with this program.

The server inherits the read end of a pipe, its lifeline, whose write end only this process holds. However
this process ends, the kernel closes the write end and the server shuts down. A server that is another program
(``binary``) does not know the pipe, so a small process watches it and ends the server.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import httpx2

from sandbox_agent.errors import SandboxAgentError, SandboxDestroyedError
from sandbox_agent.extras import require_server
from sandbox_agent.persist.private import make_private_folder, open_private
from sandbox_agent.providers.base import SandboxProvider

# Seconds. On SIGTERM the server drains and ends its agents. After this time its group is killed.
STOP_TIMEOUT = 5.0
STORE_WAIT = 6.0
# Seconds until a server that does not respond is given up.
START_TIMEOUT = 30.0
POLL_INTERVAL = 0.02
CONNECT_TIMEOUT = 2.0
LOG_TAIL_BYTES = 2_000
# How long a server that has exited may leave its output open.
OUTPUT_TIMEOUT = 1.0
# Names the lifeline's descriptor. The server removes it from its environment.
LIFELINE_VARIABLE = "SANDBOX_AGENT_LIFELINE"
# Neither another server nor agents need it: the server of this package reads the token from a descriptor.
TOKEN_VARIABLE = "SANDBOX_AGENT_TOKEN"  # noqa: S105 - its name
# The variable by which the watcher finds the processes of another server (runtime/process_tree.py).
_TAG_VARIABLE = "SANDBOX_AGENT_PROCESS_TAG"
_PACKAGE_ROOT = Path(__file__).parents[2]

Log = Literal["inherit", "silent"] | str | os.PathLike[str]


@dataclass(slots=True, eq=False)
class _Child:
    process: subprocess.Popen[bytes]
    port: int
    token: str
    lifeline: IO[bytes]
    output: _Output
    watcher: subprocess.Popen[bytes] | None = None


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
        agent_env_policy: Literal["strict", "default"] = "strict",
        agents: str | os.PathLike[str] | None = None,
        agent_commands: Mapping[str, str | Sequence[str]] | None = None,
        args: Sequence[str] = (),
    ) -> None:
        """Store the options. See ``local`` for the arguments."""
        if binary is None:
            require_server("local()")
        elif agents is not None or agent_commands:
            raise ValueError(
                "agents and agent_commands are for this package's server: leave them out, or leave binary out"
            )
        self._host = host.strip("[]")
        self._port = port
        self._token = token
        self._env = dict(env or {})
        self._log = log
        self._binary = binary
        self._store = store
        self._agent_env_policy = agent_env_policy
        self._agents = None if agents is None else Path(agents).absolute()
        self._agent_commands = dict(agent_commands or {})
        self._args = list(args)
        self._children: dict[str, _Child] = {}
        self._restarting: set[str] = set()

    async def create(self) -> str:
        """Start a server and return ``host:port`` when it responds.

        Raises:
            SandboxAgentError: The port is in use, or the server did not start. The message ends with the
                server's last output.
        """
        port = self._port or _free_port(self._host)
        raw_id = f"[{self._host}]:{port}" if ":" in self._host else f"{self._host}:{port}"
        running = self._children.get(raw_id)
        if running is not None and not _has_exited(running.process):
            raise SandboxAgentError(f"a local server of this provider already listens on {raw_id}")
        await self.kill(raw_id)  # what is left of one that has ended
        try:
            await self._start(raw_id, port, self._token or secrets.token_urlsafe(24))
        except BaseException:
            self._children.pop(raw_id, None)
            raise
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
            await _wait_responding(child, f"http://{raw_id}")
        except BaseException:
            await asyncio.to_thread(_stop, child, STOP_TIMEOUT)
            raise

    def _command(self, port: int, token: str, token_descriptor: int) -> list[str]:
        if self._binary is not None:
            base = [os.fspath(self._binary), "server"]
        else:
            base = [sys.executable, "-m", "sandbox_agent.cli.main", "server"]
        command = [*base, "--host", self._host, "--port", str(port)]
        if self._binary is not None:
            # Another server may not read the token in another way.
            command.append(f"--token={token}")  # it may begin with "-"
        else:
            command += ["--token-file", f"/dev/fd/{token_descriptor}"]
            command += ["--agent-env-policy", self._agent_env_policy]
            command += [f"--agent-env={name}" for name in self._env]
            command += [] if self._agents is None else [f"--agents={self._agents}"]
            for agent, words in self._agent_commands.items():
                line = words if isinstance(words, str) else shlex.join(words)
                command.append(f"--agent-command={agent}={line}")
        if self._store is not None:
            command += ["--store", self._store]
            if self._binary is None:
                # The server of a program that was killed ends a moment after it.
                command += ["--store-wait", f"{STORE_WAIT:g}"]
        elif self._binary is None:
            # The default store allows one server at a time, and here the SDK stores the sessions.
            command += ["--store", "memory"]
        return [*command, *self._args]

    def _spawn(self, port: int, token: str) -> _Child:
        tag = f"local-{uuid.uuid4().hex}"
        read, write = os.pipe()
        descriptors = [read]
        if self._binary is None:
            descriptors.append(_written_pipe(token))
        lifeline = open(write, "wb", buffering=0)  # noqa: PTH123, SIM115 - a descriptor, closed by _stop
        _lifelines.add(lifeline)
        output = _Output(self._log)
        env = {**os.environ, **self._env, LIFELINE_VARIABLE: str(read)}
        env.pop(TOKEN_VARIABLE, None)
        try:
            with output.target() as target:
                process = subprocess.Popen(  # noqa: S603 - the command is ours or the caller's
                    self._command(port, token, descriptors[-1]),
                    bufsize=0,
                    stdin=subprocess.DEVNULL,
                    stdout=target,
                    stderr=subprocess.STDOUT,
                    env=env if self._binary is None else {**env, _TAG_VARIABLE: tag},
                    start_new_session=True,
                    pass_fds=descriptors,
                )
        except OSError as error:
            _close_lifeline(lifeline)
            os.close(read)
            raise SandboxAgentError(f"the local server could not be started: {error}") from error
        finally:
            for descriptor in descriptors[1:]:
                os.close(descriptor)
        child = _Child(process, port, token, lifeline, output)
        _running.add(child)
        try:
            output.read(process.stdout)
            if self._binary is not None:
                child.watcher = _start_watcher(read, tag, process.pid)
        except BaseException:
            _stop(child, 0.0)
            raise
        finally:
            os.close(read)
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
        if child is None or not _has_exited(child.process) or sandbox_id in self._restarting:
            return
        self._restarting.add(sandbox_id)
        try:
            await asyncio.to_thread(_stop, child, 0.0)
            await self._start(sandbox_id, child.port, child.token)
        finally:
            self._restarting.discard(sandbox_id)

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
    agent_env_policy: Literal["strict", "default"] = "strict",
    agents: str | os.PathLike[str] | None = None,
    agent_commands: Mapping[str, str | Sequence[str]] | None = None,
    args: Sequence[str] = (),
) -> LocalProvider:
    """Return a provider that starts the server on this machine. Its sandbox ids are ``local/host:port``.

    The server ends with ``destroy_sandbox``, and with this program: when it exits, and within 5 s when it is
    killed (SIGTERM, SIGHUP, SIGKILL, out of memory). It then stops its agents and flushes its store: the next
    program finds all events there, and the running turn as ``interrupted``. Forks by Python do not keep the
    server running; a fork by C code that does not call exec does.

    If ``binary`` is another server, a small process of ours watches for it. When this program ends, it sends
    SIGTERM to the server, and after its exit, at the latest after 3 s, SIGKILL to its process group and, on
    Linux, to all other processes that the server has started.

    Args:
        host: The address to listen on.
        port: The port, or None for a free one.
        token: The bearer token, or None for a random one.
        env: Variables to add to the environment of the server and its agents.
        log: Where its output goes: "inherit" (this program's stderr), "silent", or the path of a file.
        binary: Another ``sandbox-agent`` program to run instead of this package's.
        store: Its ``--store`` (``memory``, ``sqlite:PATH``).
        agent_env_policy: Which other variables of this program agents get: "strict" for those that programs
            need (PATH, HOME, proxies, ...) and those that are known for the agent, such as
            ANTHROPIC_API_KEY for claude; "default" for all but the server's secrets. Not with ``binary``.
        agents: A TOML file with more agents; see docs/agents.md. Not with ``binary``.
        agent_commands: More agents: the command line that speaks ACP, by id. Not with ``binary``.
        args: More command line arguments.

    Raises:
        ValueError: Agents are given with ``binary``.
        ImportError: The extra ``server`` is not installed, and ``binary`` is not given.
    """
    return LocalProvider(
        host=host,
        port=port,
        token=token,
        env=env,
        log=log,
        binary=binary,
        store=store,
        agent_env_policy=agent_env_policy,
        agents=agents,
        agent_commands=agent_commands,
        args=args,
    )


# The servers that are still running, and the write ends of their pipes.
_running: set[_Child] = set()
_lifelines: set[IO[bytes]] = set()


@atexit.register
def _stop_at_exit() -> None:
    for child in list(_running):
        _stop(child, STOP_TIMEOUT)


def _disown_in_fork() -> None:
    """Leave the servers to the parent process: a fork that held their lifelines would keep them running."""
    for lifeline in list(_lifelines):
        _close_lifeline(lifeline)
    for child in _running:
        if child.process.stdout is not None:
            child.process.stdout.close()
    _running.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_disown_in_fork)


def _close_lifeline(lifeline: IO[bytes]) -> None:
    _lifelines.discard(lifeline)
    lifeline.close()


def _written_pipe(text: str) -> int:
    """Return the read end of a pipe that holds a text, and nothing afterwards."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        os.write(write, text.encode())  # a pipe takes more than a header with a token may have
    finally:
        os.close(write)
    return read


def _start_watcher(lifeline: int, tag: str, server: int) -> subprocess.Popen[bytes]:
    """Start a process that ends another server's tree when the lifeline closes."""
    return subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-S", "-m", "sandbox_agent.runtime.warden_main", tag, str(server)],
        stdin=lifeline,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PYTHONPATH": str(_PACKAGE_ROOT)},
        start_new_session=True,
    )


def _stop(child: _Child, grace: float) -> None:
    """Stop a server, or clean up after one that has exited."""
    process = child.process
    if child.watcher is not None:
        # It must not signal the server's pid once another process may have it.
        child.watcher.kill()
        child.watcher.wait()
    if grace > 0 and not _has_exited(process):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, signal.SIGTERM)
        _wait_exited(process, grace)
    # Kill the group even if its leader has exited: it may have left children.
    _kill_group(process)
    process.wait()
    _running.discard(child)
    _close_lifeline(child.lifeline)
    child.output.close()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a server's process group if the server is not reaped: afterwards its pid may be another's."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _has_exited(process: subprocess.Popen[bytes]) -> bool:
    """Return whether a server has exited. It is not reaped, except on macOS before Python 3.13."""
    if process.returncode is not None:
        return True
    if not hasattr(os, "waitid"):
        return process.poll() is not None
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    except ChildProcessError:  # something else in this program has reaped it
        return process.poll() is not None


def _wait_exited(process: subprocess.Popen[bytes], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not _has_exited(process) and time.monotonic() < deadline:
        time.sleep(POLL_INTERVAL)


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


async def _wait_responding(child: _Child, url: str) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + START_TIMEOUT
    headers = {"Authorization": f"Bearer {child.token}"}
    transport = httpx2.AsyncHTTPTransport(verify=False)  # no TLS, and no proxy
    async with httpx2.AsyncClient(transport=transport, headers=headers, timeout=CONNECT_TIMEOUT) as client:
        while True:
            # A port that is open is not enough: a server that can't open its store exits after it listens.
            with contextlib.suppress(httpx2.TransportError):
                await client.get(f"{url}/v1/health")
                return
            if _has_exited(child.process):
                _kill_group(child.process)
                code = child.process.wait()
                child.output.close()  # waits for the rest
                raise SandboxAgentError(
                    f"the local server exited with code {code} at its start{child.output.tail()}"
                )
            if loop.time() > deadline:
                raise SandboxAgentError(
                    f"the local server did not respond on {url} within {START_TIMEOUT:g} s"
                    f"{child.output.tail()}"
                )
            await asyncio.sleep(POLL_INTERVAL)


class _Output:
    """The output of a server: copied to stderr, dropped or appended to a file; its end is kept for errors."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._path: Path | None = None if log in ("inherit", "silent") else Path(log)
        self._start = 0
        self._tail = b""
        self._reader: threading.Thread | None = None

    @contextlib.contextmanager
    def target(self) -> Generator[int | IO[bytes]]:
        """Yield what the server writes to."""
        if self._path is None:
            yield subprocess.PIPE
            return
        make_private_folder(self._path.parent)
        with open(self._path, "ab", opener=open_private) as file:
            self._start = file.tell()
            yield file

    def read(self, pipe: IO[bytes] | None) -> None:
        """Read the server's output in the background until it ends."""
        if pipe is not None:
            self._reader = threading.Thread(
                target=self._read, args=(pipe,), name="sandbox-agent-output", daemon=True
            )
            self._reader.start()

    def _read(self, pipe: IO[bytes]) -> None:
        with pipe:
            while data := pipe.read(65_536):
                self._tail = (self._tail + data)[-LOG_TAIL_BYTES:]
                with contextlib.suppress(OSError):  # stderr is closed: the server must not notice
                    while self._log == "inherit" and data:
                        data = data[os.write(2, data) :]

    def close(self) -> None:
        """Wait until all output of an exited server is read, unless a process that it left holds the pipe."""
        if self._reader is not None:
            self._reader.join(OUTPUT_TIMEOUT)

    def tail(self) -> str:
        """Return the last output for an error message."""
        data = self._tail
        if self._path is not None:
            with self._path.open("rb") as file:
                file.seek(self._start)
                data = file.read()[-LOG_TAIL_BYTES:]
        text = data.decode("utf-8", "replace").strip()
        return f": {text}" if text else ", without any output"
