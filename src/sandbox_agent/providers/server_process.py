"""The process of a server that a provider on this machine starts, which ends with this program.

The server inherits the read end of a pipe, its lifeline, whose write end only this process holds. However
this process ends, the kernel closes the write end and the server shuts down. A server that is another program
does not know the pipe, so a small process watches it and ends the server.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import IO, Literal

import httpx2

from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.persist.private import make_private_folder, open_private

# Seconds. On SIGTERM the server drains and ends its agents. After this time its group is killed.
STOP_TIMEOUT = 5.0
# Seconds until a server that does not respond is given up.
START_TIMEOUT = 30.0
POLL_INTERVAL = 0.02
CONNECT_TIMEOUT = 2.0
LOG_TAIL_BYTES = 2_000
# How long a server that has exited may leave its output open.
OUTPUT_TIMEOUT = 1.0
# Names the lifeline's descriptor. The server removes it from its environment.
LIFELINE_VARIABLE = "SANDBOX_AGENT_LIFELINE"
# The variable by which the watcher finds the processes of another server (runtime/process_tree.py).
_TAG_VARIABLE = "SANDBOX_AGENT_PROCESS_TAG"
PACKAGE_ROOT = Path(__file__).parents[2]

Log = Literal["inherit", "silent"] | str | os.PathLike[str]


class ServerProcess:
    """A server that runs, or has exited.

    Attributes:
        pid: Its process id.
        stopping: Whether ``stop`` was called.
    """

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        *,
        log: Log,
        descriptors: Sequence[int] = (),
        is_watched: bool = False,
        ends_by_lifeline: bool = False,
        name: str = "the local server",
    ) -> None:
        """Start the server.

        Args:
            command: Its command line.
            env: Its whole environment, to which the lifeline is added.
            log: Where its output goes.
            descriptors: What it inherits besides, and this process closes.
            is_watched: It does not know the lifeline: a process of ours ends it.
            ends_by_lifeline: It is the child of a program that does not pass signals on: to stop it, its
                lifeline is closed.
            name: What it is, in errors.

        Raises:
            SandboxAgentError: The program could not be started.
        """
        tag = f"local-{uuid.uuid4().hex}"
        read, write = os.pipe()
        self._lifeline: IO[bytes] = open(write, "wb", buffering=0)  # noqa: PTH123, SIM115 - closed by stop
        _lifelines.add(self._lifeline)
        self._ends_by_lifeline = ends_by_lifeline
        self._name = name
        self.stopping: bool = False
        self._watcher: subprocess.Popen[bytes] | None = None
        self._output = _Output(log)
        added = {LIFELINE_VARIABLE: str(read), **({_TAG_VARIABLE: tag} if is_watched else {})}
        try:
            with self._output.target() as target:
                self._process: subprocess.Popen[bytes] = subprocess.Popen(  # noqa: S603 - ours or the caller's
                    command,
                    bufsize=0,
                    stdin=subprocess.DEVNULL,
                    stdout=target,
                    stderr=subprocess.STDOUT,
                    env={**env, **added},
                    start_new_session=True,
                    pass_fds=[read, *descriptors],
                )
        except OSError as error:
            _close_lifeline(self._lifeline)
            os.close(read)
            raise SandboxAgentError(f"{name} could not be started: {error}") from error
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self.pid: int = self._process.pid
        _running.add(self)
        try:
            self._output.read(self._process.stdout)
            if is_watched:
                self._watcher = _start_watcher(read, tag, self.pid)
        except BaseException:
            self.stop(0.0)
            raise
        finally:
            os.close(read)

    def stop(self, grace: float) -> None:
        """Stop the server, or clean up after one that has exited.

        Args:
            grace: Seconds that it has to end by itself. With 0 it is killed at once.
        """
        self.stopping = True
        if self._watcher is not None:
            # It must not signal the server's pid once another process may have it.
            self._watcher.kill()
            self._watcher.wait()
        if grace > 0 and not self.has_exited():
            if self._ends_by_lifeline:
                _close_lifeline(self._lifeline)
            else:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(self.pid, signal.SIGTERM)
            deadline = time.monotonic() + grace
            while not self.has_exited() and time.monotonic() < deadline:
                time.sleep(POLL_INTERVAL)
        # Kill the group even if its leader has exited: it may have left children.
        self._kill_group()
        self._process.wait()
        _running.discard(self)
        _close_lifeline(self._lifeline)
        self._output.close()

    def has_exited(self) -> bool:
        """Return whether the server has exited. It is not reaped, except on macOS before Python 3.13."""
        if self._process.returncode is not None:
            return True
        if not hasattr(os, "waitid"):
            return self._process.poll() is not None
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
        except ChildProcessError:  # something else in this program has reaped it
            return self._process.poll() is not None

    def wait_exited(self) -> None:
        """Block until the server has exited. Only on Linux."""
        with contextlib.suppress(ChildProcessError):  # it is reaped
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    async def wait_responding(
        self, url: str, token: str, transport: httpx2.AsyncBaseTransport | None = None
    ) -> None:
        """Wait until the server answers requests.

        Raises:
            SandboxAgentError: It has exited, or did not respond in time. The message ends with its output.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + START_TIMEOUT
        headers = {"Authorization": f"Bearer {token}"}
        transport = transport or httpx2.AsyncHTTPTransport(verify=False)  # no TLS, and no proxy
        async with httpx2.AsyncClient(
            transport=transport, headers=headers, timeout=CONNECT_TIMEOUT
        ) as client:
            while True:
                # An open port is not enough: a server that cannot open its store exits after it listens.
                with contextlib.suppress(httpx2.TransportError):
                    await client.get(f"{url}/v1/health")
                    return
                if self.has_exited():
                    self._kill_group()
                    code = self._process.wait()
                    self._output.close()  # waits for the rest
                    raise SandboxAgentError(
                        f"{self._name} exited with code {code} at its start{self._output.tail()}"
                    )
                if loop.time() > deadline:
                    raise SandboxAgentError(
                        f"{self._name} did not respond on {url} within {START_TIMEOUT:g} s"
                        f"{self._output.tail()}"
                    )
                await asyncio.sleep(POLL_INTERVAL)

    def _kill_group(self) -> None:
        """Kill the process group if its leader is not reaped: afterwards its pid may be another's."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def disown(self) -> None:
        """In a fork: leave the server to the parent process, which has its lifeline."""
        if self._process.stdout is not None:
            self._process.stdout.close()


# The servers that are still running, and the write ends of their pipes.
_running: set[ServerProcess] = set()
_lifelines: set[IO[bytes]] = set()


@atexit.register
def _stop_at_exit() -> None:
    for server in list(_running):
        server.stop(STOP_TIMEOUT)


def _disown_in_fork() -> None:
    """Leave the servers to the parent process: a fork that held their lifelines would keep them running."""
    for lifeline in list(_lifelines):
        _close_lifeline(lifeline)
    for server in _running:
        server.disown()
    _running.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_disown_in_fork)


def _close_lifeline(lifeline: IO[bytes]) -> None:
    _lifelines.discard(lifeline)
    lifeline.close()


def written_pipe(text: str) -> int:
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
        env={"PYTHONPATH": str(PACKAGE_ROOT)},
        start_new_session=True,
    )


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
