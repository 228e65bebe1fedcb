"""Servers under test: ours and the published one, as child processes on loopback."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.npm import rust_server

__all__ = [
    "SERVER",
    "ServerProcess",
    "descendants",
    "free_port",
    "our_server",
    "published_server",
    "put_launcher",
    "serving",
]

SERVER = [sys.executable, "-m", "sandbox_agent.cli.main", "server"]
HEALTHY_SECONDS = 20.0


def free_port() -> int:
    """Return a port on which nothing listens now.

    It is not one of those that the kernel gives to outgoing connections, which could take it meanwhile.
    """
    while True:
        port = random.randrange(10_240, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def put_launcher(data_home: Path, agent: str, command: Sequence[str]) -> None:
    """Put a launcher for an agent into the layout that both servers use, and a dummy native binary."""
    binaries = data_home / "sandbox-agent/bin"
    (binaries / "agent_processes").mkdir(parents=True, exist_ok=True)
    quoted = " ".join(f"'{word}'" for word in command)
    for path, script in (
        (binaries / "agent_processes" / f"{agent}-acp", f"exec {quoted}"),
        (binaries / agent, "exit 0"),
    ):
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)


def descendants(pid: int) -> list[int]:
    """Return the children of a process, and theirs: the warden, the keepers and the agents of a server."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - as below
            with open(f"/proc/{pid}/task/{task}/children") as file:  # noqa: PTH123 - refused in async tests
                for child in map(int, file.read().split()):
                    found += [child, *descendants(child)]
    return found


class ServerProcess:
    """A server as a child process; entering starts it and waits until it is healthy.

    Attributes:
        url: the base URL for clients; a test may replace it by that of a gateway in front.
        own_url: the server's own base URL.
        port: its port, which stays the same over a restart.
        log: the file that its stdout and stderr go to.
        started_in: seconds from the spawn to the first healthy answer.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        port: int,
        log: Path,
        env: Mapping[str, str] | None = None,
        token: str | None = None,
    ) -> None:
        self.url = self.own_url = f"http://127.0.0.1:{port}"
        self.port = port
        self.log = log
        self.token = token
        self.started_in = 0.0
        self._command = list(command)
        self._env = dict(env or {})
        self._child: subprocess.Popen[bytes] | None = None

    def wrap(self, change: Callable[[Sequence[str]], Sequence[str]]) -> None:
        """Change the command."""
        self._command = list(change(self._command))

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._child is not None
        return self._child.pid

    def start(self) -> None:
        """Start it and wait until it is healthy."""
        begun = time.perf_counter()
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._env},
            )
        while not self._healthy():
            if self._child.poll() is not None or time.perf_counter() - begun > HEALTHY_SECONDS:
                self.kill()
                raise RuntimeError(f"{self._command} is not healthy:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.005)
        self.started_in = time.perf_counter() - begun

    def _healthy(self) -> bool:
        request = urllib.request.Request(f"{self.own_url}/v1/health")
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """SIGKILL it, as a crash or the kernel would, and reap it."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def stop(self) -> int:
        """SIGTERM it and return its exit code (negative: a signal)."""
        assert self._child is not None
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
        try:
            return self._child.wait(15)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def memory(self, name: str = "VmRSS") -> int:
        """Return its resident memory in bytes, or another figure of /proc/<pid>/status (Linux)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(name))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._child is not None and self._child.poll() is None:
            self.stop()


def our_server(
    folder: Path,
    *options: str,
    token: str | None = None,
    env: Mapping[str, str] | None = None,
    port: int | None = None,
    module: str = "sandbox_agent.cli.main",
) -> ServerProcess:
    """Return our server; its agents' layout and its log are in ``folder``.

    Args:
        folder: a folder of the test's own.
        *options: further options of ``sandbox-agent server``.
        token: its token; None for --no-token.
        env: variables on top of this process's. No agent is installed unless it says so.
        port: its port; a free one by default.
        module: what is run in its place.
    """
    port = port or free_port()
    auth = ["--token", token] if token else ["--no-token"]
    command = [sys.executable, "-m", module, "server", "--port", str(port), *auth, *options]
    variables = {
        "XDG_DATA_HOME": str(folder / "data"),
        "SANDBOX_AGENT_REQUIRE_PREINSTALL": "1",
        **(env or {}),
    }
    return ServerProcess(command, port=port, log=folder / "server.log", env=variables, token=token)


@contextlib.contextmanager
def serving(path: Path | str, *options: str, cwd: Path | None = None) -> Generator[subprocess.Popen[str]]:
    """Run a server at a path until the block ends; it listens when the block begins."""
    command = [*SERVER, "--store", "memory", "--uds", str(path), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=cwd) as server:
        assert server.stderr is not None
        try:
            said = ""
            while "listens on the socket" not in said:
                said = server.stderr.readline()
                assert said, "the server ended"
            reader = threading.Thread(target=server.stderr.read)
            reader.start()
            try:
                yield server
            finally:
                server.terminate()
                reader.join()
        finally:
            server.terminate()


def published_server(
    folder: Path, *, token: str | None = None, env: Mapping[str, str] | None = None
) -> ServerProcess:
    """Return the published Rust server, with our mock agent as its ``claude``.

    Raises:
        NpmMissingError: npm is not on PATH, or could not install it.
    """
    put_launcher(folder / "data", "claude", [sys.executable, "-m", "sandbox_agent.agents.mock"])
    port = free_port()
    auth = ["--token", token] if token else ["--no-token"]
    command = [str(rust_server()), "server", "--port", str(port), "--no-telemetry", *auth]
    variables = {
        "XDG_DATA_HOME": str(folder / "data"),
        "SANDBOX_AGENT_REQUIRE_PREINSTALL": "1",
        **(env or {}),
    }
    return ServerProcess(command, port=port, log=folder / "published.log", env=variables, token=token)
