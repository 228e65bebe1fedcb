"""What an agent told again of a session, compared with the history that is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError
from sandbox_agent.wire.members import members
from sandbox_agent.wire.records import SessionEvent

__all__ = ["Told"]

# Of what was told so much is kept, and of the last text so much is looked for in it, in characters.
_KEPT = 200_000
_COMPARED = 2_000


class Told:
    """The texts of the updates that repeat a session; as much of them as is compared."""

    def __init__(self) -> None:
        self._texts: dict[str, _Tail] = {"user_message_chunk": _Tail(), "agent_message_chunk": _Tail()}
        self._count = 0
        self._users_last = False

    def take(self, update: Mapping[str, Any]) -> None:
        """Take an update that is past."""
        kind: object = update.get("sessionUpdate")
        self._count += 1
        self._users_last = kind == "user_message_chunk"
        tail = self._texts.get(kind) if isinstance(kind, str) else None
        if tail is not None:
            tail.add(_text(update.get("content")))

    def matches(self, events: Sequence[SessionEvent]) -> bool | None:
        """Say whether the last that was said, by the user and by the agent, was told again.

        White space does not count, nor does what else was told.

        Args:
            events: the newest of the history.

        Returns:
            None where it can't be known: nothing was told, or nothing said, or the answer to the user's
            last words may still be told.
        """
        user, agent = _last_said(events)
        if not self._count or not (user or agent) or (self._users_last and agent):
            return None
        told = self._texts
        return told["user_message_chunk"].has(user) and told["agent_message_chunk"].has(agent)


class _Tail:
    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._size = 0

    def add(self, text: str) -> None:
        self._pieces.append(text)
        self._size += len(text)
        if self._size > 2 * _KEPT:
            self._pieces = ["".join(self._pieces)[-_KEPT:]]
            self._size = _KEPT

    def has(self, text: str) -> bool:
        return text in _plain("".join(self._pieces))


def _last_said(events: Sequence[SessionEvent]) -> tuple[str, str]:
    """Return the user's last words and what the agent said last in answer to them, without white space."""
    agent: list[str] = []
    over = False
    for event in reversed(events):
        try:
            payload = event.payload
        except InvalidEnvelopeError:
            continue
        params = members(payload.get("params"))
        method: object = payload.get("method")
        if method == "session/prompt":
            blocks: object = params.get("prompt")
            texts = (
                [_text(block) for block in cast("list[object]", blocks)] if isinstance(blocks, list) else []
            )
            # The user's text is behind what a restore put in front of it.
            said = next((text for text in reversed(texts) if text.strip()), "")
            return _end(said), _end("".join(reversed(agent)))
        update = members(params.get("update")) if method == "session/update" else {}
        kind = update.get("sessionUpdate")
        if kind == "agent_message_chunk":
            if not over:
                agent.append(_text(update.get("content")))
        elif kind in {"tool_call", "tool_call_update"}:
            over = over or bool("".join(agent).strip())
    return "", _end("".join(reversed(agent)))


def _end(text: str) -> str:
    return _plain(text)[-_COMPARED:]


def _plain(text: str) -> str:
    return "".join(text.split())


def _text(block: object) -> str:
    text: object = members(block).get("text")
    return text if isinstance(text, str) else ""
