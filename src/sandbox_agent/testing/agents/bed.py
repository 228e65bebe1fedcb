"""A server with one agent, its scripted model and an empty home, in a folder of their own."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox_agent.agents.catalogue import CATALOGUE
from sandbox_agent.agents.launch import resolve
from sandbox_agent.client.agent import SandboxAgent
from sandbox_agent.providers.local import LocalProvider, local
from sandbox_agent.runtime.process_tree import TAG_VARIABLE
from sandbox_agent.testing import mcp
from sandbox_agent.testing.agents.profile import Profile
from sandbox_agent.testing.llm import LLMRequest, ScriptedLLM
from sandbox_agent.testing.loopback import LoopbackServer

# Seconds for what takes a moment: a killed process to be gone, a request to reach the model.
MOMENT = 30.0
_POLL_SECONDS = 0.02
# Nothing but loopback: nothing listens on this port.
_NOWHERE = "http://127.0.0.1:9"


@dataclass(slots=True)
class AgentBed:
    """A running server with one agent.

    Attributes:
        agent: The agent's id.
        profile: What is known about it.
        llm: Its model.
        sdk: A client of the server.
        provider: What starts the server.
        home: The agent's home folder.
        work: The folder in which it works.
        mcp_url: An MCP server over HTTP.
    """

    agent: str
    profile: Profile
    llm: ScriptedLLM
    sdk: SandboxAgent
    provider: LocalProvider
    home: Path
    work: Path
    mcp_url: str

    def mcp_server(self) -> dict[str, object]:
        """Return the MCP server in ACP's shape, with the transport that the agent has."""
        if self.profile.mcp == "http":
            return {"type": "http", "name": "tiny", "url": self.mcp_url, "headers": []}
        arguments = ["-P", "-m", "sandbox_agent.testing.mcp"]
        return {"name": "tiny", "command": sys.executable, "args": arguments, "env": []}

    async def requests_with(self, text: str) -> list[LLMRequest]:
        """Return the requests to the model whose prompt has the text; wait until there is one.

        One of them may be for a title of the prompt.
        """
        with anyio.fail_after(MOMENT):
            while True:
                found = [each for each in self.llm.requests if text in each.prompt]
                found = [each for each in found if _aside(self.profile, each) is None]
                if found:
                    return found
                await anyio.sleep(_POLL_SECONDS)

    async def recorded(self, session_id: str) -> list[dict[str, Any]]:
        """Return the envelopes of a server session, in order, as the server has recorded them."""
        sandbox_id = (self.sdk.sandbox_id or "").partition("/")[2]
        token = await self.provider.get_token(sandbox_id)
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        url = f"{await self.provider.get_url(sandbox_id)}/v1/sessions/{session_id}/envelopes"
        found: list[dict[str, Any]] = []
        async with httpx2.AsyncClient(headers=headers, trust_env=False, timeout=MOMENT) as http:
            while True:
                response = await http.get(url, params={"after": found[-1]["index"] if found else 0})
                response.raise_for_status()
                page = response.json()
                found += page["envelopes"]
                if not page["hasMore"]:
                    return [each["envelope"] for each in found]

    async def kill_agent(self) -> None:
        """SIGKILL all processes of the agent, and wait until the server has noticed."""
        assert sys.platform == "linux", "the processes of an agent are found on Linux only"
        with anyio.fail_after(MOMENT):
            while True:
                found = processes_of(self.home, tagged=True)
                if not found and not await self.sdk.list_acp_servers():
                    return
                for pid in found:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                await anyio.sleep(_POLL_SECONDS)

    async def strays(self, seconds: float = MOMENT) -> list[str]:
        """Return the command lines of processes whose agent has ended. Only on Linux.

        Args:
            seconds: How long such processes may take to end.
        """
        found: list[str] = []
        with anyio.move_on_after(seconds):
            while True:
                found = _without_agent(
                    processes_of(self.home, tagged=True),
                    self.provider.pid((self.sdk.sandbox_id or "").partition("/")[2]),
                    len(await self.sdk.list_acp_servers()),
                )
                if not found:
                    break
                await anyio.sleep(_POLL_SECONDS)
        return found

    async def kill_server(self) -> None:
        """SIGKILL the server, and start it again."""
        sandbox_id = (self.sdk.sandbox_id or "").partition("/")[2]
        pid = self.provider.pid(sandbox_id)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with anyio.fail_after(MOMENT):
            while self.provider.pid(sandbox_id) == pid:
                await self.provider.ensure_server(sandbox_id)
                await anyio.sleep(_POLL_SECONDS)


@asynccontextmanager
async def open_bed(
    agent: str,
    profile: Profile,
    folder: Path,
    *,
    command: Sequence[str] | None = None,
    record: Path | None = None,
) -> AsyncGenerator[AgentBed]:
    """Start a server with one agent in an empty folder.

    Args:
        agent: The agent's id.
        profile: What is known about it.
        folder: The folder.
        command: The agent's command; None for the one that is installed.
        record: A file for the agent's ACP traffic, or None.

    Raises:
        AgentNotInstalledError: The agent is not installed.
    """
    home, work, data = folder / "home", folder / "work", folder / "data"
    for each in (home, work, data):
        each.mkdir(parents=True)
    _write_launcher(agent, data, command, record)
    async with (
        ScriptedLLM(lambda request: _aside(profile, request)) as llm,
        LoopbackServer(_mcp_app()) as mcp_server,
    ):
        profile.write_files(llm.url, home)
        provider = local(
            store=f"sqlite:{folder / 'server.db'}",
            log=folder / "server.log",
            args=[f"--agent-env-deny={name}" for name in _own_variables(agent)],
            env=_environment(profile, llm.url, home, data),
        )
        sdk = await SandboxAgent.start(sandbox=provider, persist=f"sqlite:{folder / 'sdk.db'}")
        try:
            yield AgentBed(agent, profile, llm, sdk, provider, home, work, f"{mcp_server.url}/mcp")
        finally:
            with anyio.CancelScope(shield=True):  # bounded: the provider kills what does not end
                await sdk.destroy_sandbox()


def _aside(profile: Profile, request: LLMRequest) -> str | None:
    """Return the answer to a request of the agent's own, such as that for a title of the prompt."""
    return "An aside" if profile.write is not None and not request.tools else None


def processes_of(home: Path, *, tagged: bool = False) -> dict[int, str]:
    """Return the command lines by pid of processes that have that home folder. Only on Linux.

    Args:
        home: The folder.
        tagged: Only those of agents, not the server's own.
    """
    wanted = [f"HOME={home}".encode()]
    found: dict[int, str] = {}
    for entry in os.scandir("/proc") if sys.platform == "linux" else ():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            variables = Path(entry.path, "environ").read_bytes().split(b"\0")
            command = Path(entry.path, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has ended, or belongs to another user
        is_tagged = any(each.startswith(f"{TAG_VARIABLE}=".encode()) for each in variables)
        if wanted[0] in variables and (is_tagged or not tagged):
            found[int(entry.name)] = command.strip()
    return found


def _without_agent(processes: Mapping[int, str], server: int | None, connections: int) -> list[str]:
    """Return the processes that are not below the server, or all if it has more agents than connections.

    Between the server and an agent are its warden, and the keeper of that agent.
    """
    outside: list[str] = []
    keepers: set[int] = set()
    for pid, command in processes.items():
        line = [pid]
        while line[-1] > 1 and line[-1] != server:
            line.append(_parent_of(line[-1]))
        if line[-1] != server:
            outside.append(command)
        else:
            keepers.update(line[-3:-2])
    return [*processes.values()] if len(keepers) > connections else outside


def _parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0  # it has ended


def _own_variables(agent: str) -> tuple[str, ...]:
    """Return the variables of the agent: the user's would lead it to other keys, endpoints and folders."""
    known = CATALOGUE.get(agent)
    return () if known is None else (*known.credential_env, *known.env)


def _environment(profile: Profile, url: str, home: Path, data: Path) -> dict[str, str]:
    return {
        "HOME": str(home),
        "XDG_DATA_HOME": str(data),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "XDG_STATE_HOME": str(home / ".local/state"),
        "HTTP_PROXY": _NOWHERE,
        "HTTPS_PROXY": _NOWHERE,
        "NO_PROXY": "127.0.0.1,localhost",
        "http_proxy": _NOWHERE,
        "https_proxy": _NOWHERE,
        "no_proxy": "127.0.0.1,localhost",
        # Otherwise the processes that are left cannot be found by their environment.
        "SANDBOX_AGENT_ALLOW_DEBUGGER": "1",
        "SANDBOX_AGENT_REQUIRE_PREINSTALL": "1",
        **profile.variables(url, home),
    }


def _write_launcher(agent: str, data: Path, command: Sequence[str] | None, record: Path | None) -> None:
    """Write the launcher that the server starts: the agent's command, with the recorder in front."""
    lines = ["#!/bin/sh"]
    if command is None:
        launch = resolve(agent)
        command = launch.argv
        lines += [f"export {name}={shlex.quote(value)}" for name, value in launch.env.items()]
        lines += [] if launch.cwd is None else [f"cd {shlex.quote(str(launch.cwd))}"]
    if record is not None:
        recorder = [sys.executable, "-P", "-m", "sandbox_agent.testing.record"]
        command = [*recorder, str(record), "--", *command]
    launcher = data / f"sandbox-agent/bin/agent_processes/{agent}-acp"
    launcher.parent.mkdir(parents=True)
    launcher.write_text("\n".join([*lines, f'exec {shlex.join(command)} "$@"', ""]), encoding="utf-8")
    launcher.chmod(0o755)


def _mcp_app() -> Starlette:
    async def post(request: Request) -> Response:
        response = mcp.answer(await request.json())
        return Response(status_code=202) if response is None else JSONResponse(response)

    return Starlette(routes=[Route("/mcp", post, methods=["POST"])])
