"""An agent session that is being opened again: what its agent tells of the past is kept from the journal."""

from __future__ import annotations

from typing import Any, cast

from sandbox_agent.client.envelopes import decode
from sandbox_agent.engine.restore import Retelling, Told
from sandbox_agent.wire.jsonrpc import loads

__all__ = ["Loading"]


class Loading:
    """From the request that opens the agent session to the next prompt.

    Attributes:
        told: what the agent told again.
    """

    def __init__(self) -> None:
        self.told: Told = Told()
        self._retelling = Retelling()
        self._retelling.begin()
        self._state: dict[str, bytes] = {}

    def present(self, lines: list[bytes]) -> list[bytes]:
        """Take updates and return those that belong into the history now.

        Until the response what is so now (commands, usage) is held: the last of each kind.
        """
        return [line for line in lines if self._is_present(line)]

    def _is_present(self, line: bytes) -> bool:
        params = decode(line).params
        kind = params.update.sessionUpdate if params is not None and params.update is not None else None
        if self._retelling.is_past(kind):
            if self._retelling.state == "open":
                self._take(line)
            return False
        if self._retelling.state == "open":
            self._state[kind or ""] = line
            return False
        return True

    def _take(self, line: bytes) -> None:
        params: object = cast("dict[str, Any]", loads(line)).get("params")
        update: object = cast("dict[str, Any]", params).get("update") if isinstance(params, dict) else None
        if isinstance(update, dict):
            self.told.take(cast("dict[str, Any]", update))

    def answer(self, result: dict[str, Any]) -> list[bytes]:
        """The response came: return what was held, but what the response itself says."""
        self._retelling.answer()
        held, self._state = self._state, {}
        if isinstance(result.get("modes"), dict):
            held.pop("current_mode_update", None)
        if isinstance(result.get("configOptions"), list):
            held.pop("config_option_update", None)
        return list(held.values())
