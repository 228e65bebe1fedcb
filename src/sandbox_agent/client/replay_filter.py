"""Separates what an agent replays while it opens a session again from what belongs to the history now."""

from __future__ import annotations

from sandbox_agent.client.envelopes import as_object, decode
from sandbox_agent.engine.restore import Retelling, Told
from sandbox_agent.wire.jsonrpc import loads

__all__ = ["ReplayFilter"]


class ReplayFilter:
    """Filters an agent session's updates from the request that opens it until the next prompt.

    Attributes:
        told: what the agent replayed.
    """

    def __init__(self) -> None:
        self.told: Told = Told()
        self._phase = Retelling()
        self._phase.begin()
        self._state: dict[str, bytes] = {}

    def filter(self, lines: list[bytes]) -> list[bytes]:
        """Return the updates that belong to the history.

        Until the response, updates of the current state (commands, usage) are held: the last of each kind.
        """
        return [line for line in lines if self._is_new(line)]

    def _is_new(self, line: bytes) -> bool:
        params = decode(line).params
        kind = params.update.sessionUpdate if params is not None and params.update is not None else None
        is_open = self._phase.state == "open"
        if self._phase.is_past(kind):
            if is_open:
                update = as_object(as_object(loads(line).get("params")).get("update"))
                if update:
                    self.told.take(update)
            return False
        if is_open:
            self._state[kind or ""] = line
        return not is_open

    def finish(self, result: dict[str, object]) -> list[bytes]:
        """Handle the response; return the held updates, except for state that the response contains."""
        self._phase.answer()
        held, self._state = self._state, {}
        if isinstance(result.get("modes"), dict):
            held.pop("current_mode_update", None)
        if isinstance(result.get("configOptions"), list):
            held.pop("config_option_update", None)
        return list(held.values())
