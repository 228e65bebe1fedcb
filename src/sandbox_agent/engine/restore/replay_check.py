"""Compares the history that an agent reports with the stored history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sandbox_agent.engine.restore.history import Entry, read_entries
from sandbox_agent.wire.jsonrpc import members
from sandbox_agent.wire.records import SessionEvent

# In characters: how much reported text is kept, and how much of the end of a stored text is searched in it.
_KEPT = 200_000
_COMPARED = 2_000


class ReportedHistory:
    """The texts of the updates that repeat a session, as far as they are compared."""

    def __init__(self) -> None:
        self._texts: dict[str, _Tail] = {"user_message_chunk": _Tail(), "agent_message_chunk": _Tail()}
        self._count = 0
        self._users_last = False

    def add(self, update: Mapping[str, Any]) -> None:
        """Add an update that repeats the history."""
        kind: object = update.get("sessionUpdate")
        self._count += 1
        self._users_last = kind == "user_message_chunk"
        tail = self._texts.get(kind) if isinstance(kind, str) else None
        if tail is not None:
            tail.add(_text(update.get("content")))

    def covered_until(self, events: Sequence[SessionEvent], *, cut_off: bool = False) -> int | None:
        """Return the position of the first turn that was not reported.

        A turn counts as reported if the last texts of both the user and the agent were. Whitespace and other
        updates are ignored.

        Args:
            events: the newest events of the history, oldest first.
            cut_off: whether its last turn has not ended; the agent may not have kept its response.

        Returns:
            ``len(events)`` if everything was reported. None if unknown: nothing was reported, the history has
            no text, or the response to the user's last message may still be reported.
        """
        entries = read_entries(events, is_cut=True)
        turn = _last_turn(entries)
        may_follow = self._users_last and turn.agent and not cut_off
        if not self._count or not (turn.user or turn.agent) or may_follow:
            return None
        user, agent = (self._texts[kind].text() for kind in ("user_message_chunk", "agent_message_chunk"))
        end = len(events)
        while entries and not (turn.user in user and turn.agent in agent):
            end = entries[turn.start].first if turn.start else 0
            entries = entries[: turn.start]
            turn = _last_turn(entries)
        return end


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

    def text(self) -> str:
        return _plain("".join(self._pieces))


class _Turn(NamedTuple):
    """Where a turn begins, and its last texts without whitespace."""

    start: int
    user: str
    agent: str


def _last_turn(entries: Sequence[Entry]) -> _Turn:
    agent = ""
    for position in range(len(entries) - 1, -1, -1):
        entry = entries[position]
        if entry.role == "User":
            return _Turn(position, _end(entry.words), agent)
        if entry.role == "Assistant" and not agent:
            agent = _end(entry.text)
    return _Turn(0, "", agent)


def _end(text: str) -> str:
    return _plain(text)[-_COMPARED:]


def _plain(text: str) -> str:
    return "".join(text.split())


def _text(block: object) -> str:
    text: object = members(block).get("text")
    return text if isinstance(text, str) else ""
