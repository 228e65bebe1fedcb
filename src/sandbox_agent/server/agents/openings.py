"""What a folder's configuration adds to the requests that open a session in it.

The agent gets the additions. What is recorded is the client's own request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec

from sandbox_agent.wire.jsonrpc import (
    DECODE_FAILURES,
    Head,
    InvalidEnvelopeError,
    dumps,
    elements,
    load_object,
    loads,
    members,
)

OPENING_METHODS: Final = frozenset({"session/new", "session/load", "session/resume", "session/fork"})
LEFT_OUT: Final = "_adapter/left_out"
_members_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An entry of a configuration that a session does not get, or not as a whole.

    Attributes:
        kind: "mcp" or "skills".
        name: of the entry.
        reason: why, in words.
    """

    kind: str
    name: str
    reason: str

    @property
    def title(self) -> str:
        """What it is, for people."""
        return f"{'MCP server' if self.kind == 'mcp' else 'skills'} {self.name}"


@dataclass(frozen=True, slots=True)
class Additions:
    """What a session gets besides what its client passes.

    Attributes:
        servers: MCP servers in ACP's shape.
        left_out: what it does not get.
    """

    servers: Sequence[Mapping[str, Any]] = ()
    left_out: Sequence[LeftOut] = field(default=())


class Configuration(Protocol):
    """Knows what is configured for a folder."""

    async def prepare(
        self, directory: str, *, agent: str, env: Mapping[str, str], capabilities: Mapping[str, Any]
    ) -> Additions:
        """Return what a session in a folder gets; its skills are in place then.

        Args:
            directory: the session's working directory, an absolute path.
            agent: the agent's id.
            env: the agent's variables besides those that agents inherit.
            capabilities: the agent's ``mcpCapabilities``.

        Raises:
            ProblemError: the configuration is damaged, or its skills can't be provided.
        """
        ...


async def prepare(
    configuration: Configuration | None,
    head: Head,
    envelope: bytes,
    *,
    agent: str,
    env: Mapping[str, str],
    initialized: bytes | None,
) -> Additions:
    """Return what a session gets that an envelope opens; nothing if it opens none.

    Args:
        configuration: what sessions get by their folder; None for nothing.
        head: the envelope's.
        envelope: what a client sends.
        agent: the agent's id.
        env: the agent's variables besides those that agents inherit.
        initialized: the agent's response to initialize.

    Raises:
        ProblemError: as ``Configuration.prepare``.
    """
    if configuration is None or head.method not in OPENING_METHODS:
        return Additions()
    directory = read_params(envelope).get("cwd")
    if not isinstance(directory, str) or not directory.startswith("/") or "\0" in directory:
        return Additions()  # the agent reports the error best
    result = members(members(loads(initialized or b"{}")).get("result"))
    capabilities = members(members(result.get("agentCapabilities")).get("mcpCapabilities"))
    return await configuration.prepare(directory, agent=agent, env=env, capabilities=capabilities)


def add_servers(envelope: bytes, servers: Sequence[Mapping[str, Any]]) -> bytes:
    """Return a request with more MCP servers. Those that it has keep their names, and all else its bytes."""
    if not servers:
        return envelope
    try:
        fields: dict[str, Any] = dict(_members_decoder.decode(envelope))
        params: dict[str, Any] = dict(_members_decoder.decode(fields["params"]))
        passed: Any = loads(bytes(params.get("mcpServers", b"null")))
    except DECODE_FAILURES:  # it has what msgspec does not decode
        fields = load_object(envelope)
        params = members(fields["params"])
        passed = params.get("mcpServers")
    kept: list[Any] = [] if passed is None else elements(passed)
    if passed is not None and kept is not passed:
        return envelope  # it is not a list: the agent reports the error best
    names = {members(each).get("name") for each in kept}
    params["mcpServers"] = [*kept, *(each for each in servers if each["name"] not in names)]
    return dumps({**fields, "params": params})


def report_left_out(
    announce: Callable[[str, Mapping[str, object]], None],
    additions: Additions,
    request: bytes,
    response: asyncio.Future[bytes],
) -> None:
    """Announce each entry that an opened session does not get; its response is recorded already.

    Args:
        announce: announces a notification of the server.
        additions: what the session gets.
        request: what has opened it.
        response: the agent's, which is done.
    """
    if not additions.left_out or response.cancelled() or response.exception() is not None:
        return
    result = members(loads(response.result())).get("result")
    session_id = members(result).get("sessionId") or read_params(request).get("sessionId")
    if result is None or not isinstance(session_id, str):
        return
    for each in additions.left_out:
        message = f"{each.title}: {each.reason}"
        params = {"sessionId": session_id, "kind": each.kind, "name": each.name, "message": message}
        announce(LEFT_OUT, params)


def read_params(envelope: bytes) -> dict[str, Any]:
    """Return the params of an envelope; {} if there are none."""
    try:
        return members(members(loads(envelope)).get("params"))
    except InvalidEnvelopeError:
        return {}
