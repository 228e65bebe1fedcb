"""Runs the programs of an installation: their output line by line, and an error that has the end of it."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from sandbox_agent.agents.catalogue import known_agents
from sandbox_agent.agents.credentials import KEY_VARIABLES
from sandbox_agent.agents.environment import is_server_secret
from sandbox_agent.agents.launch import data_dir
from sandbox_agent.errors import InstallFailedError
from sandbox_agent.runtime.process import Process, SpawnError
from sandbox_agent.runtime.warden import KEEPS, Warden

# npm and pip end their own requests much earlier. This is for a program that hangs.
COMMAND_SECONDS = 1800.0
# How much of the output an error contains.
_TAIL_LINES = 20
_LINE_CHARS = 300
_SECRET_NAME = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|AUTH)$", re.IGNORECASE)
_SECRET_TEXT = re.compile(r"(?<=//)[^/@\s]+(?=@)|(?<=_authToken=)\S+|(?<=[Bb]earer )\S+")
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


async def run_command(
    argv: Sequence[str],
    *,
    cwd: Path,
    warden: Warden,
    on_line: Callable[[str], None],
    env: Mapping[str, str] | None = None,
    without: Collection[str],
    what: str,
    agent_id: str,
) -> None:
    """Run a program to its end. If the caller is cancelled, the program and its children are ended.

    Args:
        argv: The program and its arguments.
        cwd: Its working directory.
        warden: Ends it if this process is killed.
        on_line: Called with each line of its output, redacted.
        env: Variables to add to its environment.
        without: Variables that it does not inherit, besides the server's secrets.
        what: The name of the program in errors.
        agent_id: The agent that is installed.

    Raises:
        InstallFailedError: It cannot be started, fails, or does not end. The message has the end of its
            output.
    """
    tail: deque[str] = deque(maxlen=_TAIL_LINES)

    def on_output(line: bytes) -> None:
        text = redact(line.decode("utf-8", "replace"))
        if text:
            tail.append(text)
            on_line(text)

    try:
        with anyio.fail_after(COMMAND_SECONDS):
            code = await _run(argv, cwd, warden, env or {}, without, on_output)
    except SpawnError as error:
        raise InstallFailedError(f"install failed: {redact(str(error))}", agent=agent_id) from error
    except TimeoutError as error:
        raise InstallFailedError(
            f"install failed: {what} did not end within {COMMAND_SECONDS:g} s: {_describe(tail)}",
            agent=agent_id,
        ) from error
    if code != 0:
        raise InstallFailedError(
            f"install failed: {what} ended with {code}: {_describe(tail)}", agent=agent_id
        )


async def _run(
    argv: Sequence[str],
    cwd: Path,
    warden: Warden,
    env: Mapping[str, str],
    without: Collection[str],
    on_output: Callable[[bytes], None],
) -> int | str:
    rest = b""

    def on_data(data: bytes) -> bool:
        nonlocal rest
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            on_output(line)
        rest = rest[-_LINE_CHARS:]
        return True

    async with spawned(
        ["/bin/sh", "-c", 'exec "$@" 2>&1', "sh", *argv], cwd, warden, env, without
    ) as process:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(process.stdout.listen, on_data)
            await process.wait()
            tasks.cancel_scope.cancel()
        for data in process.stdout.read_leftover():
            on_data(data)
        on_output(rest)
    status = process.status
    if status is None or status.code is None:
        return f"signal {status.signal if status else '?'}"
    return status.code


def credential_names() -> frozenset[str]:
    """Return the variables that hold credentials of agents: a package's code is installed without them."""
    agents = known_agents().values()
    others = {name for agent in agents for name in agent.env if _SECRET_NAME.search(name)}
    return KEY_VARIABLES | others | {name for agent in agents for name in agent.credential_env}


def path_with(folder: Path) -> str:
    """Return this process's PATH with a folder in front."""
    return f"{folder}:{os.environ.get('PATH', os.defpath)}"


def redact(text: str) -> str:
    """Return a line of output without secrets, control characters and this machine's folders."""
    text = _SECRET_TEXT.sub("***", _CONTROL.sub("", text)).strip()
    for name, value in os.environ.items():
        if len(value) >= 8 and _SECRET_NAME.search(name):
            text = text.replace(value, "***")
    text = text.replace(str(data_dir()), "$XDG_DATA_HOME/sandbox-agent")
    home = os.environ.get("HOME", "")
    text = text.replace(f"{home}/", "~/") if len(home) > 1 else text
    return text if len(text) <= _LINE_CHARS else f"{text[:_LINE_CHARS]}…"


def _describe(tail: Collection[str]) -> str:
    """Return npm's and pip's error lines as one, or the last lines."""
    errors = [line for line in tail if re.match(r"npm (error|ERR!)|ERROR:", line)]
    lines = [re.sub(r"^(npm (error|ERR!)|ERROR:)\s*", "", line) for line in errors or list(tail)[-5:]]
    return "; ".join(line for line in lines if line) or "no output"


@asynccontextmanager
async def spawned(
    argv: Sequence[str], cwd: Path, warden: Warden, env: Mapping[str, str], without: Collection[str]
) -> AsyncGenerator[Process]:
    """Start a process that ends with the context, or with this process if that is killed.

    Raises:
        SpawnError: It cannot be started.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in without and not is_server_secret(name)
    }
    try:
        await warden.ready()
        process = await Process.spawn(
            argv, env={**inherited, **env}, cwd=cwd, tag_prefix=warden.tag, warden=warden
        )
    except OSError as error:
        raise SpawnError(f"can't start {argv[0]}: {error.strerror}") from error
    try:
        if not KEEPS:
            await warden.watch(process.pid)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(process.pump_stderr)
            yield process
            tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):  # bounded: stop() walks a timed ladder
            await process.stop()
            if not KEEPS:
                await warden.release(process.pid)
        process.close()
