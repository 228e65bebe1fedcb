"""Checks of what agents need: Node.js, their programs and their credentials."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import anyio

from sandbox_agent.agents.catalogue import NpmPackages, known_agents
from sandbox_agent.agents.credentials import find_credentials
from sandbox_agent.agents.info import agent_info, credential_variables
from sandbox_agent.agents.install.node import find_node
from sandbox_agent.agents.install.probe import probe_agent
from sandbox_agent.agents.launch import Launch, agent_ids, resolve
from sandbox_agent.cli.doctor_findings import Finding, ok, problem, warning
from sandbox_agent.engine.handshake import credentials_hint
from sandbox_agent.errors import AgentNotInstalledError, InstallFailedError
from sandbox_agent.runtime.warden import Warden


def check_node() -> Iterator[Finding]:
    """Check that Node.js is as new as the agents from npm need it."""
    floors = {
        name: agent.package.node
        for name, agent in known_agents().items()
        if isinstance(agent.package, NpmPackages)
    }
    advice = "run pip install 'sandbox-agent-py[node]', or put a newer Node.js with npm on PATH"
    version = _node("0")
    if version is None:
        yield warning("node", "no Node.js with npm was found: agents from npm can't be installed", advice)
        return
    too_old = [name for name, floor in floors.items() if _node(floor) is None]
    if too_old:
        needed = ", ".join(f"{name} ({floors[name]})" for name in too_old)
        yield warning("node", f"Node.js {version} is too old for {needed}", advice)
    else:
        yield ok("node", f"Node.js {version}")


@cache
def _node(floor: str) -> str | None:
    try:
        return find_node(floor, agent_id="this agent").version
    except InstallFailedError:
        return None


def check_agents() -> Iterator[Finding]:
    """Start each installed agent once, without credentials, and look for credentials."""
    is_any = False
    for agent_id in agent_ids():
        try:
            found = resolve(agent_id)
        except AgentNotInstalledError:
            continue
        if found.source == "builtin":
            continue
        is_any = True
        check = f"agent {agent_id}"
        try:
            version = anyio.run(_probe, agent_id, found)
        except InstallFailedError as error:
            reason = " ".join(str(error).removeprefix("install failed: ").split())
            advice = f"run 'sandbox-agent agents install --reinstall {agent_id}'"
            yield problem(check, reason, advice)
            continue
        shown = f"{version or 'a version that it does not name'}, {found.path}"
        if agent_info(agent_id).credentials_available:
            yield ok(check, shown)
        else:
            hint = credentials_hint(credential_variables(agent_id)) or "log in with the agent's own program"
            yield warning(check, f"{shown}; no credentials were found", hint.strip(" ;:"))
    if not is_any:
        yield warning(
            "agents",
            "no agent is installed but the built-in 'mock'",
            "run 'sandbox-agent agents install claude', or use an agent: the server then installs it",
        )


async def _probe(agent_id: str, found: Launch) -> str | None:
    warden = Warden(uuid.uuid4().hex)
    try:
        return await probe_agent(agent_id, found.argv, None, warden)
    finally:
        with anyio.CancelScope(shield=True):  # bounded by the warden's own limit
            await warden.close()


def check_credentials(home: Path) -> Iterator[Finding]:
    """Name the credentials that agents find here, without their values."""
    found = find_credentials(home)
    if not found:
        yield warning(
            "credentials",
            "none were found in the environment or in the files of agents",
            "set a variable such as ANTHROPIC_API_KEY for the server, or log in with an agent's own program",
        )
    usable: dict[str, str] = {}
    for each in found:
        if not each.is_expired:
            usable.setdefault(each.provider, f"{each.provider} ({each.auth_type} of {each.source})")
    if usable:
        yield ok("credentials", ", ".join(usable.values()))
    for each in found:
        if each.is_expired and each.provider not in usable:
            yield warning(
                "credentials",
                f"the login of {each.source} for {each.provider} has expired",
                "log in again, or use the agent's own program once, which may renew it",
            )
