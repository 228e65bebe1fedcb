"""What an agent told again of a session, compared with the history that is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sandbox_agent.engine.restore.entries import Entry, read_entries
from sandbox_agent.wire.members import members
from sandbox_agent.wire.records import SessionEvent

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

    def until(self, events: Sequence[SessionEvent], *, cut_off: bool = False) -> int | None:
        """Return the position up to which the history was told again: that of the first turn that was not.

        A turn was told when the last words of both sides in it were. White space does not count, nor does
        what else was told.

        Args:
            events: the newest of the history, oldest of them first.
            cut_off: whether its last turn did not come to its end; the agent may never have kept the answer.

        Returns:
            ``len(events)`` where all was told. None where it can't be known: nothing was told, or nothing
            said, or the answer to the user's last words may still be told.
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
    """Where a turn begins, and the last words of it, without white space."""

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
