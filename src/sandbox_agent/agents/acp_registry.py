"""The document of an ACP registry as agents: exact versions of packages, and archives with a checksum.

Format: https://github.com/agentclientprotocol/registry, ``FORMAT.md`` and ``agent.schema.json``.
"""

from __future__ import annotations

import logging
import re
import time
from typing import Any

import httpx2
import msgspec

from sandbox_agent.agents.catalogue import CATALOGUE, ENTRIES, UNKNOWN_AGENT, Agent, to_agent
from sandbox_agent.agents.install.command import redact
from sandbox_agent.agents.launch import is_agent_id
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, elements, loads, members

logger: logging.Logger = logging.getLogger("sandbox_agent.agents")

# A program waits for the document at its start. Without it, the catalogue is used.
REGISTRY_SECONDS = 5.0
_MAX_BYTES = 8 * 1024 * 1024
_EXACT = r"\d+(?:\.\w+)+(?:[-+][\w.+-]+)?"
_NPM = re.compile(rf"((?:@\w[\w.-]*/)?\w[\w.-]*)@({_EXACT})", re.ASCII)
_PYPI = re.compile(rf"(\w[\w.-]*(?:\[[\w,.-]+\])?)(?:==|@)({_EXACT})", re.ASCII)
_MACHINES = {"x86_64": "x64", "aarch64": "arm64"}
# What the registry does not say; npm's packages of agents run on it.
_NODE = "20"


def fetch_registry(url: str) -> dict[str, Agent]:
    """Return the agents of a registry. If it cannot be fetched or read, log why and return none."""
    try:
        with (
            httpx2.Client(timeout=REGISTRY_SECONDS, follow_redirects=True) as client,
            client.stream("GET", url) as response,
        ):
            data, deadline = b"", time.monotonic() + REGISTRY_SECONDS
            for chunk in response.raise_for_status().iter_bytes():
                data += chunk
                if len(data) > _MAX_BYTES:
                    raise ValueError(f"it is larger than {_MAX_BYTES} bytes")
                if time.monotonic() > deadline:
                    raise ValueError(f"it did not arrive within {REGISTRY_SECONDS:g} s")
        return read_registry(data)
    except (httpx2.HTTPError, httpx2.InvalidURL, ImportError, ValueError) as error:  # no SOCKS support
        why = redact(str(error)) or type(error).__name__
        logger.warning("the agent registry %s is not used, the catalogue is: %s", redact(url), why)
        return {}


def read_registry(data: bytes) -> dict[str, Agent]:
    """Return the agents of a registry's document, without those that it does not pin exactly.

    An entry whose package the catalogue has, or whose id it has, is that agent with another version.

    Raises:
        ValueError: It is not the document of a registry.
    """
    try:
        document = members(loads(data))
    except InvalidEnvelopeError as error:
        raise ValueError(f"it is not JSON: {error}") from error
    if not isinstance(document.get("agents"), list):
        raise ValueError("it is not the document of an ACP registry: it has no list 'agents'")
    found: dict[str, Agent] = {}
    for entry in map(members, elements(document["agents"])):
        try:
            agent = _read_entry(entry)
        except (msgspec.ValidationError, ValueError) as error:
            logger.info("the registry's agent %.64r is not used: %s", entry.get("id"), error)
            continue
        found.setdefault(agent.id, agent)
    return found


def _read_entry(entry: dict[str, Any]) -> Agent:
    entry_id, version = str(entry.get("id")), str(entry.get("version"))
    distribution = members(entry.get("distribution"))
    npx, uvx, binary = (members(distribution.get(kind)) for kind in ("npx", "uvx", "binary"))
    fields: dict[str, Any] = {}
    name = entry_id
    if (match := _NPM.fullmatch(str(npx.get("package")))) is not None:
        package, exact = match.groups()
        name = next(
            (each.id for each in CATALOGUE.values() if each.npm and each.npm.name == package), entry_id
        )
        known = CATALOGUE[name].npm if name in CATALOGUE else None
        if known is not None and known.name == package:
            pinned = {**known.packages, package: exact}
            fields = {"npm": {**msgspec.to_builtins(known), "packages": pinned}}
        else:
            command = [_command(npx, package.rpartition("/")[2]), *_strings(npx.get("args"))]
            fields = {"npm": {"packages": {package: exact}, "command": command, "node": _NODE}}
        env = npx.get("env")
    elif (match := _PYPI.fullmatch(str(uvx.get("package")))) is not None:
        requirement, exact = match.groups()
        command = [_command(uvx, requirement.partition("[")[0]), *_strings(uvx.get("args"))]
        fields = {"pypi": {"requirement": requirement, "version": exact, "command": command}}
        env = uvx.get("env")
    else:
        fields, env = _read_binary(entry_id, version, binary)
    if not is_agent_id(name) or name == "mock":
        raise ValueError("its id is not usable")
    base: dict[str, Any] = {**UNKNOWN_AGENT, "title": str(entry.get("name") or name), **ENTRIES.get(name, {})}
    others = {kind: None for kind in ("npm", "pypi", "archive") if kind not in fields}
    defaults = {**members(base.get("defaults")), **_texts(env)}
    return to_agent(name, {**base, **others, **fields, "defaults": defaults})


def _read_binary(name: str, version: str, binary: dict[str, Any]) -> tuple[dict[str, Any], object]:
    """Return the fields of an agent with archives; those without a checksum are left out."""
    platforms: dict[str, dict[str, str]] = {}
    args: list[str] = []
    env: object = {}
    for platform, target in ((each, members(binary[each])) for each in binary):
        system, _, machine = platform.partition("-")
        if system not in ("linux", "darwin") or machine not in _MACHINES or "sha256" not in target:
            continue
        # The arguments and variables of an agent are the same on all platforms.
        args, env = _strings(target.get("args")), target.get("env")
        member = str(target.get("cmd")).removeprefix("./")
        platforms[f"{system}-{_MACHINES[machine]}"] = {
            "url": str(target.get("archive")),
            "sha256": str(target["sha256"]),
            "member": member,
        }
    if not platforms:
        raise ValueError("it has neither a package with an exact version nor an archive with a checksum")
    return {"archive": {"name": name, "version": version, "args": args, "platforms": platforms}}, env


def _command(distribution: dict[str, Any], default: str) -> str:
    command: object = distribution.get("cmd")
    return command if isinstance(command, str) and command and "/" not in command else default


def _strings(value: object) -> list[str]:
    return [each for each in elements(value) if isinstance(each, str)]


def _texts(value: object) -> dict[str, str]:
    return {
        name: text
        for name, text in members(value).items()
        if isinstance(text, str) and name and not re.search("[=\0]", name) and "\0" not in text
    }
