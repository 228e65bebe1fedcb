"""The relay to the sandbox's proxy: what the proxy refuses to an agent is shown in the agent's sessions."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary, WeakValueDictionary

from sandbox_agent.egress.refusals import Refusal
from sandbox_agent.egress.relay import Relay, Where
from sandbox_agent.server.agents.connection import AgentConnection

METHOD = "_adapter/egress_refused"
# An agent may try again and again: between two prompts each host is shown once, and so many of them.
MAX_SHOWN = 16
MORE = f"the sandbox refused more than {MAX_SHOWN} hosts: others are not shown before the next prompt"


@dataclass(slots=True)
class _Shown:
    """What was shown since a prompt."""

    prompt: int
    targets: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])


class Egress:
    """Gives agents the proxy of their sandbox.

    Args:
        where: Where the proxy listens.
    """

    def __init__(self, where: Where) -> None:
        self._relay = Relay(where, self._on_refused)
        self._agents: WeakValueDictionary[str, AgentConnection] = WeakValueDictionary()
        self._shown: WeakKeyDictionary[AgentConnection, _Shown] = WeakKeyDictionary()

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[None]:
        """Listen while the context lasts."""
        async with self._relay.run():
            yield

    @staticmethod
    def new_user() -> str:
        """Return a name of an agent that no other agent can guess."""
        return secrets.token_hex(8)

    def variables(self, user: str) -> dict[str, str]:
        """Return the variables by which programs find the proxy.

        Args:
            user: The name by which the proxy distinguishes agents, as from ``new_user``.
        """
        url = f"http://{user}:x@127.0.0.1:{self._relay.port}"
        names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        found = {name: url for upper in names for name in (upper, upper.lower())}
        found |= dict.fromkeys(("NO_PROXY", "no_proxy"), "localhost,127.0.0.1,::1")
        # Node uses the variables only with this one. Claude Code would resolve names itself.
        return {**found, "NODE_USE_ENV_PROXY": "1", "CLAUDE_CODE_PROXY_RESOLVES_HOSTS": "1"}

    def add(self, user: str, connection: AgentConnection) -> None:
        """Show what is refused to this user in the sessions of a connection."""
        self._agents[user] = connection

    def _on_refused(self, refusal: Refusal) -> None:
        connection = self._agents.get(refusal.user)
        if connection is None or not connection.alive:
            return
        shown = self._shown.get(connection)
        if shown is None or shown.prompt != connection.prompts:
            shown = self._shown[connection] = _Shown(connection.prompts)
        target = (refusal.host, refusal.port)
        if target in shown.targets or len(shown.targets) > MAX_SHOWN:
            return
        shown.targets.add(target)
        if len(shown.targets) > MAX_SHOWN:
            connection.announce(METHOD, {"message": MORE})
            return
        params = {"host": refusal.host, "port": refusal.port, "message": refusal.message}
        connection.announce(METHOD, params)
