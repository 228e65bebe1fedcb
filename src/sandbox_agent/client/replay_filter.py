"""Keeps the history that an agent replays, while it opens a session again, out of the session's journal."""

from __future__ import annotations

from typing import Any, cast

from sandbox_agent.client.envelopes import decode
from sandbox_agent.engine.restore import Retelling, Told
from sandbox_agent.wire.jsonrpc import loads


class ReplayFilter:
    """Filters an agent session's updates from the request that opens it to the next prompt.

    Attributes:
        told: the updates that the agent replayed.
    """

    def __init__(self) -> None:
        self.told: Told = Told()
        self._retelling = Retelling()
        self._retelling.begin()
        self._undecided: list[bytes] = []
        self._present: dict[str, bytes] = {}

    def filter(self, lines: list[bytes]) -> list[bytes]:
        """Return the updates that belong to the history.

        Until the response, updates that describe the present (commands, usage) are held: the last of each
        kind. So are updates that may retell the history, until that is known.
        """
        return [line for line in lines if self._is_present(line)]

    def _is_present(self, line: bytes) -> bool:
        params = decode(line).params
        kind = params.update.sessionUpdate if params is not None and params.update is not None else None
        verdict = self._retelling.classify(kind)
        is_open = self._retelling.state == "open"
        if verdict == "undecided":
            self._undecided.append(line)
        elif verdict == "past" and is_open:
            for each in (*self._undecided, line):
                self._add_told(each)
            self._undecided.clear()
        elif verdict == "news" and is_open:
            self._present[kind or ""] = line
        return verdict == "news" and not is_open

    def _add_told(self, line: bytes) -> None:
        params: object = cast("dict[str, Any]", loads(line)).get("params")
        update: object = cast("dict[str, Any]", params).get("update") if isinstance(params, dict) else None
        if isinstance(update, dict):
            self.told.take(cast("dict[str, Any]", update))

    def finish(self, result: dict[str, Any]) -> list[bytes]:
        """Handle the response; return the held updates, except for state that the response contains."""
        self._retelling.answer()
        undecided, self._undecided = self._undecided, []
        held, self._present = self._present, {}
        if isinstance(result.get("modes"), dict):
            held.pop("current_mode_update", None)
        if isinstance(result.get("configOptions"), list):
            held.pop("config_option_update", None)
        return [*undecided, *held.values()]
