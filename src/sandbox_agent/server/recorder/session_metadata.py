"""Keeps the metadata of a session's row: title, model, mode, tokens and cost."""

from __future__ import annotations

import contextlib
from typing import Any, cast

import msgspec

from sandbox_agent.engine.route import Reply
from sandbox_agent.persist.store import SessionRow, TurnRow
from sandbox_agent.server.permissions.policies import stored_request
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, loads, members
from sandbox_agent.wire.sessions import UsageInfo
from sandbox_agent.wire.universal import JsonPart, StatusPart, TurnEventData, UniversalItem

TOKENS = {
    "inputTokens": "input_tokens",
    "outputTokens": "output_tokens",
    "totalTokens": "total_tokens",
    "cachedReadTokens": "cached_read_tokens",
    "cachedWriteTokens": "cached_write_tokens",
    "thoughtTokens": "thought_tokens",
}


_usage = msgspec.json.Decoder(UsageInfo)
# Results that report modes, models or config options.
_REPORTING = frozenset(
    {"session/new", "session/load", "session/resume", "session/fork", "session/set_config_option"}
)


class SessionMetadata:
    """Keeps a session's row up to date with what its agent reports.

    Tokens are summed over the turns. The agent reports the cost of the session so far; the cost of a turn is
    the growth in it.
    """

    def __init__(self, row: SessionRow) -> None:
        self._row = row
        # The title that a user gave the session, which the agent's own does not replace.
        request = stored_request(row)
        self._named = request is not None and request.title is not None
        self._usage = read_usage(row.usage) or UsageInfo()
        self._before: dict[str, dict[str, float]] = {}

    def add_status(self, item: UniversalItem, turns: dict[str, TurnRow]) -> None:
        """Update the row by a status item."""
        label, detail = "", None
        value: Any = None
        for part in item.content:
            if isinstance(part, StatusPart):
                label, detail = part.label, part.detail
            elif isinstance(part, JsonPart):
                value = part.json
        reported = members(value)
        if label == "title":
            if not self._named:
                self._row.title = detail
        elif label == "mode" and detail:
            self._row.agent_mode = detail
        elif label == "config":
            self._update_options(reported.get("configOptions"))
        elif label == "usage":
            self._update_usage(reported)
            for turn_id in turns:
                self._before.setdefault(turn_id, dict(self._usage.cost or {}))

    def start_turn(self, turn_id: str) -> None:
        """Note the cost of the session before the turn."""
        self._before[turn_id] = dict(self._usage.cost or {})

    def end_turn(self, turn: TurnRow, data: TurnEventData) -> TurnRow:
        """Return the turn's row with its usage, and add that to the session's."""
        usage = members(members(data.metadata).get("usage"))
        mine = UsageInfo()
        for name, attribute in TOKENS.items():
            count = usage.get(name)
            if isinstance(count, int) and not isinstance(count, bool):
                setattr(mine, attribute, count)
                setattr(self._usage, attribute, (getattr(self._usage, attribute) or 0) + count)
        before = self._before.pop(turn.turn_id, {})
        grown = {
            currency: amount - before.get(currency, 0.0)
            for currency, amount in (self._usage.cost or {}).items()
            if amount > before.get(currency, 0.0)
        }
        mine.cost = grown or None
        if mine == UsageInfo():
            return turn
        self._row.usage = msgspec.json.encode(self._usage)
        return msgspec.structs.replace(turn, usage=msgspec.json.encode(mine))

    def add_reply(self, reply: Reply, line: bytes) -> None:
        """Update the row by the response to a request that created, opened or changed the session."""
        if not reply.succeeded:
            return
        if reply.method == "session/set_model" and reply.value:
            self._row.model = reply.value
        if reply.method == "session/set_mode" and reply.value:
            self._row.agent_mode = reply.value
        if reply.method not in _REPORTING:
            return
        result: dict[str, Any] = {}
        with contextlib.suppress(InvalidEnvelopeError):
            result = members(members(loads(line)).get("result"))
        mode = members(result.get("modes")).get("currentModeId")
        if isinstance(mode, str) and mode:
            self._row.agent_mode = mode
        model = members(result.get("models")).get("currentModelId")
        if isinstance(model, str) and model:
            self._row.model = model
        self._update_options(result.get("configOptions"))

    def _update_options(self, options: object) -> None:
        if not isinstance(options, list):
            return
        for option in cast("list[Any]", options):
            fields = members(option)
            value = fields.get("currentValue")
            if not isinstance(value, str) or not value:
                continue
            category = fields.get("category")
            if category == "model":
                self._row.model = value
            elif category == "mode":
                self._row.agent_mode = value
            elif category == "thought_level":
                self._row.variant = value

    def _update_usage(self, reported: dict[str, Any]) -> None:
        used, size, cost = reported.get("used"), reported.get("size"), members(reported.get("cost"))
        if isinstance(used, int):
            self._usage.context_used = used
        if isinstance(size, int):
            self._usage.context_size = size
        amount, currency = cost.get("amount"), cost.get("currency")
        if isinstance(amount, int | float) and isinstance(currency, str):
            with contextlib.suppress(OverflowError):  # a number with hundreds of digits
                self._usage.cost = {**(self._usage.cost or {}), currency: float(amount)}
        self._row.usage = msgspec.json.encode(self._usage)


def read_usage(usage: bytes | None) -> UsageInfo | None:
    """Return the usage in a stored row; None if it has none, or that of a newer version."""
    try:
        return None if usage is None else _usage.decode(usage)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
