"""What a process of the sandbox is made of: a child with pipes or with a terminal."""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import anyio

from sandbox_agent.agents.environment import AgentEnvironment, check_variables
from sandbox_agent.errors import InvalidRequestError, ProblemError, StreamError
from sandbox_agent.runtime.process import ExitStatus, Process, SpawnError
from sandbox_agent.runtime.pty import TerminalSize
from sandbox_agent.server.children import Children
from sandbox_agent.wire.processes import ProcessCreateRequest, ProcessRunRequest

# What is wrong with a command that the kernel refuses for one of these.
_FAULTS_OF_COMMANDS = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
    *(errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.E2BIG, errno.EINVAL),
)
# What terminals of today understand. The server's own terminal, if it has one, is another.
_TERMINAL: Final = {"TERM": "xterm-256color"}
# Called with the stream and what was read.
OnOutput = Callable[[str, bytes], None]


class Child(Protocol):
    """A child that runs.

    Attributes:
        pid: its process id.
    """

    pid: int

    async def run(self, on_output: OnOutput) -> ExitStatus:
        """Pass its output on until it has ended, then its last output; return how it has ended.

        With it, everything that it has started ends. Its owner calls this once, in a task of its own.
        """
        ...

    async def write(self, data: bytes) -> None:
        """Write to its input.

        Raises:
            BrokenPipeError: it has closed its input.
        """
        ...

    def end_input(self) -> None:
        """End its input.

        Raises:
            ConflictError: it has a terminal.
        """
        ...

    async def signal(self, signum: signal.Signals) -> None:
        """Send SIGTERM or SIGKILL to it and to everything that it has started."""
        ...

    async def stop(self) -> None:
        """End it: SIGTERM, and SIGKILL soon after. ``run`` then returns."""
        ...


@dataclass(frozen=True, slots=True)
class Spawner:
    """Starts the commands of clients.

    Attributes:
        children: starts them.
        environment: what they inherit, and their user.
        proxy: returns the variables by which a command finds the proxy of the sandbox.
    """

    children: Children
    environment: AgentEnvironment
    proxy: Callable[[], Mapping[str, str]]
    _inherited: Mapping[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Once: the variables of the server do not change while it runs.
        object.__setattr__(self, "_inherited", self.environment.variables(""))

    async def spawn(
        self,
        request: ProcessCreateRequest | ProcessRunRequest,
        *,
        lingers: bool = False,
        size: TerminalSize | None = None,
    ) -> Process:
        """Start a command with pipes, or with a terminal.

        Args:
            request: the command.
            lingers: whether what it starts in the background goes on when it has ended.
            size: that of its terminal; None for pipes.

        Raises:
            InvalidRequestError: it can't be started.
            StreamError: the server can't start anything.
        """
        try:
            return await self.children.spawn(
                [request.command, *request.args],
                env=self.variables(request.env if size is None else {**_TERMINAL, **request.env}),
                user=self.environment.user,
                cwd=request.cwd,
                lingers=lingers,
                size=size,
            )
        except SpawnError as error:
            raise spawn_error(error, request) from error

    def variables(self, env: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of a command with variables of its own."""
        return {**self._inherited, **self.proxy(), **env}


def spawn_error(error: SpawnError, request: ProcessCreateRequest | ProcessRunRequest) -> ProblemError:
    """Return the answer to a command that can't be started: is it the command, or the server?"""
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno not in _FAULTS_OF_COMMANDS:
        return StreamError(f"stream error: {error}")
    if request.cwd is not None and not _is_folder(request.cwd):
        return InvalidRequestError(
            f"invalid request: can't start {request.command}: its working directory {request.cwd} does not "
            "exist, or is not a folder"
        )
    return InvalidRequestError(f"invalid request: {error}")


def _is_folder(path: str) -> bool:
    try:
        return Path(path).is_dir()
    except OSError:  # in a folder that this process may not enter
        return False


def check_command(request: ProcessCreateRequest | ProcessRunRequest) -> None:
    """Check a command.

    Raises:
        InvalidRequestError: it can't be a command.
    """
    if not request.command.strip():
        raise InvalidRequestError("invalid request: command must not be empty")
    for name, value in _texts(request):
        if "\0" in value:
            raise InvalidRequestError(f"invalid request: {name} has a NUL character: remove it")
    check_variables(request.env)


def _texts(request: ProcessCreateRequest | ProcessRunRequest) -> Generator[tuple[str, str]]:
    yield "command", request.command
    yield from (("an argument", value) for value in request.args)
    yield "cwd", request.cwd or ""


class PipeChild:
    """A child with pipes, whose output is the streams "stdout" and "stderr".

    Args:
        process: its process.
        children: what has started it.
    """

    def __init__(self, process: Process, children: Children) -> None:
        self.pid: int = process.pid
        self._process = process
        self._children = children

    async def run(self, on_output: OnOutput) -> ExitStatus:
        process = self._process
        try:
            status = await read_output(process, on_output)
            await process.sweep()  # first: a grandchild that writes would keep the pipes from draining
            drain(process, on_output)
            return status
        finally:
            process.close()
            await self._children.release(process)

    async def write(self, data: bytes) -> None:
        await self._process.write(data)

    def end_input(self) -> None:
        self._process.close_stdin()

    async def signal(self, signum: signal.Signals) -> None:
        await self._process.signal(signum)
        if signum == signal.SIGKILL:
            await self._process.wait_killed()

    async def stop(self) -> None:
        await self._process.stop(eof_grace=0)


async def read_output(process: Process, on_output: OnOutput) -> ExitStatus:
    """Pass the output of a process on until its leader has ended; return how it has ended."""
    failures: list[Exception] = []
    with anyio.CancelScope() as scope:

        def pass_on(stream: str, data: bytes) -> bool:
            try:
                on_output(stream, data)
            except Exception as error:  # noqa: BLE001 - raised below
                failures.append(error)
                scope.cancel()
            return not failures

        # Without a task for each: most commands are short.
        process.stdout.start(partial(pass_on, "stdout"))
        process.stderr.start(partial(pass_on, "stderr"))
        try:
            return await process.wait()
        finally:
            process.stdout.stop()
            process.stderr.stop()
    raise failures[0]


def drain(process: Process, on_output: OnOutput) -> None:
    """Pass on what a process that has ended left in its pipes."""
    for stream, reader in (("stdout", process.stdout), ("stderr", process.stderr)):
        for data in reader.read_leftover():
            on_output(stream, data)
